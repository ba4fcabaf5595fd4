import { resolve } from 'node:path'

/** How many restores of each memory file this process has in flight, by its path. */
const counts = new Map<string, number>()

/** Counts one more restore of a memory file. Returns how to end it, which may be called again. */
export function begin(memoryFile: string): () => void {
  const path = resolve(memoryFile)
  counts.set(path, inFlight(path) + 1)
  let hasEnded = false
  return () => {
    if (hasEnded) return
    hasEnded = true
    const rest = inFlight(path) - 1
    if (rest > 0) counts.set(path, rest)
    else counts.delete(path)
  }
}

/** Restores of a memory file between the start of their plan and the end of their prefetch. */
export const inFlight = (memoryFile: string): number => counts.get(resolve(memoryFile)) ?? 0
