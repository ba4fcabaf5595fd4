import { readFileSync } from 'node:fs'
import { arch } from 'node:process'
import { getSystemErrorName } from 'node:util'
import koffi from 'koffi'

/*
 * A second userfaultfd client, written over libc from linux/userfaultfd.h alone. It shares no line
 * with the addon, so the two can agree only where both agree with the kernel.
 *
 * Every structure that these ioctls take is a row of 64-bit words, so a BigUint64Array is the
 * structure, and its length is the size that the request number encodes.
 */

const libc = koffi.load('libc.so.6')
const syscall = libc.func('long syscall(long number, ...)')
const ioctl = libc.func('int ioctl(int fd, unsigned long request, ...)')
const open = libc.func('int open(const char *path, int flags)')
const close = libc.func('int close(int fd)')
const read = libc.func('long read(int fd, void *into, size_t bytes)')
const mmap = libc.func(
  'void *mmap(void *at, size_t bytes, int protection, int flags, int fd, int64_t offset)',
)
const munmap = libc.func('int munmap(void *at, size_t bytes)')
const mincore = libc.func('int mincore(void *at, size_t bytes, void *into)')
const madvise = libc.func('int madvise(void *at, size_t bytes, int advice)')
const memcpy = libc.func('void *memcpy(void *to, void *from, size_t bytes)')
const memset = libc.func('void *memset(void *at, int byte, size_t bytes)')
const sysconf = libc.func('long sysconf(int name)')
const socket = libc.func('int socket(int domain, int type, int protocol)')
const connect = libc.func('int connect(int fd, void *address, uint32_t bytes)')
const sendmsg = libc.func('long sendmsg(int fd, void *message, int flags)')

const O_RDWR = 0o2
const O_NONBLOCK = 0o4000
const O_CLOEXEC = 0o2000000
const PROT_READ_WRITE = 0x1 | 0x2
const MAP_PRIVATE_ANONYMOUS_NORESERVE = 0x02 | 0x20 | 0x4000
const MAP_FAILED = 0xffff_ffff_ffff_ffffn
const MADV_DONTNEED = 4
const _SC_PAGESIZE = 30
const AF_UNIX = 1
const SOCK_STREAM = 1
const SOCK_CLOEXEC = O_CLOEXEC
const SOL_SOCKET = 1
const SCM_RIGHTS = 1
const MSG_NOSIGNAL = 0x4000

const SYS_userfaultfd = arch === 'arm64' ? 282 : 323
const UFFD_USER_MODE_ONLY = 1
const UFFD_API = 0xaan

// _IOC(direction, 0xAA, number, size): the same bits on x64 and arm64. The direction of WAKE and
// UNREGISTER is backwards in the header, and part of the interface.
const IOC_NONE = 0
const IOC_READ = 2
const IOC_READ_WRITE = 3
const ioc = (direction: number, number: number, bytes: number) =>
  ((direction << 30) | (bytes << 16) | (0xaa << 8) | number) >>> 0

const USERFAULTFD_IOC_NEW = ioc(IOC_NONE, 0x00, 0)
const _UFFDIO_REGISTER = 0x00
const _UFFDIO_UNREGISTER = 0x01
const _UFFDIO_WAKE = 0x02
const _UFFDIO_COPY = 0x03
const _UFFDIO_ZEROPAGE = 0x04
const _UFFDIO_API = 0x3f

const UFFDIO_REGISTER_MODE_MISSING = 1n
/** The same bit in the `mode` of UFFDIO_COPY and UFFDIO_ZEROPAGE. */
const MODE_DONTWAKE = 1n

const UFFD_EVENT_PAGEFAULT = 0x12
const UFFD_EVENT_REMOVE = 0x15
const UFFD_PAGEFAULT_FLAG_WRITE = 1n
const UFFD_MSG_BYTES = 32

export const UFFD_FEATURE_EVENT_REMOVE = 1n << 3n
/** The ioctls that a registered range of anonymous memory must have, as bits by number. */
export const MISSING_IOCTLS =
  (1n << BigInt(_UFFDIO_WAKE)) | (1n << BigInt(_UFFDIO_COPY)) | (1n << BigInt(_UFFDIO_ZEROPAGE))

