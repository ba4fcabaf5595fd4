// Checks the rules between the rooms of native/: includes, and access to kernel and Node
// interfaces. Part of `npm run lint`.
import { readdirSync, readFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

const root = fileURLToPath(new URL('..', import.meta.url))

/** Rooms or single headers that each room may include in addition to its own. */
const rooms = {
  'native/engine/base': [],
  'native/engine/files': ['base'],
  'native/engine/uffd': ['base', 'files'],
  'native/engine/handshake': ['base', 'uffd'],
  'native/engine/working_set': ['base', 'files'],
  'native/engine/prefetch': ['base', 'files', 'uffd', 'working_set'],
  'native/engine/page_cache': ['base', 'files', 'working_set'],
  'native/engine/session': ['base', 'files', 'uffd', 'handshake', 'working_set', 'prefetch'],
  'native/addon': ['base', 'files', 'uffd', 'working_set', 'page_cache', 'session'],
  // They run in other processes, or without an operating system: of the engine, only its owners of
  // descriptors.
  'native/guest': ['base/posix.h'],
  'native/guest/microvm': [],
  'native/interposer': ['base/posix.h'],
  'bench/native': ['base', 'files', 'uffd', 'handshake', 'working_set', 'native/guest'],
}

/** Interfaces that only some places may use. */
const interfaces = [
  {
    pattern: /#include <(napi|node_api|js_native_api)/,
    allowed: /^native\/addon\//,
    rule: 'Node-API is for native/addon',
  },
  {
    pattern: /\bUFFDIO_/,
    allowed: /^(native\/(engine\/uffd\/uffd\.|guest\/|interposer\/)|bench\/)/,
    rule: 'the engine calls userfaultfd in native/engine/uffd/uffd.cc',
  },
]

const files = new Map(
  ['native', 'bench/native']
    .flatMap((folder) =>
      readdirSync(join(root, folder), { recursive: true })
        .filter((name) => /\.(cc|h|S)$/.test(name))
        .map((name) => `${folder}/${name}`),
    )
    .map((file) => [file, readFileSync(join(root, file), 'utf8').split('\n')]),
)

/** Resolves an include as the compiler does. */
const resolve = (from, name) =>
  [dirname(from), 'native/engine', 'native', 'bench/native']
    .map((folder) => `${folder}/${name}`)
    .find((file) => files.has(file))

const problems = []
const includes = new Map([...files.keys()].map((file) => [file, []]))

for (const [file, lines] of files) {
  const room = dirname(file)
  const allowed = rooms[room]
  if (!allowed) problems.push(`${file}: ${room} is no room of scripts/check-includes.mjs`)
  const full = (name) => (name in rooms ? name : `native/engine/${name}`)
  for (const [i, line] of lines.entries()) {
    const at = `${file}:${i + 1}`
    const [, name] = /^#include "(.*)"/.exec(line) ?? []
    const included = name && resolve(file, name)
    if (name && !included) problems.push(`${at}: no file for "${name}"`)
    if (included) {
      includes.get(file).push({ to: included, at })
      const target = dirname(included)
      if (target !== room && !allowed?.some((a) => [target, included].includes(full(a)))) {
        const what = allowed?.length ? allowed.join(', ') : 'only itself'
        problems.push(`${at}: "${name}": ${room} may include ${what}`)
      }
    }
    const code = name ? line : line.replace(/"[^"]*"|\/\/.*/g, '')
    for (const { pattern, allowed: places, rule } of interfaces) {
      if (pattern.test(code) && !places.test(file)) problems.push(`${at}: ${code.trim()}: ${rule}`)
    }
  }
}

const finished = new Set()
function findCircle(file, path) {
  if (finished.has(file)) return
  for (const { to, at } of includes.get(file)) {
    const start = path.indexOf(to)
    if (start >= 0)
      problems.push(`${at}: headers in a circle: ${[...path.slice(start), to].join(' -> ')}`)
    else findCircle(to, [...path, to])
  }
  finished.add(file)
}
for (const file of files.keys()) findCircle(file, [file])

for (const problem of problems) process.stderr.write(`${problem}\n`)
process.exit(problems.length > 0 ? 1 : 0)
