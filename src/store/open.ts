import { resolve } from 'node:path'
import { isWorkingSetError, ReapTraceError } from '../errors.js'
import { monotonicMs, report, warning } from '../events.js'
import { ioError, replaceFile, writeWhole } from '../files.js'
import { checkOptions, oneOf, required, rules } from '../options.js'
import { PAGE } from '../page.js'
import type { ResponseTimes } from '../restore/backend.js'
import { planInternalsOf, planStoreRestore } from '../restore/plan.js'
import { restore, restoreRules } from '../restore/restore.js'
import { checkSize } from '../snapshot/disk-image.js'
import { checkSnapshot, type Snapshot, snapshotRule } from '../snapshot/snapshot.js'
import { type ReadOptions, readRules } from '../working-set/trace.js'
import { WorkingSet } from '../working-set/working-set.js'
import { decodeExport } from './decode.js'
import {
  describeSnapshot,
  type SnapshotDescription,
  type SnapshotSummary,
  summaryOf,
} from './describe.js'
import { Entries, type Entry, type Warn } from './entries.js'
import { openFolder, type StoreFolder } from './folder.js'
import type { Learning } from './learning.js'
import { type Attempt, type Learned, type Lesson, observe } from './lesson.js'
import { readExport } from './own-file.js'
import { identify, isSnapshotKey, type SnapshotKey } from './snapshot-key.js'
import type {
  OpenStoreOptions,
  Store,
  StoreEvent,
  StoreRestore,
  StoreRestoreOptions,
} from './store.js'

const storeRules = {
  readOnly: rules.boolean,
  maxBytes: rules.count,
  memoryPrice: {
    expected: 'a number of microseconds of at least 0',
    accepts: (value: unknown) => Number.isFinite(value) && (value as number) >= 0,
  },
  holdOut: rules.boolean,
}

const { onStaleWorkingSet: _, heldOutPages: __, ...served } = restoreRules
const optionRules = {
  ...served,
  snapshot: snapshotRule,
  variant: rules.name,
  record: rules.boolean,
  waitForReady: rules.boolean,
  backend: oneOf('auto', 'uffd', 'page-cache'),
  vcpus: oneOf('kvm', 'threads'),
  pageSize: rules.count,
  calibration: { expected: 'a calibration', accepts: () => true },
}

const DEFAULT_MAX_BYTES = 16 * 2 ** 30
const SIZE_KNOWN_MS = 60_000
/** Probability of a restore by the other backend, and maximum share of the time that this costs. */
const TRIAL_SHARE = 1 / 64
const TRIAL_COST = 0.005

/**
 * Opens the store in a folder, which is created with mode 0700 unless the store is read-only.
 * Several processes may use one store at once.
 *
 * @throws TypeError for invalid options.
 * @throws ReapTraceError
 * - `ERR_STORE_IO`: the folder or a file of it cannot be opened, read or written,
 * - `ERR_STORE_INVALID`: the folder is not a store, or one of another version,
 * - `ERR_UNTRUSTED_FILE`: another user may write to it.
 *
 * @example
 * const store = await openStore('/var/lib/reap-trace')
 * const restored = await store.restore({ snapshot: { memoryFile }, socketPath })
 * await firecracker.put('/snapshot/load', {
 *   snapshot_path, mem_backend: restored.memBackend, resume_vm: true,
 * })
 * await firstRequest()
 * await restored.ready()
 */
export async function openStore(folder: string, options: OpenStoreOptions = {}): Promise<Store> {
  checkOptions('openStore()', { folder }, { folder: required(rules.path) }, 'argument')
  checkOptions('openStore()', options, storeRules)
  return new FolderStore(await openFolder(folder, options.readOnly ?? false), options)
}

