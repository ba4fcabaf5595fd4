import { PAGE } from '../page.js'
import type { ResponseTimes } from '../restore/backend.js'
import { type HistoryLine, parseHistory } from './history.js'
import { isDamage } from './invalid.js'
import type { Drift, Learner, Quality } from './learner/learner.js'
import type { SnapshotManifest } from './manifest.js'
import type { SnapshotFolder } from './snapshot-folder.js'
import type { SnapshotKey } from './snapshot-key.js'

/** Working-set file of a snapshot in a store. */
export interface SetSummary {
  /** `undefined` for the common set. */
  readonly variant: string | undefined
  readonly path: string
  /** Number of 4 KiB pages. */
  readonly pageCount: number
  /** ISO 8601, UTC. */
  readonly writtenAt: string
}

/** Snapshot in a store. Dates are ISO 8601, UTC. */
export interface SnapshotSummary {
  readonly key: SnapshotKey
  /** Path of the memory file at the last restore. */
  readonly memoryFile: string
  readonly id?: string | undefined
  readonly memoryBytes: number
  readonly pageSize: number
  readonly parent?: SnapshotKey | undefined
  readonly createdAt: string
  readonly lastRestoreAt: string
  /** Number of restores that taught something. */
  readonly restoreCount: number
  readonly sets: readonly SetSummary[]
  /** Size of its files on the disk, in bytes. */
  readonly diskBytes: number
}

/** Class of requests that restores have named. */
export interface VariantSummary {
  readonly name: string
  /** Number of its restores with evidence. */
  readonly restoreCount: number
}

/** What restores have shown of the pages of a snapshot. */
export interface EvidenceSummary {
  /** Number of restores with evidence: those by a fault handler that taught something. */
  readonly restoreCount: number
  /** Number of 4 KiB pages with evidence, in a set or not. */
  readonly pageCount: number
  /** Variants with evidence, at most 16; `sets` tells which of them have a separate set. */
  readonly variants: readonly VariantSummary[]
  /** Quality of the sets in the last few restores, and over many before. */
  readonly quality: Quality & { readonly past: Quality }
  /**
   * Mean wait of a fault and mean cost of installing a page, in microseconds, as restores on this
   * host measured them; typical values until then.
   */
  readonly costs: { readonly faultUs: number; readonly installUs: number }
  /** The last drift; `undefined` if there was none. */
  readonly drift: Drift | undefined
}

/** What a store knows of a snapshot. */
export interface SnapshotDescription extends SnapshotSummary {
  /** Absent before the first restore has taught something. */
  readonly learned?: EvidenceSummary | undefined
  /** Mean responses of earlier restores by each backend, with a warm and a cold page cache. */
  readonly responses: ResponseTimes
  /** Restores, the oldest first, at most 1,000. */
  readonly history: readonly HistoryLine[]
}

/** `undefined` for a snapshot that the store does not have, or whose manifest is damaged. */
export async function summaryOf(folder: SnapshotFolder): Promise<SnapshotSummary | undefined> {
  const manifest = await folder.readManifest().catch((error) => {
    if (isDamage(error)) return undefined
    throw error
  })
  return manifest && summarize(folder, manifest)
}

async function summarize(
  folder: SnapshotFolder,
  { version: _, responses: __, sets, ...facts }: SnapshotManifest,
): Promise<SnapshotSummary> {
  return {
    key: folder.key,
    ...facts,
    sets: sets.map(({ variant, file, pageCount, writtenAt }) => ({
      variant: variant ?? undefined,
      path: folder.setPath(file),
      pageCount,
      writtenAt,
    })),
    diskBytes: await folder.bytes(),
  }
}

function summarizeEvidence(learner: Learner): EvidenceSummary {
  const { restores, pages, variants, quality, costs, drift } = learner.describe()
  return {
    restoreCount: restores,
    pageCount: pages * (learner.facts.pageSize / PAGE),
    variants: variants.map(({ name, restores: restoreCount }) => ({ name, restoreCount })),
    quality,
    costs,
    drift,
  }
}

/** `undefined` for a snapshot that the store does not have. */
export async function describeSnapshot(
  folder: SnapshotFolder,
  learner: Learner | undefined,
): Promise<SnapshotDescription | undefined> {
  const manifest = await folder.readManifest()
  if (!manifest) return undefined
  const [summary, lines] = await Promise.all([summarize(folder, manifest), folder.readHistory()])
  return {
    ...summary,
    ...(learner && { learned: summarizeEvidence(learner) }),
    responses: manifest.responses,
    history: parseHistory(lines),
  }
}
