import type { PlanRestoreOptions } from '../restore/plan.js'
import type { PageCacheRestore, RestoreOptions, UffdRestore } from '../restore/restore.js'
import type { Snapshot } from '../snapshot/snapshot.js'
import type { ServeEvent } from '../uffd/fault-handler.js'
import type { ReadOptions } from '../working-set/trace.js'
import type { SnapshotDescription, SnapshotSummary } from './describe.js'
import type { Drift } from './learner/learner.js'
import type { Learned } from './lesson.js'
import type { SnapshotKey, StoreSnapshot } from './snapshot-key.js'

/** Options of {@link openStore}. */
export interface OpenStoreOptions {
  /**
   * Whether to leave the store as it is: restores prefetch, and teach nothing.
   * @default false
   */
  readonly readOnly?: boolean | undefined
  /**
   * Maximum size of the store in bytes. Once a set is written, the snapshots restored least recently
   * are dropped until the rest fits; the one just restored stays.
   * @default 17_179_869_184 (16 GiB)
   */
  readonly maxBytes?: number | undefined
  /**
   * Price of a page of memory in microseconds of stalled time, added to the cost of each install: a
   * page stays in a set only while what it saves exceeds both. Higher prices make smaller sets with
   * more faults; docs/store.md has the curve.
   * @default 0
   */
  readonly memoryPrice?: number | undefined
  /**
   * Whether restores leave out a few pages of their set, to see whether the guest still needs them.
   * Without them a set grows and hardly shrinks, and its waste is unknown.
   * @default true
   */
  readonly holdOut?: boolean | undefined
}

/** Event of a restore from a store. */
export type StoreEvent =
  | ServeEvent
  | {
      /** The restore's evidence is saved. */
      readonly type: 'learned'
      readonly atMs: number
      /** Sets that were written. */
      readonly written: Learned['written']
    }
  | ({ readonly type: 'drift'; readonly atMs: number } & Drift)

/** Options of {@link Store.restore}: those of `restore()` and of `planRestore()`. */
export interface StoreRestoreOptions
  extends Omit<RestoreOptions, 'onEvent' | 'onStaleWorkingSet' | 'heldOutPages'>,
    Pick<PlanRestoreOptions, 'backend' | 'vcpus' | 'pageSize' | 'calibration'> {
  /** Snapshot to restore. */
  readonly snapshot: StoreSnapshot
  /**
   * Class of the request, such as a route: its evidence has a separate set once it differs enough
   * from the others. At most 16 are kept, and an unknown one gets the common set. As UTF-8, so a
   * lone surrogate is the character U+FFFD.
   * @default none
   */
  readonly variant?: string | undefined
  /**
   * Whether to restore on demand although there is a set, so that every touch is seen.
   * @default false
   */
  readonly record?: boolean | undefined
  /**
   * Whether only `ready()` makes the store learn. Otherwise the end of the VM counts as its mark,
   * also after a request that failed.
   * @default false
   */
  readonly waitForReady?: boolean | undefined
  /** Called for each event of the restore, also after its end for what the store learned. */
  readonly onEvent?: ((event: StoreEvent) => void) | undefined
}

/** What the store adds to a restore. */
export interface StoreRestoreExtras {
  /** Key of the snapshot in the store, for `parent` and {@link Store.describe}. */
  readonly snapshotKey: SnapshotKey
  /**
   * Number of 4 KiB pages of the set that this restore leaves out, to see whether the guest still
   * needs them. A fault on one of them is counted as residual.
   */
  readonly heldOutPageCount: number
  /**
   * Marks the time at which the application has answered its first request. Pages touched later do
   * not count. Without this mark, the end of the VM counts, unless `waitForReady` is set.
   *
   * @param atMs time of the mark in milliseconds of CLOCK_MONOTONIC; now by default.
   * @throws TypeError for a time before the restore, or one that is to come.
   */
  ready(atMs?: number): Promise<void>
  /**
   * Settles once the restore's evidence is saved, soon after `ready()`; `undefined` if nothing was
   * learned: the store is read-only, no VM was restored, `close()` came before a mark that was waited
   * for, or a `warning` says why. Never rejects.
   */
  readonly learned: Promise<Learned | undefined>
}

/** A restore from a store. */
export type StoreRestore = (UffdRestore | PageCacheRestore) & StoreRestoreExtras

/** Working sets that learn from every restore, in a folder. */
export interface Store extends AsyncDisposable {
  /** Absolute path of the folder. */
  readonly folder: string
  /** Whether restores leave the store as it is. */
  readonly readOnly: boolean
  /**
   * Restores a snapshot: records if nothing is known of it, prefetches otherwise, and learns from
   * what the guest touches until `ready()`. When it resolves, load the snapshot with `memBackend`.
   *
   * @throws as `planRestore()` and `restore()`. A store that cannot be read is no error of a
   * restore: it is a `warning`, and the restore records nothing.
   */
  restore(options: StoreRestoreOptions): Promise<StoreRestore>
  /** Snapshots, the most recently restored first, without those whose manifest is damaged. */
  snapshots(): Promise<SnapshotSummary[]>
  /**
   * Describes what is known of a snapshot; `undefined` if the store does not have it.
   *
   * @param snapshot the snapshot, or its key.
   */
  describe(snapshot: Snapshot | SnapshotKey): Promise<SnapshotDescription | undefined>
  /** Removes a snapshot with all its sets. Returns whether the store had it. */
  forget(snapshot: Snapshot | SnapshotKey): Promise<boolean>
  /**
   * Writes the evidence of a snapshot to a file, for another host: pages, their order and variants,
   * and no guest memory.
   *
   * @throws ReapTraceError `ERR_STORE_INVALID` (`check` is `unknown-snapshot`) if the store does not
   * have it.
   */
  export(snapshot: Snapshot | SnapshotKey, path: string): Promise<void>
  /**
   * Takes the evidence of a file for a snapshot that this store does not have, and writes its sets
   * from the memory file.
   *
   * @returns the key of the snapshot.
   * @throws ReapTraceError
   * - `ERR_STORE_INVALID`: the file is damaged, or the store already has the snapshot
   *   (`known-snapshot`),
   * - `ERR_STORE_IO`: it cannot be opened or read,
   * - `ERR_UNTRUSTED_FILE`: another user may write to it,
   * - `ERR_SNAPSHOT_MISMATCH`: the memory file has another size.
   */
  import(path: string, snapshot: Snapshot, options?: ReadOptions): Promise<SnapshotKey>
  /** Waits until everything is learned, and saved, from restores that are ready. */
  settled(): Promise<void>
  /** Same as {@link settled}; the store can be used again. */
  [Symbol.asyncDispose](): Promise<void>
}
