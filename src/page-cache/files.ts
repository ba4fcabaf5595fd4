import { toError } from '../binding/explain.js'
import type { NativeFailure } from '../binding/failure.js'
import { ReapTraceError } from '../errors.js'
import { PAGE } from '../page.js'
import { statDiskImage } from '../snapshot/disk-image.js'

/** Size of a disk image, rounded up to whole pages. */
export async function paddedSize(path: string): Promise<number> {
  const size = Number((await statDiskImage(path)).size)
  if (size > 0) return Math.ceil(size / PAGE) * PAGE
  throw new ReapTraceError('ERR_SOURCE_READ', `the disk image ${path} is empty`, {
    path,
    check: 'empty',
    hint: 'Pass the file that the VMM uses as its disk.',
  })
}

/** The error for a failure in the file at this index: the memory file, then the disk images. */
export function fileError(
  failure: NativeFailure,
  [memoryFile = '', ...diskImages]: readonly string[],
  file: number,
): ReapTraceError {
  const diskImage = diskImages[file - 1]
  return toError(failure, diskImage === undefined ? { memoryFile } : { memoryFile, diskImage })
}
