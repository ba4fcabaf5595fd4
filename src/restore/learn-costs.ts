import { PAGE } from '../page.js'
import { type PageCachePrefetchResult, wasAlone } from '../page-cache/prefetch.js'
import type { Survey } from '../page-cache/residency.js'
import type { FaultHandler } from '../uffd/fault-handler.js'
// What restores show of the disks that they read.
import { bringInMs } from './choice.js'
import { hostModel } from './host-model.js'

/** Restores that read too little say nothing about the disk. */
const ENOUGH_BYTES = 16 * 2 ** 20
const ENOUGH_EXTENTS = 512
/** The survey looks at a part of the pages: where some groups seem to be cached, more of them may be read. */
const NEARLY_ALL = 0.95

/** Restores by a handler whose pages are being read. */
let reading = 0
let lastReading = 0

/** What the reads of a restore took shows the rate of its disk, if no other restore read meanwhile. */
export function learnFromHandler(handler: FaultHandler, { setDevice, missingBytes }: Survey): void {
  const own = ++lastReading
  const began = ++reading
  handler.prefetched
    .then(
      async ({ complete, bytes, fetchMs }) => {
        const wasAlone = began === 1 && lastReading === own
        if (!complete || !wasAlone || bytes < ENOUGH_BYTES || missingBytes < NEARLY_ALL * bytes)
          return
        const model = await hostModel()
        model.sawDisk(setDevice, { bytesPerMs: bytes / fetchMs })
      },
      () => {}, // the session has ended before
    )
    .finally(() => reading--)
}

/** A prefetch shows by how much its disk is slower than it was known to be. */
export async function learnFromPageCache(
  result: PageCachePrefetchResult,
  { memoryDevice, isVisible }: Survey,
): Promise<void> {
  const { bytes, extents, residentPages, thereMs, complete } = result
  // Of a hidden file all runs count, whether they were read or there.
  if (!complete || !isVisible || !wasAlone(result) || extents < ENOUGH_EXTENTS) return
  // Looking at what is there takes its time too.
  if (residentPages * PAGE > 2 * bytes) return
  const model = await hostModel()
  const costs = model.diskCosts(memoryDevice)
  if (!costs) return
  const slower = thereMs / bringInMs(costs, bytes / PAGE, extents)
  model.sawDisk(memoryDevice, {
    cachedBytesPerMs: costs.cachedBytesPerMs / slower,
    extentUs: costs.extentUs * slower,
  })
}
