import { constants } from 'node:os'
import { setTimeout as sleep } from 'node:timers/promises'
import { type Lock, tryLock } from '../binding/lock.js'
import { ReapTraceError } from '../errors.js'
import { writeWorkingSetFile } from '../working-set/file/write.js'
import { WorkingSet } from '../working-set/working-set.js'
import { decodeEvidence } from './decode.js'
import { isDamage } from './invalid.js'
import { Learner, type LearnerFacts, type LearnerOptions } from './learner/learner.js'
import type { Learned, Lesson, WrittenSet } from './lesson.js'
import type { SnapshotManifest } from './manifest.js'
import { manifestAfter, newManifest, withSet } from './manifest-after.js'
import type { SnapshotFolder } from './snapshot-folder.js'
import { type SnapshotKey, type StoreSnapshot, setFileName } from './snapshot-key.js'

/** What sets are written from. */
type Source = Pick<Lesson, 'snapshot' | 'memory'>

interface Pending {
  readonly lesson: Lesson
  resolve(learned: Learned): void
  reject(error: unknown): void
}

/** Maximum number of lines in a history. */
const MAX_HISTORY = 1000
/** Maximum share of the time that learning takes, except for a burst of as much as this. */
const MAX_SHARE = 0.01
const BURST_MS = 1000
/** Maximum time that a lesson waits for others, to be learned with them. */
const MAX_PAUSE_MS = 5000
const LOCK_RETRY_MS = 50
/** Share of a write's time that counts as its cost, since it is done in the background. */
const WRITE_WEIGHT = 0.25

/** Write of a set, after those that this process has begun: they take memory and the disk. */
let lastWrite: Promise<unknown> = Promise.resolve()
function oneAtATime<T>(write: () => Promise<T>): Promise<T> {
  const written = lastWrite.then(write)
  lastWrite = written.catch(() => {})
  return written
}

/** Learns from the restores of one snapshot, in the background and in batches. */
export class Learning {
  readonly #folder: SnapshotFolder
  readonly #loadParent: (key: SnapshotKey) => Promise<Learner | undefined>
  readonly #options: LearnerOptions
  #pending: Pending[] = []
  #isRunning = false
  /** The end of the latest lesson. */
  #last: Promise<unknown> = Promise.resolve()
  #resumeAt = 0
  /** Time that learning may still take, as of a moment. */
  #budget = { ms: BURST_MS, at: performance.now() }
  #hurry: AbortController = new AbortController()
  /** Evidence as of the last batch of this process, and the bytes that it was saved as. */
  #known: { readonly learner: Learner; readonly stamp: string } | undefined
  /** Time to write a page of a set, in microseconds, and of a set without pages. */
  #writeUs = { page: 5, set: 10_000 }

  constructor(
    folder: SnapshotFolder,
    loadParent: (key: SnapshotKey) => Promise<Learner | undefined>,
    options: LearnerOptions,
  ) {
    this.#folder = folder
    this.#loadParent = loadParent
    this.#options = options
  }

  /** Evidence that this process has seen last. */
  get learner(): Learner | undefined {
    return this.#known?.learner
  }

