import { randomFillSync } from 'node:crypto'
import {
  chmodSync,
  closeSync,
  fstatSync,
  ftruncateSync,
  linkSync,
  openSync,
  readSync,
  renameSync,
  statfsSync,
  statSync,
  unlinkSync,
  writeSync,
} from 'node:fs'
import { join } from 'node:path'
import koffi from 'koffi'
import { Trace, WorkingSet } from '../../src/index.js'
import { makeMemoryFile, xorshift } from './fake-vmm.js'

const PAGE = 4096
/** Number of earlier states, of the memory and its set, that may come back. */
const EARLIER = 3
const HISTORY = 12

/** Calls for which Node has no function, or one that rounds times. */
const libc = koffi.load('libc.so.6')
const utimensat = libc.func('int utimensat(int at, const char *path, void *times, int flags)')
const fallocate = libc.func('int fallocate(int fd, int mode, int64_t offset, int64_t bytes)')
const mmap = libc.func(
  'void *mmap(void *at, size_t bytes, int protection, int flags, int fd, int64_t offset)',
)
const munmap = libc.func('int munmap(void *at, size_t bytes)')
const memset = libc.func('void *memset(void *at, int byte, size_t bytes)')

const AT_FDCWD = -100
const KEEP_SIZE_PUNCH_HOLE = 0x01 | 0x02
const PROT_READ_WRITE = 0x01 | 0x02
const MAP_SHARED = 0x01
const MAP_FAILED = 0xffff_ffff_ffff_ffffn
const EOPNOTSUPP = 95
const TMPFS_MAGIC = 0x01021994

/** Reused, since allocating and collecting buffers of this size would take longer than the restores. */
const scratch = Buffer.alloc(8 * 2 ** 20)

/** The bytes of a file, valid until the next call. */
function contentOf(path: string): Buffer {
  const fd = openSync(path, 'r')
  try {
    return scratch.subarray(0, readSync(fd, scratch, 0, scratch.length, 0))
  } finally {
    closeSync(fd)
  }
}

interface Times {
  readonly atimeNs: bigint
  readonly mtimeNs: bigint
}

export function setTimes(path: string, { atimeNs, mtimeNs }: Times): void {
  const words = [atimeNs, mtimeNs].flatMap((ns) => [ns / 1_000_000_000n, ns % 1_000_000_000n])
  must('utimensat', utimensat(AT_FDCWD, path, BigInt64Array.from(words), 0) === 0)
}

function storeThroughMapping(fd: number, page: number, byte: number): void {
  const at = mmap(null, PAGE, PROT_READ_WRITE, MAP_SHARED, fd, page * PAGE)
  must('mmap', at !== MAP_FAILED)
  memset(at, byte, PAGE)
  must('munmap', munmap(at, PAGE) === 0)
}

function must(call: string, done: boolean): void {
  if (!done) throw new Error(`${call} failed with errno ${koffi.errno()}`)
}

export interface Random {
  /** An integer from 0 to `limit - 1`. */
  below(limit: number): number
  /** True once in this many times. */
  oneIn(times: number): boolean
  of<T>(values: readonly T[]): T
}

export function randomOf(seed: number): Random {
  const next = xorshift(seed)
  const below = (limit: number) => next() % limit
  return {
    below,
    oneIn: (times) => below(times) === 0,
    of: (values) => values[below(values.length)]!,
  }
}

type Change = () => string | Promise<string>

/**
 * A memory file and a working set that change at random, depending on the seed: in place or by a new
 * inode, with their times set back or not. The memory file keeps its size, and so does the working
 * set where possible.
 */
export class ChangingSnapshot {
  readonly memoryFile: string
  readonly setFile: string
  readonly pages: number
  /** The changes so far, the latest last. */
  readonly history: string[] = []
  readonly #random: Random
  readonly #memoryChanges: readonly Change[]
  readonly #setChanges: readonly Change[]
  readonly #earlier: { readonly memory: Buffer; readonly set: Buffer }[] = []
  #trace: Trace
  /** A set as it was read some changes ago. */
  #read: WorkingSet | undefined

  static async make(folder: string, pages: number, random: Random): Promise<ChangingSnapshot> {
    const snapshot = new ChangingSnapshot(folder, pages, random)
    await makeMemoryFile(snapshot.memoryFile, pages, { seed: 1 + random.below(1000) })
    await snapshot.#record()
    return snapshot
  }

