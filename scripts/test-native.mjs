// Builds and runs the C++ tests (test/native). Later runs compile only what changed.
//
//   node scripts/test-native.mjs [--sanitize=address|thread] [filter...]
//
// Runs the tests whose name contains one of the filters, or all. --sanitize=address is address and
// undefined behaviour together. $CXX chooses the compiler, g++ when it is not set.
import { spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { availableParallelism } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'

const sanitizers = {
  address: ['-fsanitize=address,undefined', '-fno-sanitize-recover=all', '-fno-omit-frame-pointer'],
  thread: ['-fsanitize=thread'],
}
const limitMs = 1_200_000

const { values: options, positionals: filters } = parseArgs({
  options: { sanitize: { type: 'string' } },
  allowPositionals: true,
})
const kind = options.sanitize ?? 'plain'
if (kind !== 'plain' && !sanitizers[kind]) {
  process.stderr.write(
    `error: no sanitizer '${kind}'\nhint: one of ${Object.keys(sanitizers).join(', ')}\n`,
  )
  process.exit(2)
}

const root = fileURLToPath(new URL('..', import.meta.url))
const build = join(root, `build/test-native-${kind}`)
const binary = join(build, 'native-tests')

function sources(directory, accept) {
  return readdirSync(join(root, directory), { recursive: true })
    .filter((name) => name.endsWith('.cc') && accept(name))
    .map((name) => ({
      path: `${directory}/${name}`,
      object: `${directory}/${name}.o`.replaceAll('/', '-'),
    }))
}

function makefile() {
  const flags = [
    ...['-std=c++17', '-fno-exceptions', '-Wall', '-Wextra', '-Werror', '-g', '-O1', '-pthread'],
    ...['-DREAP_TEST_HOOKS', `-I${join(root, 'native/engine')}`, `-I${join(root, 'test/native')}`],
    ...(sanitizers[kind] ?? []),
  ]
  const compiled = [
    ...sources('native/engine', () => true),
    ...sources('test/native', (name) => !name.includes('fuzz_')),
  ]
  const objects = compiled.map(({ object }) => object).join(' ')
  const rules = compiled.map(
    ({ path, object }) =>
      `${object}: ${join(root, path)} Makefile\n\t$(CXX) $(FLAGS) -MMD -MP -c -o $@ $<\n`,
  )
  return [
    `CXX = ${process.env.CXX ?? 'g++'}\nFLAGS = ${flags.join(' ')}\n`,
    `native-tests: ${objects}\n\t$(CXX) $(FLAGS) -o $@ ${objects}\n`,
    ...rules,
    `-include ${objects.replaceAll('.o', '.d')}\n`,
  ].join('\n')
}

mkdirSync(build, { recursive: true })
const rules = join(build, 'Makefile')
const wanted = makefile()
if (!existsSync(rules) || readFileSync(rules, 'utf8') !== wanted) writeFileSync(rules, wanted)
const made = spawnSync(
  'make',
  ['--silent', `--jobs=${availableParallelism()}`, '-C', build, 'native-tests'],
  { stdio: ['ignore', 'inherit', 'inherit'] },
)
if (made.status !== 0) {
  process.stderr.write('error: the native tests did not build\n')
  process.exit(1)
}

// The thread sanitizer of gcc 12 does not know how far newer kernels spread a process's mappings.
const fixedLayout =
  kind === 'thread' && spawnSync('setarch', ['-R', 'true'], { stdio: 'ignore' }).status === 0
const command = fixedLayout ? ['setarch', '-R', binary, ...filters] : [binary, ...filters]
const run = spawnSync(command[0], command.slice(1), { stdio: 'inherit', timeout: limitMs })
if (run.error) process.stderr.write(`error: the native tests: ${run.error.message}\n`)
process.exit(run.status ?? 1)
