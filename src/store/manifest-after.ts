import { resolve } from 'node:path'
import type { Lesson } from './lesson.js'
import { noResponses, type SnapshotManifest, withValue } from './manifest.js'
import type { StoreSnapshot } from './snapshot-key.js'

/** The manifest with a set in place of the variant's former one. */
export const withSet = (manifest: SnapshotManifest, set: SnapshotManifest['sets'][number]) => ({
  ...manifest,
  sets: [...manifest.sets.filter(({ variant }) => variant !== set.variant), set],
})

/** Manifest of a snapshot without sets and restores. */
export function newManifest({
  snapshot: { memoryFile, id, parent },
  memoryBytes,
  pageSize,
  at,
}: {
  readonly snapshot: StoreSnapshot
  readonly memoryBytes: number
  readonly pageSize: number
  readonly at: string
}): SnapshotManifest {
  return {
    version: 1,
    memoryFile: resolve(memoryFile),
    ...(id !== undefined && { id }),
    memoryBytes,
    pageSize,
    ...(parent !== undefined && { parent }),
    createdAt: at,
    lastRestoreAt: at,
    restoreCount: 0,
    sets: [],
    responses: noResponses,
  }
}

/** The manifest after restores; `known` is that before them, if there is one. */
export function manifestAfter(
  lessons: readonly Lesson[],
  known: SnapshotManifest | undefined,
): SnapshotManifest {
  const last = lessons.at(-1)!
  const { at } = last.line
  const before = known ?? newManifest({ ...last, at })
  const responses = { ...before.responses }
  for (const { line } of lessons) {
    const { backend, warmth, responseMs, recorded } = line
    if (responseMs === undefined || warmth === undefined || recorded) continue
    const means = responses[backend]
    responses[backend] = { ...means, [warmth]: withValue(means[warmth], responseMs) }
  }
  return {
    ...before,
    memoryFile: resolve(last.snapshot.memoryFile),
    lastRestoreAt: at,
    restoreCount: before.restoreCount + lessons.length,
    // Unless it has been written again since.
    sets: before.sets.filter(
      ({ file, writtenAt }) =>
        !lessons.some(({ badSet }) => badSet?.file === file && badSet.writtenAt === writtenAt),
    ),
    responses,
  }
}
