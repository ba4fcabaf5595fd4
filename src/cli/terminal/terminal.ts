import { styleText } from 'node:util'
import { dateOf, monotonicMs } from './clock.js'
import { describeError, errorFields, type Interrupted } from './failure.js'
import { forLocale } from './locale.js'

type Format = 'bold' | 'dim' | 'red' | 'yellow' | 'green' | 'cyan' | 'blue' | 'magenta'

export interface Sink {
  readonly isTTY?: boolean
  readonly columns?: number
  hasColors?(): boolean
  write(text: string): unknown
  on?(event: 'error', listener: (error: NodeJS.ErrnoException) => void): unknown
}

/** A line of a terminal that is redrawn until it is stopped. */
export interface LiveLine {
  stop(): void
}

/** Version of the objects of --json: incremented if a field is removed or changes its meaning. */
const FORMAT_VERSION = 1
const REDRAW_MS = 100
const CLEAR = '\r\x1b[2K'

/**
 * Output of the program. Results go to stdout, as text or, with `json`, as one object per line;
 * progress and notes go to stderr if it is a terminal.
 */
export class Terminal {
  readonly json: boolean
  readonly #stdout: Sink
  readonly #stderr: Sink
  #render: (() => string) | undefined
  #drawn = false

  constructor(options: { json: boolean; stdout?: Sink; stderr?: Sink }) {
    this.json = options.json
    this.#stdout = options.stdout ?? process.stdout
    this.#stderr = options.stderr ?? process.stderr
    for (const sink of [this.#stdout, this.#stderr]) {
      // A VM depends on this process: neither a closed pipe (`| head`) nor a full disk may end it.
      sink.on?.('error', (error) => {
        if (error.code === 'EPIPE') return
        process.exitCode = 1
        if (sink === this.#stdout) this.say(`the output cannot be written: ${error.message}`)
      })
    }
  }

  /** Number of columns of stdout; 80 if unknown. */
  get columns(): number {
    return columnsOf(this.#stdout)
  }

  /** Whether stderr is a terminal. */
  get isWatched(): boolean {
    return this.#stderr.isTTY === true
  }

  /**
   * Whether stdout gets colors: FORCE_COLOR decides, else it must be a color terminal without
   * NO_COLOR.
   */
  get hasColors(): boolean {
    return takesColors(this.#stdout)
  }

  /** Styled text, or plain text if stdout gets no colors. */
  style(format: Format, text: string): string {
    return paint(this.#stdout, format, text)
  }

  /** Prints a line of the result, unless `json`. */
  print(text = ''): void {
    if (!this.json) this.#write(this.#stdout, `${forLocale(text)}\n`)
  }

  /** Prints an object of the result or an event, if `json`, with its time on both clocks. */
  emit(object: object, atMs = monotonicMs()): void {
    if (!this.json) return
    const time = dateOf(atMs).toISOString()
    const line = { ...object, atMs, time, formatVersion: FORMAT_VERSION }
    this.#write(this.#stdout, `${JSON.stringify(line)}\n`)
  }

  /** Prints a note on stderr, if it is a terminal. */
  note(text: string): void {
    if (this.isWatched)
      this.#write(this.#stderr, `${paint(this.#stderr, 'dim', forLocale(text))}\n`)
  }

  /** Prints why a signal ends the program. */
  interrupted(error: Interrupted): void {
    this.emit({ type: 'error', error: errorFields(error) })
    this.say(error.message)
  }

  /** Prints a sentence on stderr in any case. */
  say(text: string): void {
    this.#write(this.#stderr, `${forLocale(text)}\n`)
  }

  /** Prints a failure that does not end the program, and its consequence. */
  warn(error: unknown, consequence: string): void {
    const text = describeError('warning', error, consequence)
    this.#write(this.#stderr, `${this.#mark(text, 'yellow')}\n`)
  }

  /** Prints a failure, also as an object if `json`. */
  error(error: unknown): void {
    this.emit({ type: 'error', error: errorFields(error) })
    this.#write(this.#stderr, `${this.#mark(describeError('error', error), 'red')}\n`)
  }

  /** Shows the result of `render` on a terminal until stopped. One line at a time. */
  live(render: () => string): LiveLine {
    if (!this.isWatched) return { stop() {} }
    this.#render = render
    this.#draw()
    const timer = setInterval(() => this.#draw(), REDRAW_MS)
    timer.unref()
    return {
      stop: () => {
        clearInterval(timer)
        if (this.#render !== render) return
        this.#clear()
        this.#render = undefined
      },
    }
  }

  #write(sink: Sink, text: string): void {
    this.#clear()
    sink.write(text)
    this.#draw()
  }

  #clear(): void {
    if (this.#drawn) this.#stderr.write(CLEAR)
    this.#drawn = false
  }

  #draw(): void {
    if (!this.#render) return
    // A line that wraps cannot be cleared.
    const text = forLocale(this.#render()).slice(0, columnsOf(this.#stderr) - 1)
    this.#stderr.write(`${CLEAR}${paint(this.#stderr, 'dim', text)}`)
    this.#drawn = true
  }

  #mark(text: string, format: Format): string {
    return text.replace(/^\w+:/, (word) => paint(this.#stderr, format, word))
  }
}

// A pseudo-terminal without a size has 0 columns.
const columnsOf = ({ columns }: Sink): number => columns || 80

function takesColors(sink: Sink): boolean {
  const { FORCE_COLOR } = process.env
  if (FORCE_COLOR !== undefined) return !['0', 'false'].includes(FORCE_COLOR)
  return sink.isTTY === true && sink.hasColors?.() === true
}

function paint(sink: Sink, format: Format, text: string): string {
  if (!takesColors(sink)) return text
  return styleText(format, text, { validateStream: false })
}
