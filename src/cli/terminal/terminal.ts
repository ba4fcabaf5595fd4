import { styleText } from 'node:util'
import { describeError } from './failure.js'
import { forLocale } from './locale.js'

type Format = 'bold' | 'dim' | 'red' | 'yellow' | 'green' | 'cyan' | 'blue' | 'magenta'

export interface Sink {
  readonly isTTY?: boolean
  readonly columns?: number
  hasColors?(): boolean
  write(text: string): unknown
  on?(event: 'error', listener: (error: NodeJS.ErrnoException) => void): unknown
}

/** A line of a terminal that is drawn again and again until it is stopped. */
export interface LiveLine {
  stop(): void
}

const REDRAW_MS = 100
const CLEAR = '\r\x1b[2K'

/**
 * Everything that is printed. Results go to stdout, for people or, with `json`, as one object a
 * line; what is only of use to somebody who watches goes to stderr, when that is a terminal.
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
      // A VM depends on us: neither a reader that has seen enough (`| head`) nor a full disk ends us.
      sink.on?.('error', (error) => {
        if (error.code !== 'EPIPE') process.exitCode = 1
      })
    }
  }

  /** Columns of stdout, 80 when it is not a terminal, or one that says 0. */
  get columns(): number {
    return columnsOf(this.#stdout)
  }

  /** Whether somebody reads stderr as it is written. */
  get isWatched(): boolean {
    return this.#stderr.isTTY === true
  }

  /** Whether stdout takes colours: FORCE_COLOR decides, or it is a terminal and there is no NO_COLOR. */
  get hasColors(): boolean {
    return takesColors(this.#stdout)
  }

  /** Text in a style, or plain where stdout takes no colours. */
  style(format: Format, text: string): string {
    return paint(this.#stdout, format, text)
  }

  /** A line of the result for people. */
  print(text = ''): void {
    if (!this.json) this.#write(this.#stdout, `${forLocale(text)}\n`)
  }

  /** An object of the result for programs. */
  emit(object: object): void {
    if (this.json) this.#write(this.#stdout, `${JSON.stringify(object)}\n`)
  }

  /** What to do or what happens next, for somebody who watches. */
  note(text: string): void {
    if (this.isWatched)
      this.#write(this.#stderr, `${paint(this.#stderr, 'dim', forLocale(text))}\n`)
  }

  /** A sentence that must not get lost, whoever reads. */
  say(text: string): void {
    this.#write(this.#stderr, `${forLocale(text)}\n`)
  }

  /** A failure that does not end anything, and what follows from it. */
  warn(error: unknown, consequence: string): void {
    const text = describeError('warning', error, consequence)
    this.#write(this.#stderr, `${this.#mark(text, 'yellow')}\n`)
  }

  error(error: unknown): void {
    this.#write(this.#stderr, `${this.#mark(describeError('error', error), 'red')}\n`)
  }

  /** Shows what `render` says until it is stopped. One at a time; none where nobody watches. */
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
    // A line that wraps could not be cleared again.
    const text = forLocale(this.#render()).slice(0, columnsOf(this.#stderr) - 1)
    this.#stderr.write(`${CLEAR}${paint(this.#stderr, 'dim', text)}`)
    this.#drawn = true
  }

  #mark(text: string, format: Format): string {
    return text.replace(/^\w+:/, (word) => paint(this.#stderr, format, word))
  }
}

// A pseudo-terminal that nobody has sized says 0.
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