  private constructor(folder: string, pages: number, random: Random) {
    this.memoryFile = join(folder, 'memory')
    this.setFile = join(folder, 'set')
    this.pages = pages
    this.#random = random
    this.#trace = this.#drawTrace()
    const { memoryFile, setFile } = this
    // On tmpfs, a store through a mapping changes no time.
    const tellsOfStores = statfsSync(folder).type !== TMPFS_MAGIC
    const overwrite = () => this.#overwrite()
    this.#memoryChanges = [
      ...[overwrite, overwrite, overwrite, overwrite],
      () => this.#punch(),
      () => this.#cutAndExtend(),
      ...(tellsOfStores ? [() => this.#storeThroughMapping()] : []),
      () => this.#overwriteElsewhere(),
      () => this.#goBack('memory', memoryFile),
      () => this.#goBack('memory', memoryFile),
      ...this.#sameContent('memory', memoryFile),
    ]
    this.#setChanges = [
      () => this.#goBack('set', setFile),
      () => this.#goBack('set', setFile),
      () => this.#flip(),
      ...this.#sameContent('set', setFile),
    ]
  }

  /** Value of `workingSet`: the path, or now and then a set that was read before some changes. */
  async workingSet(): Promise<WorkingSet | string> {
    const { oneIn } = this.#random
    if (oneIn(12)) return WorkingSet.fromTraces([this.#trace])
    if (!oneIn(4)) return this.setFile
    const read = this.#read
    if (!read || oneIn(3)) {
      this.#read = await WorkingSet.read(this.setFile)
      this.#note('the set is read')
    }
    return read ?? this.setFile
  }

  /** Draws the touches of the working sets that are recorded from here on. */
  touched(trace: Trace): void {
    this.#trace = trace
  }

  /** Changes one of the files, or both so that they agree. */
  async change(): Promise<void> {
    const turn = this.#random.below(16)
    if (turn < 7) await this.changeMemory()
    else if (turn < 11) await this.changeSet()
    else await this.agree()
  }

  /** Writes the set anew from this memory. */
  async agree(): Promise<void> {
    this.#note(this.#random.oneIn(3) ? await this.#record() : this.#goBackWithBoth())
  }

  async changeMemory(): Promise<void> {
    this.#note(await this.#random.of(this.#memoryChanges)())
  }

  async changeSet(): Promise<void> {
    this.#note(await this.#random.of(this.#setChanges)())
  }

  #note(what: string): void {
    this.history.push(what)
    if (this.history.length > HISTORY) this.history.shift()
  }

  async #record(): Promise<string> {
    if (this.#random.oneIn(3)) this.#trace = this.#drawTrace()
    const { memoryFile, setFile } = this
    await WorkingSet.fromTraces([this.#trace]).write(setFile, { snapshot: { memoryFile } })
    if (this.#random.oneIn(2) || this.#earlier.length === 0) {
      this.#earlier.push({
        memory: Buffer.from(contentOf(memoryFile)),
        set: Buffer.from(contentOf(setFile)),
      })
      if (this.#earlier.length > EARLIER) this.#earlier.shift()
    }
    return 'a set is recorded'
  }

  #drawTrace(): Trace {
    const { below, oneIn } = this.#random
    const pages = Uint32Array.from({ length: this.pages }, (_, page) => page)
    for (let i = pages.length - 1; i > 0; i--) {
      const j = below(i + 1)
      ;[pages[i], pages[j]] = [pages[j]!, pages[i]!]
    }
    const count = oneIn(3) ? pages.length : 1 + below(pages.length)
    return new Trace({
      pageSize: PAGE,
      memoryBytes: this.pages * PAGE,
      pages: pages.slice(0, count),
      timesUs: Uint32Array.from({ length: count }, (_, i) => i),
    })
  }

  /** Often only a few pages, which samples would miss. */
  #somePages(most: number, pages: number): number[] {
    const { below, oneIn } = this.#random
    const count = 1 + below(oneIn(2) ? Math.min(3, most) : most)
    return Array.from({ length: count }, () => below(pages))
  }

