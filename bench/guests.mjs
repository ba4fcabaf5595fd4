// What a cold start of a real Linux guest costs, function by function, arm by arm.
//
//   npm run bench:guests [-- --functions pyaes,sqlite --rounds 7 --quick --json]
//
// Each function is snapshotted once (bench/linux-guest), recorded once with its first input, and then
// restored: kernel-file, on-demand, reap and working-set, with a cold and a warm page cache, with
// the recorded input and with another one, in turns, `--rounds` times. --quick is two functions and
// two rounds. Prints a table, or with --json one object with every sample. Exits with 1 when an
// answer was wrong, or when more than 1 % of a recorded set was still missing for the same input (in
// the median round; with --quick 3 % in the best one, since a guest's timers go on in a busy host).
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { WorkingSet } from '../dist/index.js'
import { arms, caches, filesOf, record, restore, warmCalls } from './guests/arms.mjs'
import { checks, makeReport, printReport } from './guests/report.mjs'
import { describeMachine, root } from './lib/machine.mjs'
import { PageCache } from './lib/page-cache.mjs'
import { Progress } from './lib/progress.mjs'
import { packReapPages } from './lib/reap-handler.mjs'
import { diskFunctionNames, functionNames, prepareGuests } from './linux-guest/index.mjs'

const known = [...functionNames, ...diskFunctionNames]

function parseOptions() {
  const { values } = parseArgs({
    options: {
      functions: { type: 'string' },
      rounds: { type: 'string' },
      quick: { type: 'boolean', default: false },
      cache: { type: 'string', default: join(root, 'build/linux-guest') },
      json: { type: 'boolean', default: false },
      help: { type: 'boolean', short: 'h', default: false },
    },
  })
  if (values.help) {
    process.stdout.write(
      `usage: npm run bench:guests -- [options]\n\n` +
        `  --functions a,b  of ${functionNames.join(', ')} (all);\n` +
        `                   of those whose root is a disk, ${diskFunctionNames.join(', ')}\n` +
        `  --rounds N       restores of each kind (7; with --quick 2)\n` +
        `  --quick          two functions, few rounds\n` +
        `  --cache DIR      where the guests are kept between runs (build/linux-guest)\n` +
        `  --json           one object with every sample on stdout\n`,
    )
    process.exit(0)
  }
  const rounds = Number(values.rounds ?? (values.quick ? 2 : 7))
  if (!Number.isSafeInteger(rounds) || rounds < 1)
    throw new TypeError('--rounds takes a number from 1')
  const functions =
    values.functions?.split(',') ?? (values.quick ? ['helloworld', 'json_serdes'] : functionNames)
  const unknown = functions.filter((name) => !known.includes(name))
  if (unknown.length > 0) {
    throw new TypeError(`there is no function ${unknown.join(', ')}: ${known.join(', ')}`)
  }
  return { ...values, rounds, functions }
}

/** Records a function once, with its first input, and keeps what each arm needs. */
async function recordGuest(guest, folder, run) {
  const { trace, right } = await record({ ...run, guest, input: guest.inputs[0] })
  if (!right) throw new Error(`${guest.name}: a wrong answer while recording`)
  const set = WorkingSet.fromTraces([trace])
  const file = (kind) => join(folder, `${guest.name}.${kind}`)
  await set.write(file('ws'), { memoryFile: guest.memoryFile, manifest: { label: guest.name } })
  await writeFile(
    file('list'),
    Buffer.from(trace.pages.buffer, trace.pages.byteOffset, trace.pages.byteLength),
  )
  await packReapPages({
    memoryFile: guest.memoryFile,
    pageList: file('list'),
    output: file('reap'),
  })
  return {
    workingSet: file('ws'),
    pageList: file('list'),
    reapPages: file('reap'),
    pages: set.pages,
    extents: set.extents.length,
  }
}

async function measure(guests, { rounds }, { folder, cache, progress, signal }) {
  let sockets = 0
  const run = () => ({ socketPath: join(folder, `${++sockets}.sock`), signal })
  const results = []
  for (const guest of guests) {
    progress.say(`${guest.name}: recording`)
    const recorded = await recordGuest(guest, folder, run())
    const warm = []
    for (const input of guest.inputs) warm.push(await warmCalls({ guest, input, signal }))
    results.push({ guest, record: recorded, warm, samples: [] })
  }
  const cells = results.flatMap((result) =>
    caches.flatMap((state) =>
      result.guest.inputs.map((input, which) => ({ result, state, input, which })),
    ),
  )
  const total = rounds * cells.length * arms.length
  let done = 0
  for (let round = 0; round < rounds; round++) {
    for (const { result, state, input, which } of cells) {
      // Each arm has its turn to be the first after an eviction.
      for (let i = 0; i < arms.length; i++) {
        const arm = arms[(i + round) % arms.length]
        const { guest } = result
        progress.say(`${guest.name}: ${arm}, ${state}, round ${round + 1}`, done++ / total)
        signal.throwIfAborted()
        const scene = { ...run(), guest, record: result.record, input, cache: state }
        await cache.set(state, filesOf(scene))
        const { trace: _, ...sample } = await restore(arm, scene)
        result.samples.push({
          arm,
          cache: state,
          input: which === 0 ? 'same' : 'other',
          round,
          ...sample,
        })
      }
    }
  }
  return results
}

async function main() {
  const options = parseOptions()
  const interrupt = new AbortController()
  for (const name of ['SIGINT', 'SIGTERM']) {
    process.once(name, () => interrupt.abort(new Error(`ended by ${name}`)))
  }
  const { signal } = interrupt
  const progress = new Progress(process.stderr)
  let folder
  let cache
  try {
    const guests = await prepareGuests({
      functions: options.functions,
      cacheFolder: options.cache,
      onProgress: ({ name, step }) => progress.say(`${name}: ${step}`),
      signal,
    })
    // Beside the snapshots, so that all is read from the same disk.
    folder = await mkdtemp(join(options.cache, 'bench-'))
    cache = await PageCache.open()
    const results = await measure(guests, options, { folder, cache, progress, signal })
    progress.end()
    const report = makeReport(results, { ...describeMachine(folder), rounds: options.rounds })
    if (options.json) process.stdout.write(`${JSON.stringify(report)}\n`)
    else printReport(report, process.stdout)
    const failed = checks(report, options)
    for (const text of failed) process.stderr.write(`failed: ${text}\n`)
    return failed.length === 0 ? 0 : 1
  } finally {
    progress.end()
    await cache?.close()
    if (folder) await rm(folder, { recursive: true, force: true })
  }
}

try {
  process.exitCode = await main()
} catch (error) {
  process.stderr.write(`error: ${error.message}\n`)
  if (error.hint) process.stderr.write(`hint: ${error.hint}\n`)
  process.exitCode = error instanceof TypeError ? 2 : 1
}
