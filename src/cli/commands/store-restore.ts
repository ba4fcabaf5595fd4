import {
  judgeRestore,
  openStore,
  type Store,
  type StoreEvent,
  type StoreRestore,
  type Verdict,
  WorkingSet,
} from '../../index.js'
import type { StoreRestoreArguments } from '../arguments/arguments.js'
import { progress, ServedSession } from '../session/served-session.js'
import { reportDrift, reportLearned } from '../session/store-events.js'
import { monotonicMs } from '../terminal/clock.js'
import { CliError } from '../terminal/failure.js'
import type { Terminal } from '../terminal/terminal.js'
import { formatPlural } from '../terminal/units.js'
import { checkOutput } from './check-output.js'
import { checkRecording } from './check-recording.js'
import { restoreFromPageCache, warnOfPrefetch } from './page-cache.js'
import { untilRecorded } from './record.js'
import { serveRestored } from './restore.js'
import { describeSize } from './write-set.js'

/** `restore --store` and `record --store`. */
export async function restoreFromStore(
  args: StoreRestoreArguments,
  terminal: Terminal,
): Promise<void> {
  const started = monotonicMs()
  if (args.trace !== undefined) {
    await checkOutput(args.trace, args, { option: '--trace', code: 'ERR_RECORD_IO' })
  }
  const store = await openStore(args.store)
  let lesson: Lesson | undefined
  if (args.backend !== 'page-cache') {
    await ServedSession.run(
      args,
      async ({ onEvent, ...options }) => {
        lesson = await Lesson.begin(store, args, options, onEvent, terminal)
        const { handler } = lesson.restored
        return handler && { handler, ready: lesson.ready, learned: lesson.learned }
      },
      terminal,
      (session) => {
        const { restored, ready } = lesson!
        if (args.record) return serveRecorded(session, ready, args, terminal)
        const judge = judgeIn(store, lesson!)
        return serveRestored(session, restored.plan, { ...args, started, judge }, terminal)
      },
    )
  }
  lesson ??= await Lesson.begin(store, args, {}, warnOfPrefetch(terminal), terminal)
  const { restored, ready, learned } = lesson
  if (restored.backend === 'page-cache') {
    await restoreFromPageCache({ ...restored, ready, learned }, args, started, terminal)
  }
  if (args.record && !(await learned())) {
    throw new CliError('ERR_NOTHING_RECORDED', `${args.store} has not learned from this run`)
  }
}

/** A restore from a store, and whether it is marked. */
class Lesson {
  readonly restored: StoreRestore
  /** ISO 8601, UTC. */
  readonly startedAt = new Date().toISOString()
  #isMarked = false

  static async begin(
    store: Store,
    { memory: memoryFile, snapshotId: id, parent, record, ...args }: StoreRestoreArguments,
    options: Omit<Parameters<Store['restore']>[0], 'snapshot' | 'onEvent'>,
    onEvent: (event: Exclude<StoreEvent, { type: 'learned' | 'drift' }>) => void,
    terminal: Terminal,
  ): Promise<Lesson> {
    const { variant, backend, vcpus, trace } = args
    const restored = await store.restore({
      ...{ ...options, variant, backend, vcpus },
      snapshot: { memoryFile, id, parent },
      ...(record && { record }),
      timeline: trace !== undefined,
      // A run that fails teaches nothing.
      waitForReady: true,
      onEvent: (event) => {
        if (event.type === 'learned') reportLearned(event, terminal)
        else if (event.type === 'drift') reportDrift(event, terminal)
        else onEvent(event)
      },
    })
    const { reason, plan, snapshotKey, heldOutPageCount } = restored
    const { backend: chosen } = plan
    terminal.emit({ type: 'planned', backend: chosen, reason, snapshotKey, heldOutPageCount })
    if (backend === 'auto') terminal.print(`planned: ${chosen} (${reason})`)
    if (heldOutPageCount > 0) {
      terminal.print(
        `held out: ${formatPlural(heldOutPageCount, 'page')} of the set, to see whether they are still needed`,
      )
    }
    if (!record && plan.workingSet === undefined) {
      const none = `the store has no set of this snapshot (${snapshotKey}) yet`
      const never = '; only a restore by a fault handler (--backend uffd) makes one'
      terminal.print(chosen === 'uffd' ? none : none + never)
    }
    return new Lesson(restored)
  }

  private constructor(restored: StoreRestore) {
    this.restored = restored
  }

  readonly ready = (atMs: number): void => {
    this.#isMarked = true
    void this.restored.ready(atMs)
  }

  readonly learned = (): Promise<unknown> | undefined =>
    this.#isMarked ? this.restored.learned : undefined
}

/** Serves a VM until it is recorded, and then until its end. */
async function serveRecorded(
  session: ServedSession,
  ready: (atMs: number) => void,
  args: StoreRestoreArguments,
  terminal: Terminal,
): Promise<undefined> {
  const consequence = `${args.store} learns nothing`
  await untilRecorded(session, args, terminal, consequence)
  const trace = session.handler.stopRecording()
  checkRecording(trace, consequence)
  ready(session.command?.endedMs ?? monotonicMs())
  const set = WorkingSet.fromTraces([trace])
  const { pageCount, bytes, extents } = set
  terminal.emit({ type: 'recorded', pageCount, extentCount: extents.length, bytes })
  terminal.print(`recorded ${describeSize(set)}`)
  const live = terminal.live(
    () => `serving · ${progress(session.handler.stats())} · Ctrl-C detaches the VM`,
  )
  try {
    await session.serveOn()
  } finally {
    live.stop()
  }
}

/** What the store does about a set that is missing, too large or does not fit. */
const remedies: Partial<Record<Verdict['kind'], string>> = {
  'set-missing': 'The store has recorded them: the next restore prefetches what it learned.',
  'set-does-not-fit':
    'The store adds such pages while they are touched; --variant keeps the sets of requests apart.',
  'set-too-large': 'The store drops pages that are not needed, over some restores.',
}

/** Judges by the earlier restores of the store, with its remedies. */
const judgeIn =
  (store: Store, { restored, startedAt }: Lesson) =>
  async (record: Parameters<typeof judgeRestore>[0]): Promise<Verdict | undefined> => {
    const known = await store.describe(restored.snapshotKey).catch(() => undefined)
    const earlier = known?.history.filter(({ at }) => at < startedAt)
    const verdict = judgeRestore(record, earlier)
    return verdict && { ...verdict, remedy: remedies[verdict.kind] ?? verdict.remedy }
  }