  #overwrite(): string {
    const { below, oneIn, of } = this.#random
    const pages = this.#somePages(40, this.pages)
    const name = of(['random bytes', 'random bytes', 'zeros', 'a few bytes'] as const)
    const bytes = scratch.subarray(0, name === 'a few bytes' ? 8 : PAGE)
    if (name === 'zeros') bytes.fill(0)
    else randomFillSync(bytes)
    const inPage = oneIn(2) ? 0 : below(PAGE - bytes.length + 1)
    return this.#inPlace(this.memoryFile, `memory: ${name} to ${pages}`, (fd) => {
      for (const page of pages) writeSync(fd, bytes, 0, bytes.length, page * PAGE + inPage)
    })
  }

  #punch(): string {
    const first = this.#random.below(this.pages)
    const count = 1 + this.#random.below(Math.min(40, this.pages - first))
    return this.#inPlace(this.memoryFile, `memory: a hole of ${count} at ${first}`, (fd) => {
      const done = fallocate(fd, KEEP_SIZE_PUNCH_HOLE, first * PAGE, count * PAGE) === 0
      // Not every file system can; then nothing changes.
      must('fallocate', done || koffi.errno() === EOPNOTSUPP)
    })
  }

  #cutAndExtend(): string {
    const count = 1 + this.#random.below(8)
    return this.#inPlace(this.memoryFile, `memory: the last ${count} cut off and back`, (fd) => {
      ftruncateSync(fd, (this.pages - count) * PAGE)
      ftruncateSync(fd, this.pages * PAGE)
    })
  }

  #storeThroughMapping(): string {
    const pages = this.#somePages(8, this.pages)
    return this.#inPlace(this.memoryFile, `memory: stores to ${pages}`, (fd) => {
      for (const page of pages) storeThroughMapping(fd, page, 1 + this.#random.below(255))
    })
  }

  #overwriteElsewhere(): string {
    const bytes = contentOf(this.memoryFile)
    const pages = this.#somePages(40, this.pages)
    for (const page of pages) randomFillSync(bytes, page * PAGE, PAGE)
    return this.#byRename(this.memoryFile, `memory: another inode with other ${pages}`, bytes)
  }

  /** The memory and its set as they were at the recording of some set. */
  #goBackWithBoth(): string {
    const { memory, set } = this.#random.of(this.#earlier)
    return [
      this.#replace(this.memoryFile, 'memory: an earlier one', memory),
      this.#replace(this.setFile, 'set: the one of that memory', set),
    ].join('; ')
  }

  /** Restores the bytes that a file had at the recording of some set, of the same size if possible. */
  #goBack(part: 'memory' | 'set', path: string): string {
    const { size } = statSync(path)
    const sized = this.#earlier.filter((earlier) => earlier[part].length === size)
    const { [part]: bytes } = this.#random.of(sized.length > 0 ? sized : this.#earlier)
    return this.#replace(path, `${part}: an earlier one`, bytes)
  }

  #replace(path: string, what: string, bytes: Buffer): string {
    const { oneIn } = this.#random
    if (oneIn(3) || statSync(path).size !== bytes.length) return this.#byRename(path, what, bytes)
    if (oneIn(2)) {
      return this.#inPlace(path, `${what}, in place`, (fd) => {
        writeSync(fd, bytes, 0, bytes.length, 0)
      })
    }
    const now = contentOf(path)
    return this.#inPlace(path, `${what}, what differs in place`, (fd) => {
      for (let at = 0; at < bytes.length; at += PAGE) {
        const page = bytes.subarray(at, at + PAGE)
        if (!page.equals(now.subarray(at, at + PAGE))) writeSync(fd, page, 0, page.length, at)
      }
    })
  }

  /** Damages data of the set, but not its header or index. */
  #flip(): string {
    const size = statSync(this.setFile).size
    return this.#inPlace(this.setFile, 'set: bits flipped', (fd) => {
      const word = Buffer.alloc(8)
      readSync(fd, word, 0, 8, 56)
      const data = Number(word.readBigUInt64LE())
      if (data >= size) return
      for (const page of this.#somePages(4, (size - data) / PAGE)) {
        const at = data + page * PAGE + this.#random.below(PAGE)
        readSync(fd, word, 0, 1, at)
        word[0]! ^= 1 << this.#random.below(8)
        writeSync(fd, word, 0, 1, at)
      }
    })
  }

  /** Changes the times or the inode of a file, but no byte of it. */
  #sameContent(part: string, path: string): Change[] {
    return [
      () => this.#byRename(path, `${part}: another inode`, contentOf(path)),
      () => {
        const now = BigInt(Date.now()) * 1_000_000n
        const ahead = this.#random.oneIn(12) ? 3_600_000_000_000n : 0n
        setTimes(path, { atimeNs: now, mtimeNs: now + ahead })
        return `${part}: touched`
      },
      () => {
        linkSync(path, `${path}.link`)
        unlinkSync(`${path}.link`)
        return `${part}: linked and unlinked`
      },
      () => {
        chmodSync(path, this.#random.oneIn(2) ? 0o600 : 0o640)
        return `${part}: chmod`
      },
    ]
  }

  #inPlace(path: string, what: string, change: (fd: number) => void): string {
    const fd = openSync(path, 'r+')
    try {
      // Reading the times makes the kernel distinguish the next change (6.13), so they are read only
      // to be set back.
      const times = this.#random.oneIn(2) ? fstatSync(fd, { bigint: true }) : undefined
      change(fd)
      if (!times) return what
      setTimes(path, times)
      return `${what}, times set back`
    } finally {
      closeSync(fd)
    }
  }

  #byRename(path: string, what: string, bytes: Buffer): string {
    const other = `${path}.other`
    const fd = openSync(other, 'w', 0o600)
    writeSync(fd, bytes, 0, bytes.length, 0)
    closeSync(fd)
    const keepsTimes = this.#random.oneIn(2)
    if (keepsTimes) setTimes(other, statSync(path, { bigint: true }))
    renameSync(other, path)
    return keepsTimes ? `${what}, renamed over it with its times` : `${what}, renamed over it`
  }
}
