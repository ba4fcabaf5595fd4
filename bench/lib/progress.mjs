const CLEAR = '\r\x1b[K'
const QUIET_MS = 15_000

/** Current activity, in one line of a terminal; elsewhere as an occasional line. */
export class Progress {
  #stream
  #lastAt = 0
  #drawn = false

  constructor(stream) {
    this.#stream = stream
  }

  /** Shows the finished `share`, from 0 to 1, and the remaining milliseconds if they are known. */
  say(text, share, leftMs) {
    const left = leftMs === undefined ? '' : `, ${this.#duration(leftMs)} left`
    const line =
      share === undefined
        ? text
        : `${String(Math.round(share * 100)).padStart(3)} %${left} · ${text}`
    if (this.#stream.isTTY) {
      this.#stream.write(`${CLEAR}${line.slice(0, (this.#stream.columns ?? 80) - 1)}`)
      this.#drawn = true
    } else if (Date.now() - this.#lastAt > QUIET_MS) {
      this.#stream.write(`${line}\n`)
      this.#lastAt = Date.now()
    }
  }

  /** Prints a permanent line. */
  note(text) {
    this.end()
    this.#stream.write(`${text}\n`)
  }

  end() {
    if (this.#drawn) this.#stream.write(CLEAR)
    this.#drawn = false
  }

  #duration(ms) {
    const seconds = Math.round(ms / 1000)
    return seconds < 100 ? `${seconds} s` : `${Math.round(seconds / 60)} min`
  }
}
