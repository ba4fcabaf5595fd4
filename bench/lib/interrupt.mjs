// @ts-check

/**
 * An AbortSignal for the first Ctrl-C or SIGTERM, so that the run can clean up. The second one ends
 * the process.
 *
 * The listeners stay: without one, reap-trace would assume that nobody handles the signal, and end
 * the process together with its sessions.
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
