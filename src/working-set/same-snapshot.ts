import { ReapTraceError } from '../errors.js'
import { internalsOf } from './internals.js'

/** Fields that sets of one snapshot share. */
interface Memory {
  readonly memoryBytes: number
  readonly pageSize: number
}

/**
 * @throws ReapTraceError `ERR_SNAPSHOT_MISMATCH` (`size`, `page-size`) for sets that cannot be of
 * one snapshot.
 */
export function checkSameSnapshot([first, ...rest]: readonly [Memory, ...Memory[]]): void {
  for (const other of rest) {
    if (other.memoryBytes !== first.memoryBytes) {
      const sizes = `${first.memoryBytes} and ${other.memoryBytes} bytes of memory`
      throw notOfOneSnapshot(first, other, 'size', sizes)
    }
    if (other.pageSize !== first.pageSize) {
      const sizes = `pages of ${first.pageSize} and of ${other.pageSize} bytes`
      throw notOfOneSnapshot(first, other, 'page-size', sizes)
    }
  }
}

function notOfOneSnapshot(a: Memory, b: Memory, check: string, sizes: string): ReapTraceError {
  const [first, second] = [a, b].map((set) => internalsOf(set).file?.path ?? 'a working set')
  return new ReapTraceError(
    'ERR_SNAPSHOT_MISMATCH',
    `${first} and ${second} are not of one snapshot: their guests have ${sizes}`,
    { path: second, check, hint: 'Choose sets that were recorded from one snapshot.' },
  )
}
