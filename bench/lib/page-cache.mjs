import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { stat } from 'node:fs/promises'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { setTimeout as sleep } from 'node:timers/promises'
import { root } from './machine.mjs'

const PAGE = 4096
const EVICT_ATTEMPTS = 50
const EVICT_PAUSE_MS = 10
const WARM_ATTEMPTS = 5

/**
 * Puts files into the page cache and out of it, and looks whether that took, so that "cold" and
 * "warm" are states and not hopes. Works through `reap-guest`, which has mincore() and
 * posix_fadvise().
 */
export class PageCache {
  #child
  #answers

  static async open() {
    const child = spawn(join(root, 'build/Release/reap-guest'), ['vmm'], {
      stdio: ['pipe', 'pipe', 'ignore'],
      // Not in the terminal's group: a Ctrl-C is ours to handle. It ends with its stdin.
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

  /** `state` is `cold` (no page of the files is there) or `warm` (all are). Rejects when it fails. */
  async set(state, files) {
    for (const file of files) await (state === 'cold' ? this.#evict(file) : this.#warm(file))
  }

  /** Bytes of the file that are there, in whole pages. */
  async resident(file) {
    return (await this.#ask(`resident ${file}`)).resident * PAGE
  }

  async #evict(file) {
    // A page that is under I/O, or that an ending process still maps, stays for a moment.
    for (let attempt = 0; attempt < EVICT_ATTEMPTS; attempt++) {
      if ((await this.#ask(`evict ${file}`)).resident === 0) return
      await sleep(EVICT_PAUSE_MS)
    }
    throw new Error(
      `${file} cannot be evicted from the page cache: is it on tmpfs, or does another process map it?`,
    )
  }

  async #warm(file) {
    // Some file systems do not cache holes.
    const { resident, pages } = await this.#ask(`resident ${file}`)
    const wanted = Math.min((await stat(file)).blocks * 512, pages * PAGE)
    if (resident * PAGE >= wanted) return
    // A host that reclaims ahead of need may take pages back while others come in.
    for (let attempt = 0; attempt < WARM_ATTEMPTS; attempt++) {
      if ((await this.#ask(`warm ${file}`)).resident * PAGE >= wanted) return
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
