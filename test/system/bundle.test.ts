import { execFile } from 'node:child_process'
import { cp, mkdir, symlink, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { build } from 'esbuild'
import { beforeAll, describe, expect, it } from 'vitest'
import { checkBuild } from '../support/cli-process.js'
import { scratchFolder } from '../support/scratch.js'

beforeAll(checkBuild)

const run = promisify(execFile)

/** A program that listens once, and prints what came of it. */
const program = `
import { serve } from 'reap-trace'
const [socketPath, memoryFile] = process.argv.slice(2)
serve({ socketPath, snapshot: { memoryFile } })
  .then((handler) => handler.close())
  .then(() => console.log('listened'))
  .catch(({ name, code, hint }) => console.log(name, code, hint))
`

/** A folder with the program as esbuild bundles it, and a way to run it. */
async function bundled(format: 'esm' | 'cjs', external: string[] = []) {
  const folder = await scratchFolder()
  const outfile = join(folder, format === 'esm' ? 'app.mjs' : 'app.cjs')
  await build({
    stdin: { contents: program, resolveDir: process.cwd() },
    outfile,
    format,
    external,
    bundle: true,
    platform: 'node',
    target: 'node20',
    logOverride: { 'empty-import-meta': 'silent' },
  })
  const memoryFile = join(folder, 'memory')
  await writeFile(memoryFile, Buffer.alloc(2 ** 20))
  const start = async () =>
    (await run(process.execPath, [outfile, join(folder, 'socket'), memoryFile])).stdout
  return { folder, start }
}

it('a class of the built package has its own name', async () => {
  const script =
    "import('reap-trace').then(({ Trace, WorkingSet, ReapTraceError: E }) => console.log([Trace, WorkingSet, E].map(({ name }) => name).join()))"
  const { stdout } = await run(process.execPath, ['-e', script])
  expect(stdout).toBe('Trace,WorkingSet,ReapTraceError\n')
})

describe.each(['esm', 'cjs'] as const)('a bundle by esbuild, as %s', (format) => {
  it('says how to bundle when its native parts are elsewhere', async () => {
    const { start } = await bundled(format)
    expect(await start()).toMatch(
      /^ReapTraceError ERR_NATIVE_UNAVAILABLE A bundler .* --external:reap-trace/,
    )
  })

  it('works with prebuilds/ next to it', async () => {
    const { folder, start } = await bundled(format)
    const prebuilds = join(folder, `prebuilds/linux-${process.arch}`)
    await cp('build/Release/reap_trace.node', join(prebuilds, 'reap_trace.node'))
    expect(await start()).toBe('listened\n')
  })

  it('works with reap-trace as an external package', async () => {
    const { folder, start } = await bundled(format, ['reap-trace'])
    await mkdir(join(folder, 'node_modules'))
    await symlink(process.cwd(), join(folder, 'node_modules/reap-trace'))
    expect(await start()).toBe('listened\n')
  })
})