  /** Reads the evidence, so that {@link learner} is known. */
  async load(): Promise<Learner | undefined> {
    const stamp = await this.#folder.evidenceStamp()
    if (stamp === undefined) return undefined
    if (this.#known?.stamp === stamp) return this.#known.learner
    const bytes = await this.#folder.readEvidence()
    if (!bytes) return undefined
    const learner = decodeEvidence(this.#folder.evidencePath, bytes, this.#options)
    this.#known = { learner, stamp }
    return learner
  }

  /**
   * Adds a lesson. Settles once it is saved.
   *
   * @throws ReapTraceError `ERR_STORE_IO`, `ERR_STORE_INVALID`, `ERR_UNTRUSTED_FILE`.
   */
  add(lesson: Lesson): Promise<Learned> {
    const learned = new Promise<Learned>((resolve, reject) => {
      this.#pending.push({ lesson, resolve, reject })
    })
    this.#last = learned.catch(() => {})
    if (!this.#isRunning) void this.#run()
    return learned
  }

  /** Waits until every lesson so far is saved, without the pauses. */
  async settle(): Promise<void> {
    this.#hurry.abort()
    await this.#last
    this.#hurry = new AbortController()
  }

  /** Removes the snapshot with its evidence. Returns whether there was one. */
  async forget(): Promise<boolean> {
    if ((await this.#folder.manifestStamp()) === undefined) return false
    const lock = await this.#lock()
    try {
      this.#known = undefined
      await this.#folder.remove()
      return true
    } finally {
      lock.release()
    }
  }

  async #run(): Promise<void> {
    this.#isRunning = true
    while (this.#pending.length > 0) {
      const pause = this.#resumeAt - performance.now()
      if (pause > 0) await sleep(pause, undefined, this.#hurry).catch(() => {})
      const batch = this.#pending.splice(0)
      try {
        const learned = await this.#learn(batch.map(({ lesson }) => lesson))
        const last = batch.at(-1)
        // What concerns the snapshot is reported once.
        const ofOthers = { ...learned, drifts: [], failure: undefined }
        for (const each of batch) each.resolve(each === last ? learned : ofOthers)
      } catch (error) {
        for (const { reject } of batch) reject(error)
      }
    }
    // Not in a later microtask: a lesson may come as soon as another is saved.
    this.#isRunning = false
  }

  async #learn(given: readonly Lesson[]): Promise<Learned> {
    const last = given.at(-1)!
    // An id may have come to another memory, which has nothing in common with the one before.
    const isOfLast = isOf(last)
    const lessons = given.filter(isOfLast)
    const folder = this.#folder
    const lock = await this.#lock()
    const startedAt = performance.now()
    try {
      // A damaged file is replaced: its sets go on being used, and evidence is gathered anew.
      let failure: ReapTraceError | undefined
      const unlessDamaged = (error: unknown) => {
        if (!isDamage(error)) throw error
        failure = error
        return undefined
      }
      const manifest = await folder.readManifest().catch(unlessDamaged)
      const known = manifest && isOfLast(manifest) ? manifest : undefined
      const loaded = await this.load().catch(unlessDamaged)
      const learner = loaded && isOfLast(loaded.facts) ? loaded : await this.#begin(last)
      const drifts = learner.observe(lessons.flatMap(({ observation }) => observation ?? []))
      const saved = await this.#save(learner, manifestAfter(lessons, known), last)
      await folder.addHistory(
        lessons.map(({ line }) => JSON.stringify(line)),
        MAX_HISTORY,
      )
      this.#spend(performance.now() - startedAt)
      return { ...saved, drifts, failure: failure ?? saved.failure }
    } catch (error) {
      // What was observed and not saved must not count twice.
      this.#known = undefined
      throw error
    } finally {
      lock.release()
    }
  }

  /** Starts with the evidence of another host. */
  async import(learner: Learner, snapshot: StoreSnapshot, memory: string): Promise<void> {
    const folder = this.#folder
    const lock = await this.#lock()
    try {
      if (await folder.readManifest()) {
        const message = `the store already has the snapshot ${folder.key} of ${snapshot.memoryFile}`
        throw new ReapTraceError('ERR_STORE_INVALID', message, {
          path: folder.path,
          check: 'known-snapshot',
          hint: 'Forget it first: evidence of two hosts is not merged.',
        })
      }
      const at = new Date().toISOString()
      const { memoryBytes, pageSize } = learner.facts
      const manifest = newManifest({ snapshot, memoryBytes, pageSize, at })
      const { failure } = await this.#save(learner, manifest, { snapshot, memory })
      if (failure) {
        // Without it, another attempt would find the snapshot known.
        await folder.remove()
        throw failure
      }
    } finally {
      lock.release()
    }
  }

  /** Writes the sets that are due, the evidence and the manifest. */
  async #save(
    learner: Learner,
    before: SnapshotManifest,
    source: Source,
  ): Promise<Pick<Learned, 'written' | 'failure'>> {
    const folder = this.#folder
    let manifest = before
    forgetLost(learner, manifest)
    const due = learner.dueSets((pages) => this.#writeCostUs(pages))
    const written: WrittenSet[] = []
    let failure: ReapTraceError | undefined
    for (const { variant, pages, timesUs } of due) {
      const { pageSize, memoryBytes } = learner.facts
      const set = WorkingSet.fromTraces([{ pageSize, memoryBytes, pages, timesUs }])
      try {
        manifest = withSet(manifest, await oneAtATime(() => this.#writeSet(set, variant, source)))
      } catch (error) {
        // No space, or a memory file that is gone: the evidence is kept.
        if (!(error instanceof ReapTraceError)) throw error
        failure = error
        break
      }
      learner.written(variant, pages)
      const replaced = before.sets.find((each) => each.variant === (variant ?? null))
      written.push({
        variant,
        pageCount: set.pageCount,
        previousPageCount: replaced?.pageCount,
      })
    }
    const isKnown = new Set<string | null>([null, ...learner.variants])
    manifest = {
      ...manifest,
      sets: manifest.sets.filter(({ variant }) => isKnown.has(variant)),
    }
    await folder.writeEvidence(learner.encode())
    await folder.writeManifest(manifest)
    await folder.sweep(manifest)
    this.#known = { learner, stamp: (await folder.evidenceStamp()) ?? '' }
    return { written, failure }
  }

  #spend(ms: number): void {
    const now = performance.now()
    const earned = MAX_SHARE * (now - this.#budget.at)
    const left = Math.min(BURST_MS, this.#budget.ms + earned) - ms
    this.#budget = { ms: left, at: now }
    this.#resumeAt = now + Math.min(MAX_PAUSE_MS, Math.max(0, -left / MAX_SHARE))
  }

  async #lock(): Promise<Lock> {
    for (;;) {
      // Again each time: a process that forgets the snapshot removes its folder.
      const lock = await this.#folder
        .create()
        .then(() => tryLock(this.#folder.lockPath))
        .catch((error) => {
          if (error.errno !== -constants.errno.ENOENT) throw error
          return undefined
        })
      if (lock) return lock
      await sleep(LOCK_RETRY_MS * (0.5 + Math.random()))
    }
  }

  async #begin(lesson: Lesson): Promise<Learner> {
    const { snapshot, pageSize, memoryBytes } = lesson
    const { parent: key } = snapshot
    const isOwn = key === undefined || key === this.#folder.key
    const parent = isOwn ? undefined : await this.#loadParent(key).catch(() => undefined)
    return parent && isOf(lesson)(parent.facts)
      ? Learner.ofParent(parent, this.#options)
      : Learner.fresh({ pageSize, memoryBytes }, this.#options)
  }

  #writeCostUs(pageCount: number): number {
    return WRITE_WEIGHT * (this.#writeUs.set + this.#writeUs.page * pageCount)
  }

  async #writeSet(set: WorkingSet, variant: string | undefined, { snapshot, memory }: Source) {
    const file = setFileName(variant)
    const startedAt = performance.now()
    await writeWorkingSetFile(await this.#folder.newSetPath(file), {
      order: set.order,
      runs: set.runCount,
      snapshot,
      memory,
      disks: [],
      diskTouches: new Uint32Array(),
      replaces: undefined,
      label: variant,
      signal: undefined,
      onProgress: undefined,
    })
    const us = (performance.now() - startedAt) * 1000
    this.#writeUs.page = Math.max(1, us - this.#writeUs.set) / Math.max(1, set.pageCount)
    const { pageCount } = set
    return { variant: variant ?? null, file, pageCount, writtenAt: new Date().toISOString() }
  }
}

/** Whether something is of a memory of the same size and pages. */
const isOf =
  (memory: LearnerFacts) =>
  ({ memoryBytes, pageSize }: LearnerFacts): boolean =>
    memoryBytes === memory.memoryBytes && pageSize === memory.pageSize

/** Makes sets due again that are gone. */
function forgetLost(learner: Learner, { sets }: SnapshotManifest): void {
  const { setPages, variants } = learner.describe()
  for (const { name, setPages: pageCount } of [{ name: undefined, setPages }, ...variants]) {
    const isThere = sets.some(({ variant }) => variant === (name ?? null))
    if (pageCount > 0 && !isThere) learner.written(name, new Uint32Array())
  }
}
