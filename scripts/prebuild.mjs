// Makes prebuilds/ for the npm package: linux-x64 and linux-arm64, so that installing runs nothing.
//
// The machine's own architecture is compiled, the other one cross-compiled; each binary is then
// checked against the oldest C library that the package supports.
import { spawnSync } from 'node:child_process'
import { rmSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

const root = fileURLToPath(new URL('..', import.meta.url))
const architectures = ['x64', 'arm64']
// RHEL 9, Amazon Linux 2023: glibc 2.34 and the libstdc++ of gcc 11.
const oldest = { GLIBC: [2, 34], GLIBCXX: [3, 4, 29], CXXABI: [1, 3, 13] }

function run(command, args) {
  const result = spawnSync(command, args, { cwd: root, encoding: 'utf8' })
  if (result.status === 0) return result.stdout
  process.stderr.write(`${result.stdout ?? ''}${result.stderr ?? ''}`)
  process.stderr.write(
    `error: ${command} failed${result.error ? `: ${result.error.message}` : ''}\n`,
  )
  process.exit(1)
}

const later = (version, limit) => {
  for (let i = 0; i < Math.max(version.length, limit.length); i++) {
    const difference = (version[i] ?? 0) - (limit[i] ?? 0)
    if (difference !== 0) return difference > 0
  }
  return false
}

function checkSymbols(file) {
  for (const [, name, version] of run('objdump', ['-T', file]).matchAll(/\((\w+)_([\d.]+)\)/g)) {
    const limit = oldest[name]
    if (limit && later(version.split('.').map(Number), limit)) {
      process.stderr.write(
        `error: ${file} needs ${name}_${version}, later than ${limit.join('.')}\n`,
      )
      process.exit(1)
    }
  }
}

rmSync(join(root, 'prebuilds'), { recursive: true, force: true })
// Build the host's architecture last so that build/ stays usable.
for (const arch of architectures.sort((a) => (a === process.arch ? 1 : -1))) {
  const out = join(root, 'prebuilds', `linux-${arch}`)
  run(process.execPath, [join(root, 'scripts/build-native.mjs'), `--arch=${arch}`, `--out=${out}`])
  const strip = arch === process.arch ? 'strip' : 'aarch64-linux-gnu-strip'
  for (const binary of ['reap_trace.node', 'reap-guest', 'reap-interposer.so']) {
    run(strip, ['--strip-unneeded', join(out, binary)])
    checkSymbols(join(out, binary))
  }
  // A guest that Firecracker boots: it uses no C library.
  if (arch === 'x64') run(strip, ['--strip-all', join(out, 'reap-microvm')])
  process.stderr.write(`prebuilds/linux-${arch} is made\n`)
}
