// Builds and runs the C++ tests (test/native). Later runs compile only what changed.
//
//   node scripts/test-native.mjs [--sanitize=address|thread] [filter...]
//
// Runs the tests whose name contains one of the filters, or all. --sanitize=address is address and
// undefined behaviour together. $CXX chooses the compiler, g++ when it is not set.
import { spawnSync } from 'node:child_process'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'

const configurations = { address: 'Address', thread: 'Thread' }
const limitMs = 1_200_000

const { values: options, positionals: filters } = parseArgs({
  options: { sanitize: { type: 'string' } },
  allowPositionals: true,
})
const configuration = options.sanitize ? configurations[options.sanitize] : 'Test'
if (!configuration) {
  process.stderr.write(
    `error: no sanitizer '${options.sanitize}'\n` +
      `hint: one of ${Object.keys(configurations).join(', ')}\n`,
  )
  process.exit(2)
}

const root = fileURLToPath(new URL('..', import.meta.url))
const built = spawnSync(
  process.execPath,
  [join(root, 'scripts/build-native.mjs'), `--configuration=${configuration}`, 'native-tests'],
  { stdio: 'inherit' },
)
if (built.status !== 0) process.exit(1)

const binary = join(root, 'build', configuration, 'native-tests')
// The thread sanitizer of gcc 12 does not support the address-space randomization of newer kernels.
const fixedLayout =
  configuration === 'Thread' &&
  spawnSync('setarch', ['-R', 'true'], { stdio: 'ignore' }).status === 0
const command = fixedLayout ? ['setarch', '-R', binary, ...filters] : [binary, ...filters]
const run = spawnSync(command[0], command.slice(1), { stdio: 'inherit', timeout: limitMs })
if (run.error) process.stderr.write(`error: the native tests: ${run.error.message}\n`)
process.exit(run.status ?? 1)
