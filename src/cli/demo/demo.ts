import { mkdir, rm, statfs, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { requireUserfaultfd, type Trace, WorkingSet } from '../../index.js'
import type { DemoArguments } from '../arguments/arguments.js'
import { type Cache, canEvict } from '../measure/page-cache.js'
import { abortOnSignal, Signals } from '../session/signals.js'
import { temporaryFolder } from '../session/temporary-folder.js'
import { CliError, Interrupted } from '../terminal/failure.js'
import type { Terminal } from '../terminal/terminal.js'
import { type Arm, arms, embeddedSubject, type Sample, type Scene, withGuest } from './arms.js'
import { firecrackerSubject } from './firecracker.js'
import { type DemoReport, makeReport, printReport } from './report.js'

const TMPFS = 0x01021994

export async function demo(args: DemoArguments, terminal: Terminal): Promise<void> {
  requireUserfaultfd()
  const signals = new Signals()
  const signal = abortOnSignal(signals)
  // Not in the folder of --keep: the paths of sockets must be short.
  const scratch = await temporaryFolder('reap-trace-demo-', await scratchParent())
  let step = 'building a snapshot'
  const live = terminal.live(() => step)
  try {
    const report = await runDemo({ ...args, scratch, signal, terminal }, (text) => {
      step = text
    })
    live.stop()
    terminal.emit(report)
    if (!terminal.json) printReport(report, terminal)
    if (args.keep !== undefined) {
      terminal.print(`kept: reap-trace inspect ${join(args.keep, 'guest.ws')}`)
    }
    if (report.identical) return
    throw new CliError(
      'ERR_NOT_IDENTICAL',
      'the restores differ in their responses or pages',
      'This is a bug in reap-trace or a fault of the machine: please report it with the output of `reap-trace doctor`.',
    )
  } catch (error) {
    if (signal.aborted) {
      const left = args.keep === undefined ? 'nothing is left behind' : `look into ${args.keep}`
      throw new Interrupted(signal.reason, left)
    }
    throw error
  } finally {
    live.stop()
    await rm(scratch, { recursive: true, force: true })
    signals.dispose()
  }
}

interface DemoContext extends DemoArguments {
  readonly scratch: string
  readonly signal: AbortSignal
  readonly terminal: Terminal
}

async function runDemo(context: DemoContext, onStep: (text: string) => void): Promise<DemoReport> {
  const { memoryBytes, rounds, scratch, signal, terminal } = context
  const folder = context.keep === undefined ? scratch : resolve(context.keep)
  // Not `recursive`, which does not return below /proc, where mkdir gives ENOENT.
  await mkdir(folder).catch((error: NodeJS.ErrnoException) => {
    if (error.code !== 'EEXIST') throw error
  })
  let sockets = 0
  const scene: Scene = {
    memoryFile: join(folder, 'guest.mem'),
    memoryBytes,
    workingSet: join(folder, 'guest.ws'),
    pageList: join(scratch, 'pages'),
    socketPath: () => join(scratch, `${sockets++}.sock`),
    signal,
  }
  const subject =
    context.firecracker === undefined ? embeddedSubject : firecrackerSubject(context.firecracker)
  const [input, otherInput] = subject.inputs
  const { description, vmm } = await subject.build(scene)
  terminal.print(`${description}; its snapshot is in ${folder}`)

  onStep('recording a request')
  const { trace, response } = await subject.record(scene, input)
  const set = WorkingSet.fromTraces([trace])
  await set.write(scene.workingSet, {
    snapshot: { memoryFile: scene.memoryFile },
    label: `reap-trace demo, request "${input}"`,
    signal,
  })
  await writeFile(scene.pageList, pageWords(trace))

  const cold = await withGuest(signal, (guest) => canEvict(guest, scene.memoryFile))
  const samples = emptySamples()
  const total = rounds * arms.length * (cold ? 2 : 1)
  let done = 0
  // Warm first: memory freed by an eviction is slow to allocate again for a while.
  for (const cache of cold ? (['warm', 'cold'] as const) : (['warm'] as const)) {
    for (let round = 0; round < rounds; round++) {
      for (const arm of rotate(arms, round)) {
        onStep(`restore ${++done} of ${total}: ${arm}, ${cache} page cache`)
        samples[arm][cache].push(await subject.sample(scene, arm, cache, input))
      }
    }
  }
  onStep('another request')
  const other = [
    await subject.sample(scene, 'working-set', 'warm', otherInput),
    await subject.sample(scene, 'on-demand', 'warm', otherInput),
  ] as const
  const workingSet = { pages: set.pageCount, extents: set.extents.length, bytes: set.bytes }
  return makeReport({
    vmm,
    memoryBytes,
    workingSet,
    samples,
    other,
    recorded: response,
    rounds,
    folder,
  })
}

function emptySamples(): Record<Arm, Record<Cache, Sample[]>> {
  return {
    'kernel-file': { cold: [], warm: [] },
    'on-demand': { cold: [], warm: [] },
    'working-set': { cold: [], warm: [] },
  }
}

/** Rotates the order of the arms, so that each runs at every position. */
const rotate = <T>(list: readonly T[], by: number): T[] => {
  const at = by % list.length
  return [...list.slice(at), ...list.slice(0, at)]
}

/** Little-endian 32-bit words, as the guest reads them. */
function pageWords(trace: Trace): Buffer {
  const words = Buffer.alloc(4 * trace.pages.length)
  trace.pages.forEach((page, i) => {
    words.writeUInt32LE(page, 4 * i)
  })
  return words
}

/** Temporary folder, on a disk if possible: files on tmpfs are never cold. */
async function scratchParent(): Promise<string> {
  const isInMemory = (path: string) =>
    statfs(path).then(
      ({ type }) => type === TMPFS,
      () => true,
    )
  const folder = tmpdir()
  const other = '/var/tmp'
  if (process.env.TMPDIR !== undefined || !(await isInMemory(folder))) return folder
  return (await isInMemory(other)) ? folder : other
}
