// Builds targets of binding.gyp into build/<configuration>. Later runs compile only what changed.
//
//   node scripts/build-native.mjs [--quiet] [--arch=arm64] [--configuration=NAME] [--out=DIR] [target...]
//
// Without a target it builds what the package ships; --out=DIR copies the binaries there.
// --arch=arm64 cross-compiles with aarch64-linux-gnu-g++; else $CXX chooses the compiler.
import { spawn, spawnSync } from 'node:child_process'
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
} from 'node:fs'
import { createRequire } from 'node:module'
import { availableParallelism } from 'node:os'
import { dirname, join } from 'node:path'
import { createInterface } from 'node:readline'
import { text } from 'node:stream/consumers'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'

const LINE_EVERY_MS = 5000

const { values: options, positionals } = parseArgs({
  options: {
    quiet: { type: 'boolean', default: false },
    arch: { type: 'string', default: process.arch },
    configuration: { type: 'string', default: 'Release' },
    out: { type: 'string' },
  },
  allowPositionals: true,
})
const root = fileURLToPath(new URL('..', import.meta.url))
const build = join(root, 'build')
const makefile = join(build, 'Makefile')
const shipped = {
  reap_trace: 'reap_trace.node',
  'reap-guest': 'reap-guest',
  'reap-interposer': 'reap-interposer.so',
  ...(options.arch === 'x64' && { 'reap-microvm': 'reap-microvm' }),
}
const targets = positionals.length > 0 ? positionals : Object.keys(shipped)
const { CC, CXX, AR, LINK, ...environment } = process.env
const tools =
  options.arch === process.arch
    ? { CC, CXX, AR, LINK }
    : { CC: 'aarch64-linux-gnu-gcc', CXX: 'aarch64-linux-gnu-g++', AR: 'aarch64-linux-gnu-ar' }

function fail(output) {
  const compiler = tools.CXX ?? 'g++'
  const packages = [
    ['make', 'make'],
    [compiler, compiler.replace(/^(.+)-g\+\+$/, 'g++-$1')],
    ['python3', 'python3'],
  ]
  const missing = packages
    .filter(([tool]) => spawnSync(tool, ['--version']).error)
    .map(([, name]) => name)
  process.stderr.write(`${output}error: the native parts did not build\n`)
  if (missing.length > 0) {
    process.stderr.write(`hint: not installed (Debian): apt-get install ${missing.join(' ')}\n`)
  }
  process.exit(1)
}

/**
 * Writes the Makefile unless it is newer than all its inputs. A folder's time changes with its list
 * of files.
 */
function configure() {
  const folders = ['native', 'bench/native', 'test/native'].flatMap((folder) => [
    folder,
    ...readdirSync(join(root, folder), { recursive: true, withFileTypes: true })
      .filter((entry) => entry.isDirectory())
      .map((entry) => join(entry.parentPath, entry.name).slice(root.length)),
  ])
  const config = join(build, 'config.gypi')
  if (
    existsSync(makefile) &&
    readFileSync(config, 'utf8').includes(`"target_arch": "${options.arch}"`) &&
    ['binding.gyp', 'package-lock.json', ...folders].every(
      (file) => statSync(join(root, file)).mtimeMs <= statSync(makefile).mtimeMs,
    )
  ) {
    return
  }
  // The headers of this Node save a download. Node-API is the same in every version, so those of
  // any Node work.
  const prefix = dirname(dirname(process.execPath))
  const headers = existsSync(join(prefix, 'include/node/node_api.h')) ? [`--nodedir=${prefix}`] : []
  const cli = createRequire(import.meta.url).resolve('node-gyp/bin/node-gyp.js')
  rmSync(makefile, { force: true })
  // make would keep the object of a deleted source in the library.
  for (const configuration of ['Release', 'Test', 'Address', 'Thread']) {
    rmSync(join(build, configuration, 'obj.target/engine.a'), { force: true })
  }
  // Without CXX and the like, which gyp would write into the Makefile for all later runs.
  const result = spawnSync(
    process.execPath,
    [cli, 'configure', '--release', `--arch=${options.arch}`, ...headers],
    { cwd: root, env: environment, encoding: 'utf8' },
  )
  if (result.status !== 0) fail(result.stdout + result.stderr)
}

/** True if a line of make's output names a file that it compiles. */
const compiles = (line) => / {2}C(C|XX)\(target\)/.test(line)

/** Shows the number of compiled files: on a terminal in one line, otherwise every few seconds. */
async function make() {
  const args = ['-C', build, `BUILDTYPE=${options.configuration}`, ...targets]
  const env = { ...environment, ...tools }
  const dryRun = options.quiet
    ? undefined
    : spawnSync('make', ['--dry-run', ...args], { env, encoding: 'utf8', maxBuffer: 2 ** 28 })
  const total = dryRun?.stdout?.split('\n').filter(compiles).length ?? 0
  const what = positionals.length > 0 ? targets.join(', ') : 'the native parts'
  let done = 0
  let next = 0
  const child = spawn('make', [`--jobs=${availableParallelism()}`, ...args], {
    env,
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  const errors = text(child.stderr)
  createInterface({ input: child.stdout }).on('line', (line) => {
    if (options.quiet || !compiles(line)) return
    const progress = `building ${what} for linux-${options.arch} … ${done++} of ${total} files`
    if (process.stderr.isTTY) process.stderr.write(`\r${progress}`)
    else if (Date.now() >= next) {
      process.stderr.write(`${progress}\n`)
      next = Date.now() + LINE_EVERY_MS
    }
  })
  const status = await new Promise((resolve) => {
    child.once('error', resolve)
    child.once('close', resolve)
  })
  if (process.stderr.isTTY && done > 0) process.stderr.write('\r\x1b[K')
  if (status !== 0) fail(await errors)
  if (done > 0)
    process.stderr.write(
      `built ${what} for linux-${options.arch}: ${done} ${done === 1 ? 'file' : 'files'}\n`,
    )
}

configure()
await make()
if (options.out) {
  mkdirSync(options.out, { recursive: true })
  for (const binary of Object.values(shipped)) {
    copyFileSync(join(build, options.configuration, binary), join(options.out, binary))
  }
}
