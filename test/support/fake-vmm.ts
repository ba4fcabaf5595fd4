import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { open } from 'node:fs/promises'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'

const BINARY = fileURLToPath(new URL('../../build/Release/reap-guest', import.meta.url))
const DEFAULT_TIMEOUT_MS = 40_000

export interface Answer {
  readonly ok: boolean
  readonly error?: string
  /** Negative, as in Node's own system errors. */
  readonly errno?: number
}

export interface Region<Address = bigint> {
  readonly baseAddress: Address
  readonly size: number
  readonly offset: number
}

export interface MapAnswer<Address = bigint> extends Answer {
  readonly regions: readonly Region<Address>[]
  readonly pages: number
  readonly userModeOnly: boolean
}

/** Deviations from Firecracker's behaviour. */
export interface HandshakeOptions {
  keys?: 'none' | 'kib' | 'page_size' | 'both'
  /** Add keys that no reader knows, with nested values. */
  extra?: boolean
  guest_memfd?: boolean
  fds?: number
  'wrong-fd'?: boolean
  tweak?: 'overlap' | 'gap' | 'odd-size' | 'mixed-page' | 'unaligned' | 'too-short' | 'too-long'
  /** Send this instead of the JSON. */
  raw?: string | Uint8Array
  /** Pad the message with spaces to this many bytes. */
  pad?: number
  /** Send this many pieces, the descriptors with the first. */
  pieces?: number
  /** Send only this many bytes, then close the writing side. */
  truncate?: number
  /** Connect and send nothing. */
  hold?: boolean
  /** Close the socket after sending, as Firecracker did before 1.12. */
  close?: boolean
  'drop-uffd'?: boolean
}

export interface HandshakeAnswer extends Answer {
  readonly sentBytes: number
  readonly totalBytes: number
  /** 0 when everything was sent; -EPIPE when the other side had closed. */
  readonly sendErrno: number
}

export interface Expected {
  /** Pages that must be zero: numbers, or ranges with both ends included. */
  removed?: readonly (number | readonly [first: number, last: number])[]
  /** The first byte of pages that the guest wrote. */
  written?: Readonly<Record<number, number>>
}

export interface VerifyAnswer extends Answer {
  /** The first few pages whose content is wrong. */
  readonly wrong: readonly number[]
  readonly wrongCount: number
  readonly pages: number
}

export interface ReadAnswer extends Answer {
  /** See {@link pageDigest}. */
  readonly digests: readonly string[]
  readonly zero: readonly boolean[]
}

export interface PresentAnswer extends Answer {
  readonly count: number
  readonly runs: readonly (readonly [first: number, count: number])[]
}

export interface RequestAnswer extends Answer {
  /** Digest of every byte that the request read: equal responses mean equal memory. */
  readonly response: string
  readonly us: number
}

export interface ExitStatus {
  readonly code: number | null
  readonly signal: NodeJS.Signals | null
}

interface Pending {
  resolve(answer: Answer): void
  reject(error: Error): void
}

/**
 * A VMM in a separate process (`native/guest`), which maps memory, sends the handshake and touches
 * pages on command.
 *
 * One thread answers the commands in order, and may wait for a page forever: run a command that is
 * to wait in the background, with {@link bg}. Methods reject when the command failed; {@link send}
 * resolves with its answer instead.
 */
export class FakeVmm {
  readonly pid: number
  /** Resolves when the process is gone, and never rejects. */
  readonly exited: Promise<ExitStatus>
  readonly #child: ChildProcess
  readonly #pending: Pending[] = []
  #stderr = ''
  #ended = false

  static async start(
    options: { uid?: number; binary?: string; env?: NodeJS.ProcessEnv } = {},
  ): Promise<FakeVmm> {
    const { uid, binary = BINARY } = options
    const identity = uid === undefined ? {} : { uid, gid: uid }
    const env = { ...process.env, ...options.env }
    const child = spawn(binary, ['vmm'], { stdio: 'pipe', env, ...identity })
    await once(child, 'spawn')
    const vmm = new FakeVmm(child)
    try {
      await vmm.#expect('start', DEFAULT_TIMEOUT_MS)
    } catch (error) {
      await vmm.kill()
      throw error
    }
    return vmm
  }

  private constructor(child: ChildProcess) {
    this.#child = child
    this.pid = child.pid!
    this.exited = new Promise((resolve) => {
      child.once('close', (code, signal) => {
        this.#ended = true
        for (const pending of this.#pending.splice(0)) {
          pending.reject(new Error(`the VMM ended (${signal ?? code})${this.#said()}`))
        }
        resolve({ code, signal })
      })
    })
    createInterface({ input: child.stdout! }).on('line', (line) => {
      const answer = answerIn(line)
      if (answer) this.#pending.shift()?.resolve(answer)
    })
    child.stderr!.setEncoding('utf8').on('data', (text: string) => {
      this.#stderr += text
    })
    // The end of the VMM is reported by `exited`, not by a write that fails.
    child.stdin!.on('error', () => {})
  }