class FolderStore implements Store {
  readonly folder: string
  readonly readOnly: boolean
  readonly #folder: StoreFolder
  readonly #options: OpenStoreOptions
  readonly #entries: Entries
  /** One for each lesson that is not saved yet. */
  readonly #active = new Set<{
    readonly learning: Learning
    readonly learned: Promise<Learned | undefined>
  }>()
  /** Size of the store when it was looked at, with what was written since; how long it holds. */
  #size = { bytes: 0, until: 0 }

  constructor(folder: StoreFolder, options: OpenStoreOptions) {
    this.folder = folder.path
    this.readOnly = options.readOnly ?? false
    this.#folder = folder
    this.#options = options
    const { memoryPrice, holdOut } = options
    this.#entries = new Entries(folder, { memoryPrice, holdOut })
  }

  async restore(options: StoreRestoreOptions): Promise<StoreRestore> {
    checkOptions('restore()', options, optionRules)
    const {
      snapshot: given,
      variant: name,
      record,
      waitForReady = false,
      backend,
      vcpus,
      pageSize,
      calibration,
      ...rest
    } = options
    const { parent: named, ...snapshot } = given
    checkSnapshot('restore()', snapshot)
    checkOptions('the snapshot of restore()', { parent: named }, { parent: keyRule }, 'field')
    const warn: Warn = (error) => {
      if (!(error instanceof ReapTraceError)) throw error
      report(options, warning(error))
    }
    // In evidence and file names it is UTF-8, which has no lone surrogates.
    const variant = name === undefined ? undefined : Buffer.from(name).toString()
    const { key, memoryBytes, memory, entry } = await this.#entries.find(snapshot, warn)
    const parent =
      named ?? (await this.#entries.predecessor(entry, snapshot, memoryBytes, warn).catch(warn))
    const set = record
      ? undefined
      : await this.#entries.setFor(entry, variant, memoryBytes, parent, warn).catch(warn)
    const { learning } = entry
    const { responses } = entry.manifest ?? {}
    const isTried = responses !== undefined && Math.random() < trialShare(responses)
    // Read once in a process, to know which pages to hold out. What is damaged is reported when the
    // store learns.
    const loading =
      learning.learner || set === undefined ? undefined : learning.load().catch(() => {})
    const planning = planStoreRestore(
      'restore()',
      {
        snapshot,
        workingSet: set,
        backend: backend ?? 'auto',
        // Without a set, every restore that can be seen teaches one.
        record: record ?? (!this.readOnly && set === undefined && backend !== 'page-cache'),
        vcpus,
        pageSize,
        calibration,
        signal: options.signal,
      },
      { responses, tryOther: isTried },
    )
    const [{ plan, isTrial, warmth }] = await Promise.all([planning, loading])
    const used = plan.refusal ? undefined : planInternalsOf(plan).workingSet
    const usedSet = used instanceof WorkingSet ? used : undefined
    const stored = entry.manifest?.sets.find(({ file }) => entry.folder.setPath(file) === set)
    if (plan.isWorkingSetMissing) entry.badSet = stored
    const onEvent = (event: StoreEvent) => {
      if (event.type === 'warning' && isWorkingSetError(event.error)) entry.badSet = stored
      return options.onEvent?.(event)
    }
    const attempt: Attempt = {
      snapshot: { ...snapshot, memoryFile: resolve(snapshot.memoryFile), parent },
      memoryBytes,
      memory,
      variant,
      plan,
      set: usedSet,
      heldOut:
        (plan.backend === 'uffd' &&
          usedSet &&
          !this.readOnly &&
          learning.learner?.heldOut(variant, Math.random)) ||
        new Uint32Array(),
      isTrial,
      waitsForReady: waitForReady,
      warmth,
      badSet: () => entry.badSet,
    }
    const restored = await restore(plan, {
      ...rest,
      onEvent,
      ...(attempt.heldOut.length > 0 && { heldOutPages: attempt.heldOut }),
    })
    const learn = (lesson: Lesson) =>
      this.readOnly ? Promise.resolve(undefined) : this.#learn(entry, lesson, options)
    const heldOutPageCount = attempt.heldOut.length * ((attempt.set?.pageSize ?? PAGE) / PAGE)
    const extras = { snapshotKey: key, heldOutPageCount, ...observe(restored, attempt, learn) }
    return { ...restored, ...extras } as StoreRestore
  }

  async snapshots(): Promise<SnapshotSummary[]> {
    const keys = await this.#folder.keys()
    const found = await Promise.all(keys.map((key) => summaryOf(this.#folder.snapshot(key))))
    return found
      .flatMap((summary) => summary ?? [])
      .sort((a, b) => b.lastRestoreAt.localeCompare(a.lastRestoreAt))
  }

  async describe(snapshot: Snapshot | SnapshotKey): Promise<SnapshotDescription | undefined> {
    const key = await this.#keyOf('describe()', snapshot)
    const { folder, learning } = this.#entries.get(key)
    return describeSnapshot(folder, await learning.load())
  }

  async forget(snapshot: Snapshot | SnapshotKey): Promise<boolean> {
    if (this.readOnly) throw new TypeError('forget() needs a store that is not read-only')
    const key = await this.#keyOf('forget()', snapshot)
    const { learning, folder } = this.#entries.get(key)
    await learning.settle()
    this.#entries.delete(key)
    const manifest = await folder.readManifest().catch(() => undefined)
    const isKnown = await learning.forget()
    // Its place in the list of paths is not worth a failure.
    if (manifest) await this.#folder.clearLastFrom(manifest.memoryFile, key).catch(() => {})
    return isKnown
  }

  async export(snapshot: Snapshot | SnapshotKey, path: string): Promise<void> {
    checkOptions('export()', { path }, { path: required(rules.path) }, 'argument')
    const key = await this.#keyOf('export()', snapshot)
    const bytes = await this.#folder.snapshot(key).readEvidence()
    if (!bytes) {
      const message = `the store ${this.folder} has no snapshot ${key}`
      throw new ReapTraceError('ERR_STORE_INVALID', message, {
        path: this.folder,
        check: 'unknown-snapshot',
        hint: 'store.snapshots() and "reap-trace store ls" list its snapshots.',
      })
    }
    await replaceFile('exported file', path, (file) => writeWhole(file, bytes, 0))
  }

  async import(path: string, snapshot: Snapshot, options: ReadOptions = {}): Promise<SnapshotKey> {
    checkOptions('import()', { path }, { path: required(rules.path) }, 'argument')
    checkSnapshot('import()', snapshot)
    checkOptions('import()', options, readRules)
    if (this.readOnly) throw new TypeError('import() needs a store that is not read-only')
    const { key, memoryBytes, memory } = await identify(snapshot)
    const bytes = await readExport(path, options.trust === true)
    const { memoryPrice, holdOut } = this.#options
    const learner = decodeExport(path, bytes, { memoryPrice, holdOut })
    checkSize(snapshot.memoryFile, memoryBytes, learner.facts.memoryBytes)
    await this.#entries.get(key).learning.import(learner, { ...snapshot }, memory)
    await this.#folder.setLastFrom(snapshot.memoryFile, key)
    return key
  }

  async settled(): Promise<void> {
    const active = [...this.#active]
    await Promise.all(active.map(({ learning }) => learning.settle()))
    await Promise.all(active.map(({ learned }) => learned))
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.settled()
  }

  async #keyOf(caller: string, snapshot: Snapshot | SnapshotKey): Promise<SnapshotKey> {
    if (typeof snapshot !== 'string') {
      checkSnapshot(caller, snapshot)
      return (await identify(snapshot)).key
    }
    checkOptions(caller, { snapshot }, { snapshot: keyRule }, 'argument')
    return snapshot
  }

  #learn(
    { folder, learning }: Entry,
    lesson: Lesson,
    options: StoreRestoreOptions,
  ): Promise<Learned | undefined> {
    // Whatever goes wrong, the restore is over, and nobody may wait for the promise.
    const warn = (error: unknown) => {
      report(options, warning(failureOf(folder.path, error)))
      return undefined
    }
    const teach = async (): Promise<Learned> => {
      const learned = await learning.add(lesson)
      const { written, drifts, failure } = learned
      const atMs = monotonicMs()
      for (const drift of drifts) report(options, { type: 'drift', atMs, ...drift })
      if (failure) report(options, warning(failure))
      report(options, { type: 'learned', atMs, written })
      if (written.length > 0) {
        const { memoryFile } = lesson.snapshot
        await this.#folder.setLastFrom(memoryFile, folder.key).catch(warn)
        await this.#evict(folder.key, written).catch(warn)
      }
      return learned
    }
    const active = { learning, learned: teach().catch(warn) }
    this.#active.add(active)
    return active.learned.finally(() => this.#active.delete(active))
  }

  /**
   * Removes the snapshots restored least recently until the rest fits. Looks at all of them only
   * where they may not fit, or after a minute, since other processes write too.
   */
  async #evict(kept: SnapshotKey, written: Learned['written']): Promise<void> {
    const { maxBytes = DEFAULT_MAX_BYTES } = this.#options
    const writtenBytes = written.reduce((sum, { pageCount }) => sum + pageCount * PAGE, 0)
    this.#size.bytes += writtenBytes
    if (this.#size.bytes <= maxBytes && performance.now() < this.#size.until) return
    const all = await this.snapshots()
    let bytes = all.reduce((sum, { diskBytes }) => sum + diskBytes, 0)
    for (const { key, diskBytes } of all.reverse()) {
      if (bytes <= maxBytes) break
      if (key !== kept && (await this.forget(key))) bytes -= diskBytes
    }
    this.#size = { bytes, until: performance.now() + SIZE_KNOWN_MS }
  }
}

/** A failure to learn, as an error that a warning can have. */
function failureOf(path: string, error: unknown): ReapTraceError {
  const known = ioError('store file', 'write', path, error)
  if (known instanceof ReapTraceError) return known
  const message = `cannot learn in ${path}: ${String(error)}`
  return new ReapTraceError('ERR_STORE_IO', message, { path, cause: error })
}

/** The slower a backend has been, the more seldom it is tried. */
function trialShare({ uffd, 'page-cache': pageCache }: ResponseTimes): number {
  const ratios = (['warm', 'cold'] as const).map((warmth) => {
    const [a, b] = [uffd[warmth], pageCache[warmth]]
    return a.weight > 0 && b.weight > 0 ? Math.max(a.ms / b.ms, b.ms / a.ms) : 1
  })
  return Math.min(TRIAL_SHARE, TRIAL_COST / (Math.max(...ratios) - 1))
}

const keyRule = {
  expected: 'the key of a snapshot: 16 hexadecimal digits',
  accepts: (value: unknown) => typeof value === 'string' && isSnapshotKey(value),
}
