// Builds native/ with node-gyp into build/Release. Later runs compile only what changed.
//
//   node scripts/build-native.mjs [--quiet] [--arch=arm64] [--out=DIR]
//
// --arch=arm64 cross-compiles with aarch64-linux-gnu-g++ (Debian: g++-aarch64-linux-gnu).
// --out=DIR copies the binaries there.
import { spawnSync } from 'node:child_process'
import { copyFileSync, existsSync, mkdirSync, readdirSync, rmSync, statSync } from 'node:fs'
import { createRequire } from 'node:module'
import { availableParallelism } from 'node:os'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'

const { values: options } = parseArgs({
  options: {
    quiet: { type: 'boolean', default: false },
    arch: { type: 'string', default: process.arch },
    out: { type: 'string' },
  },
})
const root = fileURLToPath(new URL('..', import.meta.url))
const build = join(root, 'build')
const release = join(build, 'Release')
const binaries = ['reap_trace.node', 'reap-guest', 'reap-interposer.so']
if (options.arch === 'x64') binaries.push('reap-microvm')

// Headers that came with this Node save a download. Node-API is the same in every version, so
// whichever Node they belong to will do.
const prefix = dirname(dirname(process.execPath))
const headers = existsSync(join(prefix, 'include/node/node_api.h')) ? [`--nodedir=${prefix}`] : []

const cross =
  options.arch === process.arch
    ? {}
    : { CC: 'aarch64-linux-gnu-gcc', CXX: 'aarch64-linux-gnu-g++', LINK: 'aarch64-linux-gnu-g++' }

function nodeGyp(...args) {
  const cli = createRequire(import.meta.url).resolve('node-gyp/bin/node-gyp.js')
  const result = spawnSync(process.execPath, [cli, ...args, ...headers], {
    cwd: root,
    env: { ...process.env, ...cross },
    encoding: 'utf8',
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  if (result.status === 0) return
  process.stderr.write(result.stdout + result.stderr)
  const needs = cross.CXX
    ? `a cross compiler, ${cross.CXX} (Debian: apt-get install g++-aarch64-linux-gnu)`
    : 'make, a C++17 compiler and Python 3 (Debian: apt-get install make g++ python3)'
  process.stderr.write(
    `error: the native parts for ${options.arch} did not build\nhint: node-gyp needs ${needs}.\n`,
  )
  process.exit(1)
}

// A folder's time changes with its list of files, which gyp reads when it configures.
const stamp = join(build, `.configured-${options.arch}`)
const rooms = (folder) => [
  folder,
  ...readdirSync(join(root, folder), { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isDirectory())
    .map((entry) => join(entry.parentPath, entry.name).slice(root.length)),
]
const configured =
  existsSync(stamp) &&
  existsSync(join(build, 'Makefile')) &&
  ['binding.gyp', 'package-lock.json', ...rooms('native'), 'native/guest/microvm/microvm.ld'].every(
    (file) => statSync(join(root, file)).mtimeMs <= statSync(join(build, 'Makefile')).mtimeMs,
  )
if (!configured) {
  if (!options.quiet) {
    process.stderr.write(`building the native parts for linux-${options.arch} …\n`)
  }
  // Objects of the other architecture, and nothing else that lives in build/.
  for (const old of [release, join(build, 'Makefile')])
    rmSync(old, { recursive: true, force: true })
  for (const arch of ['x64', 'arm64']) {
    rmSync(join(build, `.configured-${arch}`), { recursive: true, force: true })
  }
  nodeGyp('configure', '--release', `--arch=${options.arch}`)
  mkdirSync(stamp, { recursive: true })
}
nodeGyp('build', '--release', `--arch=${options.arch}`, `--jobs=${availableParallelism()}`)

if (options.out) {
  mkdirSync(options.out, { recursive: true })
  for (const binary of binaries) copyFileSync(join(release, binary), join(options.out, binary))
}
