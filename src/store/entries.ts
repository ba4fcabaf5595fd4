import { resolve } from 'node:path'
import { LRUCache } from 'lru-cache'
import type { Snapshot } from '../snapshot/snapshot.js'
import { WorkingSet } from '../working-set/working-set.js'
import type { StoreFolder } from './folder.js'
import type { LearnerOptions } from './learner/learner.js'
import { Learning } from './learning.js'
import type { SnapshotManifest, StoredSet } from './manifest.js'
import type { SnapshotFolder } from './snapshot-folder.js'
import { type Identity, identify, type SnapshotKey } from './snapshot-key.js'

/** Reports a failure that costs a restore its set or its evidence; throws any other. */
export type Warn = (error: unknown) => undefined

/** A snapshot of the store, as this process knows it. */
export interface Entry {
  readonly folder: SnapshotFolder
  readonly learning: Learning
  manifest: SnapshotManifest | undefined
  /** State of the manifest's file when it was read. */
  stamp: string | undefined
  /** A set that turned out to be missing, damaged or stale, also in the comparison afterwards. */
  badSet: StoredSet | undefined
}

/** The snapshots of a store, as this process knows them. */
export class Entries {
  readonly #folder: StoreFolder
  readonly #options: LearnerOptions
  /** Bounded, since chains of children can be long; the others are read again. */
  readonly #entries = new LRUCache<SnapshotKey, Entry>({ max: 256 })
  /** Key of the last restore by memory file or id. */
  readonly #keys = new LRUCache<string, SnapshotKey>({ max: 4096 })

  constructor(folder: StoreFolder, options: LearnerOptions) {
    this.#folder = folder
    this.#options = options
  }

  /** The entry of a snapshot, which the store need not have. */
  get(key: SnapshotKey): Entry {
    let entry = this.#entries.get(key)
    if (entry) return entry
    const folder = this.#folder.snapshot(key)
    const load = (parent: SnapshotKey) => this.get(parent).learning.load()
    const learning = new Learning(folder, load, this.#options)
    entry = { folder, learning, manifest: undefined, stamp: undefined, badSet: undefined }
    this.#entries.set(key, entry)
    return entry
  }

  /** The snapshot's key and entry, found at once where the memory file is the one of last time. */
  async find(snapshot: Snapshot, warn: Warn): Promise<Identity & { readonly entry: Entry }> {
    const name = snapshot.id ?? resolve(snapshot.memoryFile)
    const last = this.#keys.get(name)
    const [identity, entryOfLast] = await Promise.all([
      identify(snapshot),
      last === undefined ? undefined : this.#refresh(last, warn),
    ])
    this.#keys.set(name, identity.key)
    const entry =
      identity.key === last && entryOfLast ? entryOfLast : await this.#refresh(identity.key, warn)
    return { ...identity, entry }
  }

  /** The entry with its current manifest, or without one that cannot be read. */
  async #refresh(key: SnapshotKey, warn: Warn): Promise<Entry> {
    const entry = this.get(key)
    const stamp = await entry.folder.manifestStamp()
    if (stamp !== entry.stamp) {
      entry.manifest =
        stamp === undefined ? undefined : await entry.folder.readManifest().catch(warn)
      // What could not be read is read again.
      entry.stamp = entry.manifest && stamp
    }
    return entry
  }

  /** The snapshot that was restored from the same path last, for one that is new. */
  async predecessor(
    { folder, manifest }: Entry,
    { memoryFile }: Snapshot,
    memoryBytes: number,
    warn: Warn,
  ): Promise<SnapshotKey | undefined> {
    if (manifest) return undefined
    const key = await this.#folder.lastFrom(memoryFile)
    if (key === undefined || key === folder.key) return undefined
    const last = await this.#refresh(key, warn)
    return last.manifest?.memoryBytes === memoryBytes ? key : undefined
  }

  /** The variant's set, the common one, or that of the parent without its bytes. */
  async setFor(
    { folder, manifest }: Entry,
    variant: string | undefined,
    memoryBytes: number,
    parent: SnapshotKey | undefined,
    warn: Warn,
  ): Promise<WorkingSet | string | undefined> {
    const sets = manifest?.sets ?? []
    const stored =
      sets.find((set) => set.variant === (variant ?? null)) ??
      sets.find((set) => set.variant === null)
    if (stored) return folder.setPath(stored.file)
    if (parent === undefined || manifest) return undefined
    const ofParent = await this.#refresh(parent, warn)
    if (ofParent.manifest?.memoryBytes !== memoryBytes) return undefined
    const path = await this.setFor(ofParent, variant, memoryBytes, undefined, warn)
    if (typeof path !== 'string') return undefined
    const { order } = await WorkingSet.read(path)
    return WorkingSet.fromTraces([order])
  }

  delete(key: SnapshotKey): void {
    this.#entries.delete(key)
  }
}
