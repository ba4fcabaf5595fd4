import { closeSync, openSync, readSync } from 'node:fs'
import { PAGE } from '../page.js'
import type { GuestInfo } from './fault-handler.js'

const SAMPLES = 128

/**
 * Share of the touched pages that the guest has changed since they came from the memory file: samples of
 * its memory, in less than a millisecond. (The kernel says of a fault whether it was a write, but a guest
 * often reads a page before it writes to it.) `undefined` where this process may not look into the VMM.
 */
export function writtenShareOf(
  guest: GuestInfo | undefined,
  memoryFile: string,
  pages: Uint32Array,
): number | undefined {
  if (!guest || guest.pageSize !== PAGE || pages.length === 0) return undefined
  const files: number[] = []
  try {
    for (const path of [`/proc/${guest.pid}/mem`, memoryFile]) files.push(openSync(path, 'r'))
    const [memory, file] = files as [number, number]
    const [now, before] = [Buffer.alloc(PAGE), Buffer.alloc(PAGE)]
    const samples = Math.min(SAMPLES, pages.length)
    let changed = 0
    for (let i = 0; i < samples; i++) {
      const offset = pages[Math.floor((i * pages.length) / samples)]! * PAGE
      const region = guest.regions.find(
        (one) => offset >= one.offset && offset < one.offset + one.size,
      )!
      const address = region.baseAddress + offset - region.offset
      // Nothing is read from a VMM that has ended meanwhile.
      if (readSync(memory, now, 0, PAGE, address) < PAGE) return undefined
      if (readSync(file, before, 0, PAGE, offset) < PAGE) return undefined
      if (!now.equals(before)) changed++
    }
    return changed / samples
  } catch {
    return undefined
  } finally {
    files.forEach(closeSync)
  }
}
