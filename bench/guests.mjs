// Cost of a cold start of a real Linux guest, by function and arm.
//
//   npm run bench:guests [-- --functions pyaes,sqlite --arms auto,reap --caches warm --rounds 7 --quick --json]
//
// Each function is snapshotted once (native/guest/linux), recorded once with its first input, and then
// restored in each way (bench/guests/arms.mjs), with a cold, a half-warm and a warm page cache, with the
// recorded input and with another one, in turns, `--rounds` times. --quick measures two functions, cold and
// warm, and two rounds. Prints a table, or with --json one object with every sample. Exits with 1 when
// an answer was wrong, or when more than 1 % of a recorded set was still missing for the same input (in
// the median round; with --quick 3 % in the best one, since a guest's timers keep running on a busy host).
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { WorkingSet } from '../dist/index.js'
import { PageCache } from '../native/guest/driver/page-cache.mjs'
import { diskFunctionNames, functionNames, prepareGuests } from '../native/guest/linux/index.mjs'
import { randomNumbers, shuffle } from '../src/cli/measure/random.mjs'
import { arms, caches, filesOf, record, restore, warmCalls } from './guests/arms.mjs'
import { checks, makeReport, printReport } from './guests/report.mjs'
import { calibrated } from './lib/calibration.mjs'
import { abortOnInterrupt } from './lib/interrupt.mjs'
import { describeMachine, root } from './lib/machine.mjs'
import { Progress } from './lib/progress.mjs'
import { packReapPages } from './lib/reap-handler.mjs'

const known = [...functionNames, ...diskFunctionNames]
const quickFunctions = ['helloworld', 'json_serdes']

function parseOptions() {
  const { values } = parseArgs({
    options: {
      functions: { type: 'string' },
      arms: { type: 'string' },
      caches: { type: 'string' },
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
        `  --functions a,b  of ${functionNames.join(', ')},\n` +
        `                   and of those with their root on a disk, ${diskFunctionNames.join(', ')} (all)\n` +
        `  --arms a,b       of ${arms.join(', ')} (all)\n` +
        `  --caches a,b     of ${caches.join(', ')} (all; with --quick cold and warm)\n` +
        `  --rounds N       restores of each kind (7; with --quick 2)\n` +
        `  --quick          two functions, cold and warm, few rounds\n` +
        `  --cache DIR      where the guests are kept between runs (build/linux-guest)\n` +
        `  --json           one object with every sample on stdout\n`,
    )
    process.exit(0)
  }
  const rounds = Number(values.rounds ?? (values.quick ? 2 : 7))
  if (!Number.isSafeInteger(rounds) || rounds < 1)
    throw new TypeError('--rounds takes a number from 1')
  const { quick } = values
  return {
    ...values,
    rounds,
    functions: listOf('function', values.functions, known, quick ? quickFunctions : known),
    arms: listOf('arm', values.arms, arms),
    caches: listOf('page cache', values.caches, caches, quick ? ['cold', 'warm'] : caches),
  }
}

/** The names of an option's value that are in `known`, in its order. */
function listOf(what, option, known, all = known) {
  const named = option?.split(',')
  const unknown = named?.filter((name) => !known.includes(name)) ?? []
  if (unknown.length > 0) {
    throw new TypeError(`there is no ${what} ${unknown.join(', ')}: ${known.join(', ')}`)
  }
  return named ? known.filter((name) => named.includes(name)) : all
}

/** Records a function with its first input, and keeps what each arm needs. */
async function recordGuest(guest, run) {
  const { trace, disks, right } = await record({ ...run, guest, input: guest.inputs[0] })
  if (!right) throw new Error(`${guest.name}: a wrong answer while recording`)
  const set = WorkingSet.fromTraces([trace], { disks: disks.map((disk) => [disk]) })
  const file = (kind) => join(run.folder, `${guest.name}.${kind}`)
  const { memoryFile, diskImages } = guest
  await set.write(file('ws'), { snapshot: { memoryFile, diskImages }, label: guest.name })
  await writeFile(
    file('list'),
    Buffer.from(trace.pages.buffer, trace.pages.byteOffset, trace.pages.byteLength),
  )
  await packReapPages({
    memoryFile,
    pageList: file('list'),
    output: file('reap'),
  })
  return {
    workingSet: file('ws'),
    pageList: file('list'),
    reapPages: file('reap'),
    pages: set.pageCount,
    extents: set.extents.length,
    diskPages: disks.reduce((sum, disk) => sum + disk.pages.length, 0),
  }
}

async function recordGuests(guests, { run, progress, signal }) {
  const results = []
  for (const guest of guests) {
    progress.say(`${guest.name}: recording`)
    const recorded = await recordGuest(guest, run())
    const warm = []
    for (const input of guest.inputs) warm.push(await warmCalls({ guest, input, signal }))
    results.push({ guest, record: recorded, warm, samples: [] })
  }
  return results
}

async function measure(results, { rounds, arms, caches }, { run, cache, progress, signal }) {
  const cells = results.flatMap((result) =>
    caches.flatMap((state) =>
      result.guest.inputs.map((input, which) => ({ result, state, input, which })),
    ),
  )
  const total = rounds * cells.length * arms.length
  let done = 0
  for (let round = 0; round < rounds; round++) {
    for (const { result, state, input, which } of cells) {
      const { guest } = result
      // Drawn for each cell of a round, so that no arm always follows the same one.
      const order = [...arms]
      shuffle(order, randomNumbers(done))
      for (const arm of order) {
        progress.say(`${guest.name}: ${arm}, ${state}, round ${round + 1}`, done++ / total)
        signal.throwIfAborted()
        const scene = { ...run(), guest, record: result.record, input, cache: state }
        // All arms of a round find the same half.
        await cache.set(state, filesOf(scene), round + 1)
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
}

async function main() {
  const options = parseOptions()
  const signal = abortOnInterrupt()
  const progress = new Progress(process.stderr)
  // For these restores only; read when the first of them is prepared.
  process.env.REAP_TRACE_CALIBRATION = join(options.cache, 'calibration.json')
  let folder
  let cache
  try {
    const guests = await prepareGuests({
      functions: options.functions,
      cacheFolder: options.cache,
      onProgress: ({ name, step }) => progress.say(`${name}: ${step}`),
      signal,
    })
    // Beside the snapshots, so that everything is read from the same disk.
    folder = await mkdtemp(join(options.cache, 'bench-'))
    let sockets = 0
    const run = () => ({ folder, socketPath: join(folder, `${++sockets}.sock`), signal })
    cache = await PageCache.open()
    const results = await recordGuests(guests, { run, progress, signal })
    const calibration = options.arms.includes('auto')
      ? await calibrated({ folder, progress, signal })
      : undefined
    await measure(results, options, { run, cache, progress, signal })
    progress.end()
    const machine = { ...describeMachine(folder), rounds: options.rounds, calibration }
    const report = makeReport(results, machine, options)
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