export const pageSize: number = sysconf(_SC_PAGESIZE)

export type UffdMessage =
  | { readonly event: 'pagefault'; readonly address: bigint; readonly write: boolean }
  /** `end` is exclusive. */
  | { readonly event: 'remove'; readonly start: bigint; readonly end: bigint }
  | { readonly event: 'other'; readonly code: number }

/**
 * Result of UFFDIO_COPY or UFFDIO_ZEROPAGE.
 *
 * `copied` is the kernel's own field with its sign: bytes when positive, a negated errno when the
 * kernel gave up before the first page, 0 when it refused the arguments and wrote nothing.
 * `errno` is that of the ioctl, 0 for success.
 */
export interface InstallOutcome {
  readonly copied: number
  readonly errno: number
}

export interface InstallOptions {
  /** Wake the threads that wait in the range. @default true */
  readonly wake?: boolean
}

/** Source of the descriptor, from the most privileged to the least. */
export type UffdOrigin = '/dev/userfaultfd' | 'syscall' | 'syscall, user mode only'

export class KoffiUffd {
  readonly fd: number
  readonly origin: UffdOrigin
  #open = true
  #waiting: ReturnType<typeof koffi.node.poll> | undefined

  private constructor(fd: number, origin: UffdOrigin) {
    this.fd = fd
    this.origin = origin
  }

  /** Fails with the error of the last and least demanding source. */
  static open(): KoffiUffd {
    const flags = O_CLOEXEC | O_NONBLOCK
    const device = open('/dev/userfaultfd', O_RDWR | O_CLOEXEC)
    if (device >= 0) {
      const fd: number = ioctl(device, USERFAULTFD_IOC_NEW, 'ulong', flags)
      close(device)
      if (fd >= 0) return new KoffiUffd(fd, '/dev/userfaultfd')
    }
    const fd: number = syscall(SYS_userfaultfd, 'int', flags)
    if (fd >= 0) return new KoffiUffd(fd, 'syscall')
    // Needs no privilege, and is enough where only user-mode instructions touch the memory.
    const userFd: number = syscall(SYS_userfaultfd, 'int', flags | UFFD_USER_MODE_ONLY)
    if (userFd >= 0) return new KoffiUffd(userFd, 'syscall, user mode only')
    return fail('userfaultfd')
  }

  /** Why this machine gives no userfaultfd; `undefined` if it does. */
  static unavailable(): string | undefined {
    try {
      KoffiUffd.open().close()
      return undefined
    } catch (error) {
      return `no userfaultfd here, not even for user-mode faults: ${(error as Error).message}`
    }
  }

  /** The handshake. Returns every feature that the kernel has, not only those asked for. */
  api(features = 0n): { features: bigint; ioctls: bigint } {
    const words = BigUint64Array.of(UFFD_API, features, 0n)
    this.#ioctl('UFFDIO_API', IOC_READ_WRITE, _UFFDIO_API, words)
    return { features: words[1]!, ioctls: words[2]! }
  }

  /** Registers for missing pages. Returns the ioctls of the range, as bits by number. */
  register(start: bigint, bytes: number): bigint {
    const words = BigUint64Array.of(start, BigInt(bytes), UFFDIO_REGISTER_MODE_MISSING, 0n)
    this.#ioctl('UFFDIO_REGISTER', IOC_READ_WRITE, _UFFDIO_REGISTER, words)
    return words[3]!
  }

  /** Wakes whoever waits in the range, too: the kernel fills their pages with zeros. */
  unregister(start: bigint, bytes: number): void {
    const words = BigUint64Array.of(start, BigInt(bytes))
    this.#ioctl('UFFDIO_UNREGISTER', IOC_READ, _UFFDIO_UNREGISTER, words)
  }

  wake(start: bigint, bytes = pageSize): void {
    const words = BigUint64Array.of(start, BigInt(bytes))
    this.#ioctl('UFFDIO_WAKE', IOC_READ, _UFFDIO_WAKE, words)
  }

  copy(to: bigint, from: Uint8Array, { wake = true }: InstallOptions = {}): InstallOutcome {
    const mode = wake ? 0n : MODE_DONTWAKE
    const words = BigUint64Array.of(to, koffi.address(from), BigInt(from.byteLength), mode, 0n)
    return this.#install(_UFFDIO_COPY, words)
  }

