import { execFile } from 'node:child_process'
import { cp, mkdir, realpath, symlink, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { promisify } from 'node:util'
import * as esbuild from 'esbuild'
import * as vite from 'vite'
import { beforeAll, describe, expect, it } from 'vitest'
import webpack from 'webpack'
import { checkBuild } from '../support/cli-process.js'
import { scratchFolder } from '../support/scratch.js'

beforeAll(checkBuild)

const run = promisify(execFile)

/** A program that listens once and makes a report, and prints what came of it. */
const listens = `
import { renderReport, serve } from 'reap-trace'
const [socketPath, memoryFile] = process.argv.slice(2)
const snapshot = { memoryFile, memoryBytes: 2 ** 20, pageSize: 4096 }
const date = new Date().toISOString()
const restore = { version: 1, date, backend: 'uffd', snapshot, times: { started: 5 } }
serve({ socketPath, snapshot: { memoryFile } })
  .then((handler) => handler.close())
  .then(() => console.log('listened'))
  .then(() => renderReport([{ name: 'it', restore }]))
  .then((page) => console.log(page.length > 10_000 ? 'reported' : page))
  .catch(({ name, code, hint }) => console.log(name, code, hint))
`

/** The same, with a provider of OpenTelemetry that prints the names of spans. */
const traces = `
import { INVALID_SPAN_CONTEXT, trace } from '@opentelemetry/api'
const startSpan = (name) => {
  console.log(name)
  return trace.wrapSpanContext(INVALID_SPAN_CONTEXT)
}
trace.setGlobalTracerProvider({ getTracer: () => ({ startSpan }) })
${listens}`

/** Folder of a project, where the program is app.mjs, and the name of the bundle. */
interface Project {
  readonly folder: string
  readonly outfile: string
  readonly external: readonly string[]
}

const byEsbuild =
  (format: 'esm' | 'cjs') =>
  async ({ folder, outfile, external }: Project): Promise<void> => {
    await esbuild.build({
      entryPoints: [join(folder, 'app.mjs')],
      outfile: join(folder, 'dist', outfile),
      format,
      external: [...external],
      bundle: true,
      platform: 'node',
      target: 'node20',
      logOverride: { 'empty-import-meta': 'silent' },
    })
  }

function byWebpack({ folder, outfile, external }: Project): Promise<void> {
  const compiler = webpack({
    mode: 'production',
    optimization: { minimize: false },
    target: 'node20',
    context: folder,
    entry: './app.mjs',
    externals: Object.fromEntries(external.map((name) => [name, `module ${name}`])),
    module: { parser: { javascript: { importMeta: false } } },
    output: { module: true, path: join(folder, 'dist'), filename: outfile },
  })
  return new Promise((resolve, reject) => {
    compiler.run((error, stats) => {
      if (error || !stats || stats.hasErrors()) reject(error ?? new Error(stats?.toString()))
      else compiler.close(() => resolve())
    })
  })
}

async function byVite({ folder, outfile, external }: Project): Promise<void> {
  await vite.build({
    configFile: false,
    logLevel: 'error',
    root: folder,
    ssr: { noExternal: true, external: [...external] },
    build: { ssr: 'app.mjs', rolldownOptions: { output: { entryFileNames: outfile } } },
  })
}

it('a class of the built package has its own name', async () => {
  const script =
    "import('reap-trace').then(({ Trace, WorkingSet, ReapTraceError: E }) => console.log([Trace, WorkingSet, E].map(({ name }) => name).join()))"
  const { stdout } = await run(process.execPath, ['-e', script])
  expect(stdout).toBe('Trace,WorkingSet,ReapTraceError\n')
})

describe.each([
  ['esbuild, as ESM', byEsbuild('esm'), 'app.mjs'],
  ['esbuild, as CommonJS', byEsbuild('cjs'), 'app.cjs'],
  ['webpack', byWebpack, 'app.mjs'],
  ['vite', byVite, 'app.mjs'],
] as const)('a bundle by %s', (_, bundle, outfile) => {
  /** Bundles a program in a folder with these packages, and moves the bundle away from them. */
  async function bundled(program: string, packages: string[] = [], external: string[] = []) {
    const folder = await scratchFolder()
    const modules = join(folder, 'node_modules')
    // Not a link: bundlers would look for other packages where it leads to.
    for (const name of ['dist', 'package.json']) {
      await cp(name, join(modules, 'reap-trace', name), { recursive: true })
    }
    for (const name of ['lru-cache', 'signal-exit', ...packages]) {
      await mkdir(join(modules, name, '..'), { recursive: true })
      await symlink(await realpath(join('node_modules', name)), join(modules, name))
    }
    await writeFile(join(folder, 'app.mjs'), program)
    await bundle({ folder, outfile, external })
    const moved = await scratchFolder()
    await cp(join(folder, 'dist'), moved, { recursive: true })
    const memoryFile = join(moved, 'memory')
    await writeFile(memoryFile, Buffer.alloc(2 ** 20))
    const words = [join(moved, outfile), join(moved, 'socket'), memoryFile]
    return { folder: moved, start: async () => (await run(process.execPath, words)).stdout }
  }

  async function addFiles(folder: string): Promise<void> {
    const addon = `prebuilds/linux-${process.arch}/reap_trace.node`
    await cp('build/Release/reap_trace.node', join(folder, addon))
    await cp('dist/report.html', join(folder, 'report.html'))
  }

  it('says how to bundle when its native parts are elsewhere', async () => {
    const { start } = await bundled(listens)
    expect(await start()).toMatch(
      /^ReapTraceError ERR_NATIVE_UNAVAILABLE A bundler .* --external:reap-trace/,
    )
  })

  it('works with prebuilds/ and report.html next to it, without OpenTelemetry', async () => {
    const { folder, start } = await bundled(listens)
    await addFiles(folder)
    expect(await start()).toBe('listened\nreported\n')
  })

  it('gives OpenTelemetry its spans, if the program has it', async () => {
    const { folder, start } = await bundled(traces, ['@opentelemetry/api'])
    await addFiles(folder)
    const spans = 'reap-trace.restore\nreap-trace.listen\n'
    expect(await start()).toBe(`${spans}listened\nreported\n`)
  })

  it('works with reap-trace as an external package', async () => {
    const { folder, start } = await bundled(listens, [], ['reap-trace'])
    await mkdir(join(folder, 'node_modules'))
    await symlink(process.cwd(), join(folder, 'node_modules/reap-trace'))
    expect(await start()).toBe('listened\nreported\n')
  })
})