  /** Its stderr so far. */
  get stderr(): string {
    return this.#stderr
  }

  /** Sends one line; see `native/guest` for the commands. Rejects when no answer comes in time. */
  send<T extends Answer = Answer>(command: string, timeoutMs = DEFAULT_TIMEOUT_MS): Promise<T> {
    if (this.#ended) return Promise.reject(new Error(`${command}: the VMM ended${this.#said()}`))
    this.#child.stdin!.write(`${command}\n`)
    return this.#expect(command, timeoutMs) as Promise<T>
  }

  async map(
    pageSize: 4096 | 2097152,
    sizes: number | readonly number[],
    options: { order?: 'asc' | 'desc' | 'shuffle'; gap?: number } = {},
  ): Promise<MapAnswer> {
    const words = ['map', pageSize, [sizes].flat().join(','), ...toWords(options)]
    const { regions, ...others } = await this.#run<MapAnswer<string>>(words)
    return {
      ...others,
      regions: regions.map((region) => ({ ...region, baseAddress: BigInt(region.baseAddress) })),
    }
  }

  /**
   * Unmaps the memory and closes its userfaultfd and its connections: the process is ready to
   * {@link map} for another restore. Mappings of `map-file` stay.
   */
  drop(): Promise<Answer> {
    return this.#run(['drop'])
  }

  handshake(socketPath: string, options: HandshakeOptions = {}): Promise<HandshakeAnswer> {
    const { raw, ...others } = options
    const hex = raw === undefined ? {} : { raw: Buffer.from(raw).toString('hex') }
    return this.#run(['handshake', socketPath, ...toWords({ ...others, ...hex })])
  }

  /** Touches pages in this order, on a guest thread. */
  read(...pages: number[]): Promise<ReadAnswer> {
    return this.#run(['read', ...pages])
  }

  /** Stores the first byte of a page. */
  write(page: number, value: number): Promise<Answer> {
    return this.#run(['write', page, value])
  }

  /** Compares the whole memory with the memory file. */
  verify(memoryFile: string, expected: Expected = {}): Promise<VerifyAnswer> {
    return this.#run(['verify', memoryFile, ...expectedWords(expected)])
  }

  verifyPages(
    memoryFile: string,
    first: number,
    count: number,
    expected: Expected = {},
  ): Promise<VerifyAnswer> {
    return this.#run(['verify-pages', memoryFile, first, count, ...expectedWords(expected)])
  }

  /** Touches one page from many threads at the same moment. */
  async race(page: number, threads: number): Promise<readonly string[]> {
    return (await this.#run<ReadAnswer>(['race', page, threads])).digests
  }

  /** Touches and compares all pages from many threads, each in a different order. */
  sweep(
    threads: number,
    seed: number,
    memoryFile: string,
    options: Expected & { write?: boolean } = {},
  ): Promise<VerifyAnswer> {
    const { write, ...expected } = options
    const words = [...expectedWords(expected), ...toWords({ write })]
    return this.#run(['sweep', threads, seed, memoryFile, ...words])
  }

  /** Starts a command on a separate thread. */
  bg(name: string, command: string): Promise<Answer> {
    return this.#run(['bg', name, command])
  }

  /** The answer of a command in the background, or `undefined` when none comes in time. */
  async wait<T extends Answer = Answer>(
    name: string,
    timeoutMs = 30_000,
  ): Promise<(T & { done: true }) | undefined> {
    const answer = await this.send<T & { done?: boolean }>(
      `wait ${name} ${timeoutMs}`,
      timeoutMs + DEFAULT_TIMEOUT_MS,
    )
    if (answer.done === undefined) throw new Error(`wait ${name}: ${answer.error}`)
    return answer.done ? (answer as T & { done: true }) : undefined
  }

  /** Gives pages back; returns when the handler has read the event. */
  remove(first: number, count: number): Promise<Answer> {
    return this.#run(['remove', first, count])
  }

  /** The pages that are in memory, without touching any. */
  present(first: number, count: number): Promise<PresentAnswer> {
    return this.#run(['present', first, count])
  }

  unregister(first: number, count: number): Promise<Answer> {
    return this.#run(['unregister', first, count])
  }

  mprotect(first: number, count: number, protection: 'none' | 'rw'): Promise<Answer> {
    return this.#run(['mprotect', first, count, protection])
  }

  munmap(first: number, count: number): Promise<Answer> {
    return this.#run(['munmap', first, count])
  }

  async fds(): Promise<number> {
    return (await this.#run<Answer & { fds: number }>(['fds'])).fds
  }

  /** Restores the embedded guest behind a fault handler and runs one request. */
  invokeUffd(socketPath: string, memoryBytes: number, input: string): Promise<RequestAnswer> {
    return this.#run(['invoke uffd', socketPath, memoryBytes, input])
  }

  /** Restores the embedded guest from its memory file and runs one request. */
  invokeFile(memoryFile: string, input: string): Promise<RequestAnswer> {
    return this.#run(['invoke file', memoryFile, input])
  }

  /** Ends the process with this code. The commands `exit` and `crash` have no answer. */
  exit(code: number): Promise<ExitStatus> {
    this.#child.stdin!.write(`exit ${code}\n`)
    return this.exited
  }

  /** Kills the process, and waits for its end. */
  async kill(): Promise<void> {
    if (!this.#ended) this.#child.kill('SIGKILL')
    await this.exited
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.kill()
  }

  async #run<T extends Answer>(words: readonly (string | number)[]): Promise<T> {
    const command = words.join(' ')
    const answer = await this.send<T>(command)
    if (!answer.ok) {
      throw Object.assign(new Error(`${command}: ${answer.error}`), { errno: answer.errno })
    }
    return answer
  }

  /** A late answer still belongs to this command, so the command keeps its place in the queue. */
  #expect(command: string, timeoutMs: number): Promise<Answer> {
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => {
        reject(new Error(`${command}: no answer in ${timeoutMs} ms${this.#said()}`))
      }, timeoutMs)
      this.#pending.push({
        resolve(answer) {
          clearTimeout(timer)
          resolve(answer)
        },
        reject(error) {
          clearTimeout(timer)
          reject(new Error(`${command}: ${error.message}`))
        },
      })
    })
  }

  #said(): string {
    return this.#stderr === '' ? '' : `; it said: ${this.#stderr.trim()}`
  }
}