  zeropage(at: bigint, bytes = pageSize, { wake = true }: InstallOptions = {}): InstallOutcome {
    const words = BigUint64Array.of(at, BigInt(bytes), wake ? 0n : MODE_DONTWAKE, 0n)
    return this.#install(_UFFDIO_ZEROPAGE, words)
  }

  /** Resolves when a message can be read, and reads none. One caller at a time. */
  readable(): Promise<void> {
    return new Promise((resolve) => {
      this.#waiting = koffi.node.poll(this.fd, { readable: true }, () => {
        this.#stopWaiting()
        resolve()
      })
    })
  }

  /** Every message that is queued; none when there is none. */
  readEvents(): UffdMessage[] {
    const buffer = Buffer.alloc(16 * UFFD_MSG_BYTES)
    const messages: UffdMessage[] = []
    for (;;) {
      const bytes: number = read(this.fd, buffer, buffer.length)
      if (bytes < 0) return koffi.errno() === koffi.os.errno.EAGAIN ? messages : fail('read')
      for (let at = 0; at < bytes; at += UFFD_MSG_BYTES) messages.push(decode(buffer, at))
    }
  }

  /** Waits for messages and reads them. */
  async nextEvents(): Promise<UffdMessage[]> {
    await this.readable()
    return this.readEvents()
  }

  /** Threads that wait for a page: `unread` of them with a message that nobody has read yet. */
  waiters(): { unread: number; total: number } {
    const info = readFileSync(`/proc/self/fdinfo/${this.fd}`, 'latin1')
    const count = (name: string) => Number(new RegExp(`^${name}:\\t(\\d+)$`, 'm').exec(info)?.[1])
    return { unread: count('pending'), total: count('total') }
  }

  /** The kernel unregisters every range when nobody else holds the descriptor. Idempotent. */
  close(): void {
    if (!this.#open) return
    this.#open = false
    this.#stopWaiting()
    close(this.fd)
  }

  #stopWaiting(): void {
    this.#waiting?.close()
    this.#waiting = undefined
  }

  #ioctl(name: string, direction: number, number: number, words: BigUint64Array): void {
    if (ioctl(this.fd, ioc(direction, number, words.byteLength), 'void *', words) < 0) fail(name)
  }

  /** For the two structures whose last word is the signed answer. */
  #install(number: number, words: BigUint64Array): InstallOutcome {
    const request = ioc(IOC_READ_WRITE, number, words.byteLength)
    const failed = ioctl(this.fd, request, 'void *', words) < 0
    const errno = failed ? koffi.errno() : 0
    return { copied: Number(BigInt.asIntN(64, words.at(-1)!)), errno }
  }
}

/**
 * Anonymous memory whose pages are touched only by threads of libuv's pool: a thread that touches a
 * missing page waits until the page is served, perhaps by the JavaScript thread. The pool has four
 * threads, so at most three touches may wait.
 */
export class AnonymousMemory {
  readonly address: bigint
  readonly size: number
  readonly #calls = new Set<Promise<unknown>>()

  private constructor(address: bigint, size: number) {
    this.address = address
    this.size = size
  }

  static map(pages: number): AnonymousMemory {
    const size = pages * pageSize
    const address: bigint = mmap(
      null,
      size,
      PROT_READ_WRITE,
      MAP_PRIVATE_ANONYMOUS_NORESERVE,
      -1,
      0,
    )
    return address === MAP_FAILED ? fail('mmap') : new AnonymousMemory(address, size)
  }

  /** The address of a page. */
  at(page: number): bigint {
    return this.address + BigInt(page) * BigInt(pageSize)
  }

  async read(page: number, pages = 1): Promise<Buffer> {
    const bytes = Buffer.alloc(pages * pageSize)
    await this.#onPoolThread(memcpy, bytes, this.at(page), bytes.length)
    return bytes
  }

  /** Sets the first byte of a page. */
  async write(page: number, byte: number): Promise<void> {
    await this.#onPoolThread(memset, this.at(page), byte, 1)
  }

