import { stat } from 'node:fs/promises'
import { setTimeout as sleep } from 'node:timers/promises'
import type { GuestProcess } from '../demo/guest-process.js'
import { PAGE } from '../terminal/units.js'

export const caches = ['cold', 'warm'] as const
export type Cache = (typeof caches)[number]

interface Residency {
  readonly resident: number
  readonly pages: number
}

const EVICT_ATTEMPTS = 20
const EVICT_PAUSE_MS = 10

/** Whether a file can be evicted from the page cache completely. */
export async function canEvict(guest: GuestProcess, file: string): Promise<boolean> {
  // A page under I/O or in a per-CPU list stays for a moment.
  for (let attempt = 0; attempt < EVICT_ATTEMPTS; attempt++) {
    if ((await guest.send<Residency>(`evict ${file}`)).resident === 0) return true
    await sleep(EVICT_PAUSE_MS)
  }
  return false
}

async function canWarm(guest: GuestProcess, file: string): Promise<boolean> {
  // Holes are read too, but not every file system caches them.
  const { resident, pages } = await guest.send<Residency>(`resident ${file}`)
  if (resident === pages) return true
  const after = await guest.send<Residency>(`warm ${file}`)
  return after.resident * PAGE >= Math.min((await stat(file)).blocks * 512, after.pages * PAGE)
}

/** Evicts files from the page cache or brings them in, and names those that do not follow. */
export async function setCache(
  guest: GuestProcess,
  cache: Cache,
  files: readonly string[],
): Promise<readonly string[]> {
  const others: string[] = []
  for (const file of files) {
    const isThere = await (cache === 'cold' ? canEvict : canWarm)(guest, file)
    if (!isThere) others.push(file)
  }
  return others
}
