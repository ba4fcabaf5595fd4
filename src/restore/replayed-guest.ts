// The guest that calibrateHost() restores: it only touches pages.
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { createInterface } from 'node:readline'
import { nativePath } from '../binding/native-path.js'
import { ReapTraceError } from '../errors.js'
import { PAGE } from '../page.js'
import type { Vcpus } from './calibration.js'

/** Runs of pages in random order, spread evenly over the memory. */
export function scattered(count: number, run: number, memoryPages: number): Uint32Array {
  const random = numbers(count)
  const apart = memoryPages / (count / run)
  const runs = Array.from({ length: count / run }, (_, i) => i * apart)
  for (let i = runs.length - 1; i > 0; i--) {
    const j = Math.floor(random() * (i + 1))
    ;[runs[i], runs[j]] = [runs[j]!, runs[i]!]
  }
  return Uint32Array.from(
    runs.flatMap((first) => Array.from({ length: run }, (_, page) => first + page)),
  )
}

/** Mulberry32: the same pages on every host. */
function numbers(seed: number): () => number {
  let state = seed
  return () => {
    state = (state + 0x6d2b79f5) | 0
    let t = Math.imul(state ^ (state >>> 15), 1 | state)
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32
  }
}

/** Trace for reap-guest (native/guest/kvm_trace.h): one word per page, a share of them written. */
export function replayOf(pages: Uint32Array, memory: Buffer, writtenShare: number): Buffer {
  const bytes = Buffer.alloc(24 + pages.length * 16)
  const random = numbers(1)
  bytes.write('REAPKVM1', 'latin1')
  bytes.writeBigUInt64LE(BigInt(memory.length), 8)
  bytes.writeBigUInt64LE(BigInt(pages.length), 16)
  pages.forEach((page, i) => {
    const offset = page * PAGE + 8 * (i % (PAGE / 8))
    bytes.writeBigUInt64LE(BigInt(offset + (random() < writtenShare ? 1 : 0)), 24 + i * 16)
    memory.copy(bytes, 24 + i * 16 + 8, offset, offset + 8)
  })
  return bytes
}

/** Whether KVM can run reap-guest here. */
export const runsKvm = async (): Promise<boolean> => {
  const probe = spawn(nativePath('reap-guest'), ['kvm', '--probe'], { stdio: 'ignore' })
  const [code] = (await once(probe, 'close').catch(() => [1])) as [number | null]
  return code === 0
}

type ReplayEvent = { ok: boolean; event?: string; us?: number; wrong?: number; error?: string }

/** A guest that replays a trace, pauses before and after it, and exits with this process. */
export class ReplayedGuest {
  readonly #child: ChildProcess
  readonly #closed: Promise<unknown>
  readonly #lines: AsyncIterator<string>

  constructor(memoryFile: string, trace: string, kind: Vcpus, signal: AbortSignal | undefined) {
    const args = ['kvm', '--memory', memoryFile, '--trace', trace, '--pause', 'ready,done']
    // Threads fault in user mode, for which userfaultfd needs no privilege.
    if (kind === 'threads') args.push('--threads', '--user-mode-only')
    this.#child = spawn(nativePath('reap-guest'), args, {
      stdio: ['pipe', 'pipe', 'ignore'],
      ...(signal && { signal, killSignal: 'SIGKILL' }),
    })
    this.#child.on('error', () => {}) // an abort, or an end before its first line
    this.#child.stdin!.on('error', () => {})
    this.#closed = new Promise((resolve) => this.#child.once('close', resolve))
    this.#lines = createInterface({ input: this.#child.stdout! })[Symbol.asyncIterator]()
  }

  async event(name: string): Promise<{ us: number }> {
    for (;;) {
      const { value, done } = await this.#lines.next()
      const event: ReplayEvent = done ? { ok: false, error: 'it exited' } : JSON.parse(value)
      if (!event.ok || (event.wrong ?? 0) > 0) {
        throw new ReapTraceError(
          'ERR_CALIBRATION',
          `the guest that calibrates this host failed: ${event.error ?? 'wrong memory'}`,
          { hint: 'Run `reap-trace doctor` to check this machine.' },
        )
      }
      if (event.event === name) return { us: event.us ?? 0 }
    }
  }

  go(line: string): void {
    this.#child.stdin!.write(`${line}\n`)
  }

  async end(): Promise<void> {
    if (this.#child.exitCode === null && this.#child.signalCode === null)
      this.#child.kill('SIGKILL')
    await this.#closed
  }
}