/** The answer in a line; `undefined` if the line is cut off, as that of a VMM that is killed. */
function answerIn(line: string): Answer | undefined {
  try {
    return JSON.parse(line)
  } catch {
    return undefined
  }
}

function toWords(options: object): string[] {
  return Object.entries(options)
    .filter(([, value]) => value !== undefined && value !== false)
    .map(([name, value]) => `${name}=${value === true ? 1 : value}`)
}

function expectedWords({ removed = [], written = {} }: Expected): string[] {
  const ranges = removed.map((range) => (typeof range === 'number' ? range : range.join('-')))
  const bytes = Object.entries(written).map(([page, value]) => `${page}:${value}`)
  return toWords({
    removed: ranges.length > 0 && ranges.join(','),
    written: bytes.length > 0 && bytes.join(','),
  })
}

/**
 * The digest of a page as the fake VMM computes it: FNV-1a, 32 bits, over the little-endian 32-bit
 * words of the page, as 8 hexadecimal digits.
 */
export function pageDigest(page: Uint8Array): string {
  const view = new DataView(page.buffer, page.byteOffset, page.byteLength)
  let digest = 0x811c9dc5
  for (let i = 0; i < page.byteLength; i += 4) {
    digest = Math.imul(digest ^ view.getUint32(i, true), 0x01000193)
  }
  return (digest >>> 0).toString(16).padStart(8, '0')
}

export type PageKind = 'data' | 'zeros' | 'hole'

/**
 * Writes a memory file of 4 KiB pages, always the same for the same arguments. All data pages
 * differ, even in their first word. Of the runs of pages, one in eight is a hole and one in eight is
 * written as zeros, unless `holes` is false.
 */
export async function makeMemoryFile(
  path: string,
  pages: number,
  { seed = 1, holes = true }: { seed?: number; holes?: boolean } = {},
): Promise<PageKind[]> {
  const random = xorshift(seed)
  const kinds: PageKind[] = []
  while (kinds.length < pages) {
    const kind = !holes ? 'data' : (['hole', 'zeros'] as const)[random() % 8]
    const run = Math.min(1 + (random() % 7), pages - kinds.length)
    for (let i = 0; i < run; i++) kinds.push(kind ?? 'data')
  }

  const file = await open(path, 'w', 0o600)
  try {
    await file.truncate(pages * 4096)
    for (let start = 0; start < pages; ) {
      let end = start
      while (end < pages && end - start < 256 && kinds[end] !== 'hole') end++
      if (end > start) {
        const words = new Uint32Array((end - start) * 1024)
        for (let page = start; page < end; page++) {
          if (kinds[page] !== 'data') continue
          const offset = (page - start) * 1024
          for (let i = 1; i < 1024; i++) words[offset + i] = random()
          words[offset] = page + 1
        }
        await file.write(new Uint8Array(words.buffer), 0, words.byteLength, start * 4096)
      }
      start = Math.max(end, start + 1)
    }
  } finally {
    await file.close()
  }
  return kinds
}

/** Random 32-bit numbers, the same for the same seed. */
export function xorshift(seed: number): () => number {
  let state = Math.imul(seed, 0x9e3779b1) | 1
  return () => {
    state ^= state << 13
    state ^= state >>> 17
    state ^= state << 5
    return state >>> 0
  }
}
