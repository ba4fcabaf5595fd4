// @ts-check

/**
 * Warnings of a measured restore: if it continued without its working set, it is not a sample of
 * its arm.
 */
export class Warnings {
  /** @type {Error | undefined} */
  #first

  /** @param {{ readonly type: string, readonly error?: Error }} event */
  onEvent = ({ type, error }) => {
    if (type === 'warning') this.#first ??= error
  }

  /** @param {{ readonly complete: boolean }} result of its prefetch */
  expectComplete({ complete }) {
    if (this.#first) throw this.#first
    if (!complete) throw new Error('a prefetch ended before its end')
  }
}
