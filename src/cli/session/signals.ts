const ENDING = ['SIGTERM', 'SIGHUP'] as const

/** Signals of the user as promises. */
export class Signals {
  /** Number of times that Ctrl-C was pressed, and that it was handled. */
  #interrupts = 0
  #answered = 0
  readonly #waiting: { readonly count: number; readonly resolve: () => void }[] = []
  readonly #terminated: Promise<NodeJS.Signals>
  readonly #dispose: () => void

  constructor() {
    const onInterrupt = () => {
      this.#interrupts++
      for (const { count, resolve } of this.#waiting) if (count <= this.#interrupts) resolve()
    }
    let onEnd: (signal: NodeJS.Signals) => void = () => {}
    this.#terminated = new Promise((resolve) => {
      onEnd = resolve
    })
    process.on('SIGINT', onInterrupt)
    for (const signal of ENDING) process.on(signal, onEnd)
    this.#dispose = () => {
      process.off('SIGINT', onInterrupt)
      for (const signal of ENDING) process.off(signal, onEnd)
    }
  }

  get wasInterrupted(): boolean {
    return this.#interrupts > 0
  }

  /** Resolves at the next unhandled Ctrl-C, which may precede the call. */
  nextInterrupt(): Promise<void> {
    const count = this.#answered + 1
    if (count <= this.#interrupts) return Promise.resolve()
    return new Promise((resolve) => this.#waiting.push({ count, resolve }))
  }

  /** Marks the next Ctrl-C as handled. */
  answerInterrupt(): void {
    this.#answered++
  }

  /** Resolves at SIGTERM or SIGHUP. */
  get terminated(): Promise<NodeJS.Signals> {
    return this.#terminated
  }

  /** Resolves at the next unhandled Ctrl-C, SIGTERM or SIGHUP. */
  next(): Promise<NodeJS.Signals> {
    return Promise.race([this.nextInterrupt().then(() => 'SIGINT' as const), this.#terminated])
  }

  /** Restores Node's default handling of the signals. */
  dispose(): void {
    this.#dispose()
  }
}

/** An AbortSignal that aborts at any of these signals, with the signal's name as its reason. */
export function abortOnSignal(signals: Signals): AbortSignal {
  const controller = new AbortController()
  signals.next().then((signal) => controller.abort(signal))
  return controller.signal
}
