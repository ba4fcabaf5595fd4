import { closeSync, openSync, readSync } from 'node:fs'
import { PAGE } from '../page.js'
import type { GuestInfo } from './fault-handler.js'

const SAMPLES = 128

/**
 * Estimates the share of the touched pages that the guest has modified, from samples of its memory,
 * in less than a millisecond. (A fault says whether it was a write, but a guest often reads a page
 * before it writes to it.) `undefined` if this process may not read the VMM's memory.
 */
export function writtenShareOf(
  guest: GuestInfo | undefined,
  readCached: (offset: number, into: Uint8Array) => boolean,
  pages: Uint32Array,
): number | undefined {
  if (!guest || guest.pageSize !== PAGE || pages.length === 0) return undefined
  let memory: number | undefined
  try {
    memory = openSync(`/proc/${guest.pid}/mem`, 'r')
    const [now, before] = [Buffer.alloc(PAGE), Buffer.alloc(PAGE)]
    const samples = Math.min(SAMPLES, pages.length)
    let [compared, changed] = [0, 0]
    for (let i = 0; i < samples; i++) {
      const offset = pages[Math.floor((i * pages.length) / samples)]! * PAGE
      const region = guest.regions.find(
        (region) => offset >= region.offset && offset < region.offset + region.size,
      )!
      const address = region.baseAddress + offset - region.offset
      // Reading the memory of an exited VMM returns no bytes.
      if (readSync(memory, now, 0, PAGE, address) < PAGE) return undefined
      // The memory file's page may lie on storage that hangs.
      if (!readCached(offset, before)) continue
      compared++
      if (!now.equals(before)) changed++
    }
    return compared > 0 ? changed / compared : undefined
  } catch {
    return undefined
  } finally {
    if (memory !== undefined) closeSync(memory)
  }
}
