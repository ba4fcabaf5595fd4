import { type BigIntStats, readFileSync } from 'node:fs'
import { statfs } from 'node:fs/promises'
import { setTimeout as sleep } from 'node:timers/promises'
import { native } from '../binding/addon.js'

/** Device, inode, size, and the times of the last change of data and of status in nanoseconds. */
export type FileStamp = BigUint64Array

// As stamp_of() in native/engine/files/page_source.cc.
export const stampOf = ({ dev, ino, size, mtimeNs, ctimeNs }: BigIntStats): FileStamp =>
  BigUint64Array.of(dev, ino, size, mtimeNs, ctimeNs)

/** The same in one word. */
export const keyOfStamp = (stamp: FileStamp): string => stamp.join(':')
export const stampKey = (stats: BigIntStats): string => keyOfStamp(stampOf(stats))

/** Whether every later change of the file shows in its stamp: not within one tick of the kernel's clock. */
export const isSettled = ({ ctimeNs }: BigIntStats): boolean => native().isSettled(ctimeNs, 0n)
export const isSettledStamp = (stamp: FileStamp): boolean => native().isSettled(stamp[4]!, 0n)

/**
 * Minimum age in nanoseconds of a change to a file that may have writers. The kernel sets the times when
 * a write() begins and when a clean mapped page is first stored to; what follows shows only in the next
 * write(), or after writeback: twice the time in which the kernel writes back what is dirty, 70 s by
 * default. `undefined` where it does not by itself (`vm.dirty_writeback_centisecs` is 0) or hides that.
 */
function writersAge(): bigint | undefined {
  const read = (name: string) => BigInt(readFileSync(`/proc/sys/vm/${name}`, 'utf8').trim())
  try {
    const [expire, interval] = [read('dirty_expire_centisecs'), read('dirty_writeback_centisecs')]
    return interval === 0n ? undefined : 2n * (expire + interval) * 10_000_000n
  } catch {
    return undefined
  }
}

/** {@link isSettled} of an open file that somebody may be writing to. */
export function isSettledFile(fd: number, { ctimeNs }: BigIntStats): boolean {
  const age = native().mayHaveWriters(fd) ? writersAge() : 0n
  return age !== undefined && native().isSettled(ctimeNs, age)
}

const MAX_WAIT_MS = 1500

/**
 * Waits for {@link isSettledFile}: a tick of the clock where the file was just written, and else not at
 * all. No restore waits for this.
 *
 * @returns whether it came true: not for a time in the future, nor for a young file with writers.
 */
export async function untilSettled(fd: number, stats: BigIntStats): Promise<boolean> {
  const end = performance.now() + MAX_WAIT_MS
  while (!isSettled(stats)) {
    if (performance.now() > end) return false
    await sleep(2)
  }
  return isSettledFile(fd, stats)
}

// Those of linux/magic.h and of the file systems' own headers that call file_update_time() before a
// mapped page becomes writable.
const FILE_SYSTEMS_WITH_TIMES = new Set([
  0xef53, // ext2, ext3, ext4
  0x58465342, // XFS
  0x9123683e, // Btrfs
  0xf2f52010, // F2FS
  0xca451a4e, // bcachefs
])

/**
 * Whether the kernel of this machine sets the times of a file before each change of its content.
 *
 * Not so on tmpfs, where stores through a shared mapping never do; on overlayfs, whose layers may be
 * there; on FUSE and network file systems, where they come from a server or from cached attributes.
 */
export async function keepsTimes(path: string): Promise<boolean> {
  const { type } = await statfs(path).catch(() => ({ type: 0 }))
  return FILE_SYSTEMS_WITH_TIMES.has(type >>> 0)
}
