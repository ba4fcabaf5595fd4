// @ts-check

/**
 * A signal that the first Ctrl-C or SIGTERM aborts, so that what was started can be ended. The second one
 * ends the process.
 *
 * The listeners stay: with one that has removed itself, reap-trace would take it that nobody handles the
 * signal, and end the process with its own sessions.
 *
 * @returns {AbortSignal}
 */
export function abortOnInterrupt() {
  const interrupt = new AbortController()
  for (const name of ['SIGINT', 'SIGTERM']) {
    process.on(name, () => {
      if (interrupt.signal.aborted) process.exit(130)
      interrupt.abort(new Error(`ended by ${name}`))
    })
  }
  return interrupt.signal
}
