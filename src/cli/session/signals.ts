const ENDING = ['SIGTERM', 'SIGHUP'] as const

/** The user's signals as promises, so that a session can wait for whatever comes first. */
export class Signals {
  /** How often Ctrl-C was pressed, and how often somebody acted on it. */
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

  /** The first Ctrl-C that nobody has answered, which may have been pressed before the call. */
  nextInterrupt(): Promise<void> {
    const count = this.#answered + 1
    if (count <= this.#interrupts) return Promise.resolve()
    return new Promise((resolve) => this.#waiting.push({ count, resolve }))
  }

  /** Says that the first unanswered Ctrl-C is acted on. */
  answerInterrupt(): void {
    this.#answered++
  }

  /** SIGTERM or SIGHUP. */
  get terminated(): Promise<NodeJS.Signals> {
    return this.#terminated
  }

  /** Gives the signals back to Node's own handling. */
  dispose(): void {
    this.#dispose()
  }
}

/** An AbortSignal for work that any of these signals ends; its reason is the signal's name. */
export function abortOnSignal(signals: Signals): AbortSignal {
  const controller = new AbortController()
  signals.nextInterrupt().then(() => controller.abort('SIGINT'))
  signals.terminated.then((signal) => controller.abort(signal))
  return controller.signal
}