  /** Gives pages back, as a balloon does. Waits until UFFD_EVENT_REMOVE is read, if it is on. */
  async discard(page: number, pages = 1): Promise<void> {
    await this.#onPoolThread(madvise, this.at(page), pages * pageSize, MADV_DONTNEED)
  }

  /** The pages that are in memory. Touches none. */
  resident(): number[] {
    const flags = Buffer.alloc(this.size / pageSize)
    if (mincore(this.address, this.size, flags) < 0) fail('mincore')
    return [...flags.keys()].filter((page) => flags[page]! & 1)
  }

  /** Waits for every touch to end, so that none meets a hole. */
  async unmap(): Promise<void> {
    await Promise.allSettled(this.#calls)
    munmap(this.address, this.size)
  }

  #onPoolThread(call: typeof memcpy, ...args: readonly unknown[]): Promise<void> {
    const done = new Promise<void>((resolve, reject) => {
      call.async(...args, (error: unknown, result: number | bigint) => {
        if (error) reject(error)
        else if (result === -1) reject(systemError(call.info.name))
        else resolve()
      })
    })
    this.#calls.add(done)
    const forget = () => this.#calls.delete(done)
    done.then(forget, forget)
    return done
  }
}

/** A guest memory region as a VMM announces it: a mapping, and where its bytes are in the file. */
export interface AnnouncedRegion {
  readonly memory: AnonymousMemory
  readonly offset: number
}

/**
 * Firecracker's side of the handshake: one message, a JSON array with the uffd beside it. Like
 * Firecracker since 1.12 it keeps the socket open; the caller closes it by the function returned.
 */
export function sendUffd(
  socketPath: string,
  uffd: KoffiUffd,
  regions: readonly AnnouncedRegion[],
): () => void {
  const body = Buffer.from(
    JSON.stringify(
      regions.map(({ memory, offset }) => ({
        base_host_virt_addr: Number(memory.address),
        size: memory.size,
        offset,
        page_size: pageSize,
        // In bytes, whatever its name says.
        page_size_kib: pageSize,
      })),
    ),
  )
  const sockaddr = Buffer.alloc(110)
  sockaddr.writeUInt16LE(AF_UNIX, 0)
  sockaddr.write(socketPath, 2, 107)

  // struct cmsghdr and one int, padded to CMSG_SPACE; cmsg_len counts no padding.
  const control = Buffer.alloc(24)
  control.writeBigUInt64LE(20n, 0)
  control.writeInt32LE(SOL_SOCKET, 8)
  control.writeInt32LE(SCM_RIGHTS, 12)
  control.writeInt32LE(uffd.fd, 16)

  const iovec = BigUint64Array.of(koffi.address(body), BigInt(body.length))
  const msghdr = BigUint64Array.of(
    0n, // msg_name
    0n, // msg_namelen
    koffi.address(iovec),
    1n,
    koffi.address(control),
    BigInt(control.length),
    0n, // msg_flags
  )

  const fd: number = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)
  if (fd < 0) fail('socket')
  try {
    if (connect(fd, sockaddr, sockaddr.length) < 0) fail('connect')
    if (sendmsg(fd, msghdr, MSG_NOSIGNAL) !== body.length) fail('sendmsg')
  } catch (error) {
    close(fd)
    throw error
  }
  return () => void close(fd)
}

/** struct uffd_msg: the event in its first byte, three words of arguments from byte 8. */
function decode(buffer: Buffer, at: number): UffdMessage {
  const code = buffer.readUInt8(at)
  const first = buffer.readBigUInt64LE(at + 8)
  const second = buffer.readBigUInt64LE(at + 16)
  switch (code) {
    case UFFD_EVENT_PAGEFAULT:
      return {
        event: 'pagefault',
        address: second,
        write: (first & UFFD_PAGEFAULT_FLAG_WRITE) !== 0n,
      }
    case UFFD_EVENT_REMOVE:
      return { event: 'remove', start: first, end: second }
    default:
      return { event: 'other', code }
  }
}

function systemError(call: string): Error {
  return new Error(`${call}: ${getSystemErrorName(-koffi.errno())}`)
}

function fail(call: string): never {
  throw systemError(call)
}
