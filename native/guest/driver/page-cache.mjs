import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { stat } from 'node:fs/promises'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { setTimeout as sleep } from 'node:timers/promises'
import { root } from './checkout.mjs'

const PAGE = 4096
const EVICT_ATTEMPTS = 50
const EVICT_PAUSE_MS = 10
const WARM_ATTEMPTS = 5
const HALVE_ATTEMPTS = 5
const BLOCK = 64 * 1024
/**
 * Share of a half-warm file's pages that is cached, give or take a block; less if holes are not
 * cached.
 */
const HALF = { least: 0.4, most: 0.52 }

/** Bytes of a file that every file system can cache: some do not cache holes. */
async function dataBytes(file) {
  const { blocks, size } = await stat(file)
  return Math.min(blocks * 512, Math.ceil(size / PAGE) * PAGE)
}

/**
 * Brings files into the page cache and evicts them, and verifies the result, so that "cold",
 * "half-warm" and "warm" are checked states. Uses `reap-guest` for mincore() and posix_fadvise().
 */
export class PageCache {
  #child
  #answers
  /** Files that were read sequentially, and not changed or evicted since. */
  #whole = new Set()

  static async open() {
    const child = spawn(join(root, 'build/Release/reap-guest'), ['vmm'], {
      stdio: ['pipe', 'pipe', 'ignore'],
      // Not in the terminal's process group: Ctrl-C is handled here. It exits when its stdin
      // closes.
      detached: true,
    })
    await once(child, 'spawn')
    const cache = new PageCache()
    cache.#child = child
    cache.#answers = createInterface({ input: child.stdout })[Symbol.asyncIterator]()
    await cache.#answers.next()
    return cache
  }

  async close() {
    if (this.#child.exitCode !== null || this.#child.signalCode !== null) return
    const exited = once(this.#child, 'exit')
    this.#child.kill('SIGKILL')
    await exited
  }

  /**
   * `state` is `cold` (no page of the files is there), `warm` (all are, read in one go and so in the
   * large folios that the file system makes of that) or `half-warm` (of each file a half, in blocks of
   * 64 KiB that `seed` chooses). Rejects when it fails.
   */
  async set(state, files, seed = 1) {
    for (const [i, file] of files.entries()) {
      if (state !== 'warm') this.#whole.delete(file)
      if (state === 'cold') await this.#evict(file)
      else if (state === 'half-warm') await this.#halve(file, seed * files.length + i)
      else if (state === 'warm') await this.#warm(file)
      else throw new TypeError(`Expected cold, half-warm or warm, got ${state}`)
    }
  }

  /** Cached bytes of the file, in whole pages. */
  async resident(file) {
    return (await this.#ask(`resident ${file}`)).resident * PAGE
  }

  async #evict(file) {
    // A page under I/O, or still mapped by an ending process, stays for a moment.
    for (let attempt = 0; attempt < EVICT_ATTEMPTS; attempt++) {
      if ((await this.#ask(`evict ${file}`)).resident === 0) return
      await sleep(EVICT_PAUSE_MS)
    }
    throw new Error(
      `${file} cannot be evicted from the page cache: is it on tmpfs, or does another process map it?`,
    )
  }

  async #halve(file, seed) {
    const data = await dataBytes(file)
    for (let attempt = 0; attempt < HALVE_ATTEMPTS; attempt++) {
      const { resident, pages } = await this.#ask(`halve ${file} ${seed}`)
      const least = data * HALF.least - BLOCK
      const most = pages * PAGE * HALF.most + BLOCK
      if (resident * PAGE >= least && resident * PAGE <= most) return
      // Large folios are evicted whole or not at all; reads in blocks do not create any.
      await this.#evict(file)
    }
    throw new Error(`a half of ${file} does not stay in the page cache, or more than that does`)
  }

  async #warm(file) {
    const wanted = await dataBytes(file)
    const { resident } = await this.#ask(`resident ${file}`)
    if (this.#whole.has(file) && resident * PAGE >= wanted) return
    // Pages that faults or a prefetch brought in may be in small folios, which cost more to map.
    await this.#evict(file).catch(() => {}) // pages that cannot be evicted stay cached
    // A host with proactive reclaim may evict pages while others are read.
    for (let attempt = 0; attempt < WARM_ATTEMPTS; attempt++) {
      if ((await this.#ask(`warm ${file}`)).resident * PAGE < wanted) continue
      this.#whole.add(file)
      return
    }
    throw new Error(`${file} does not stay in the page cache: this machine is short of memory`)
  }

  async #ask(command) {
    this.#child.stdin.write(`${command}\n`)
    const { value, done } = await this.#answers.next()
    if (done) throw new Error(`reap-guest ended at "${command}"`)
    const answer = JSON.parse(value)
    if (!answer.ok) throw new Error(`${command}: ${answer.error}`)
    return answer
  }
}
