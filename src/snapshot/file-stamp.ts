import { type BigIntStats, readFileSync } from 'node:fs'
import { statfs } from 'node:fs/promises'
import { setTimeout as sleep } from 'node:timers/promises'
import { native } from '../binding/addon.js'
import { isFailure } from '../binding/failure.js'

/** Device, inode, size, mtime and ctime in nanoseconds. */
export type FileStamp = BigUint64Array

/** The part of a file's status that a stamp has, and its kind. */
export type FileStats = Pick<BigIntStats, 'dev' | 'ino' | 'size' | 'mtimeNs' | 'ctimeNs' | 'isFile'>

/**
 * Status of a file, as Node's `stat()`, but on a thread outside of Node's pool: a server that does
 * not answer must not block that for the whole process.
 *
 * @throws an Error with `errno` and `syscall`, as Node's.
 */
export async function statFile(path: string): Promise<FileStats> {
  const found = await native().statFile(path)
  if (isFailure(found)) {
    const { errno, syscall } = found
    throw Object.assign(new Error(`${syscall} ${path}`), { errno, syscall })
  }
  const [[dev, ino, size, mtimeNs, ctimeNs], isFile] = found
  return { dev, ino, size, mtimeNs, ctimeNs, isFile: () => isFile } as FileStats
}

// Same as stamp_of() in native/engine/files/page_source.cc.
export const stampOf = ({ dev, ino, size, mtimeNs, ctimeNs }: FileStats): FileStamp =>
  BigUint64Array.of(dev, ino, size, mtimeNs, ctimeNs)

/** What a link or a rename leaves of a stamp, as a string: device, inode, size and mtime. */
export const contentKey = ({
  dev,
  ino,
  size,
  mtimeNs,
}: Pick<FileStats, 'dev' | 'ino' | 'size' | 'mtimeNs'>): string =>
  [dev, ino, size, mtimeNs].join(':')

/** A stamp as a string. */
export const keyOfStamp = (stamp: FileStamp): string => stamp.join(':')
export const stampKey = (stats: FileStats): string => keyOfStamp(stampOf(stats))

/**
 * Whether the stamp reveals every later change: not within one tick of the kernel's clock after a
 * change.
 */
export const isSettled = ({ ctimeNs }: Pick<FileStats, 'ctimeNs'>): boolean =>
  native().isSettled(ctimeNs, 0n)
export const isSettledStamp = (stamp: FileStamp): boolean => native().isSettled(stamp[4]!, 0n)

/**
 * Minimum age in nanoseconds of a change to a file that may have writers. The kernel updates the
 * timestamps when a write() begins and at the first store to a clean mapped page; later stores show
 * only at the next write() or after writeback. Hence twice the kernel's writeback period, 70 s by
 * default. `undefined` if periodic writeback is disabled (`vm.dirty_writeback_centisecs` is 0) or
 * the period is unknown.
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

/** {@link isSettled} for an open file that may have writers. */
export function isSettledFile(fd: number, { ctimeNs }: BigIntStats): boolean {
  const age = native().mayHaveWriters(fd) ? writersAge() : 0n
  return age !== undefined && native().isSettled(ctimeNs, age)
}

const MAX_WAIT_MS = 1500

/**
 * Waits for {@link isSettledFile}: one clock tick after a write, otherwise not at all. No restore
 * waits for this.
 *
 * @returns false for a timestamp in the future, or a young file with writers.
 */
export async function untilSettled(fd: number, stats: BigIntStats): Promise<boolean> {
  const end = performance.now() + MAX_WAIT_MS
  while (!isSettled(stats)) {
    if (performance.now() > end) return false
    await sleep(2)
  }
  return isSettledFile(fd, stats)
}

// Magic numbers of file systems that call file_update_time() before a mapped page becomes writable.
const FILE_SYSTEMS_WITH_TIMES = new Set([
  0xef53, // ext2, ext3, ext4
  0x58465342, // XFS
  0x9123683e, // Btrfs
  0xf2f52010, // F2FS
  0xca451a4e, // bcachefs
])

/**
 * Whether this machine's kernel updates the timestamps of a file before each change of its content.
 *
 * Not on tmpfs, where stores through a shared mapping do not update them; on overlayfs, whose
 * layers may be on tmpfs; on FUSE and network file systems, whose timestamps come from a server or
 * a cache.
 */
export async function keepsTimes(path: string): Promise<boolean> {
  const { type } = await statfs(path).catch(() => ({ type: 0 }))
  return FILE_SYSTEMS_WITH_TIMES.has(type >>> 0)
}
