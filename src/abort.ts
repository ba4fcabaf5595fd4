type Listener = (reason: unknown) => void

/** Listeners by signal, with the removal of the event listener that calls them. */
const registry = new WeakMap<
  AbortSignal,
  { readonly listeners: Set<Listener>; readonly stop: () => void }
>()

/**
 * Calls `listener` with the reason when the signal aborts. All listeners share one event listener:
 * Node takes more than ten on a signal for a leak, and many sessions may have one signal.
 *
 * @returns a function that removes the listener.
 */
export function onAbort(signal: AbortSignal | undefined, listener: Listener): () => void {
  if (!signal) return () => {}
  const { listeners, stop } = registry.get(signal) ?? startListening(signal)
  // A separate entry, since the same function may be passed twice.
  const entry: Listener = (reason) => listener(reason)
  listeners.add(entry)
  return () => {
    if (listeners.delete(entry) && listeners.size === 0) stop()
  }
}

function startListening(signal: AbortSignal) {
  const listeners = new Set<Listener>()
  const onEvent = () => {
    for (const listener of listeners) listener(signal.reason)
  }
  const stop = () => {
    signal.removeEventListener('abort', onEvent)
    registry.delete(signal)
  }
  signal.addEventListener('abort', onEvent, { once: true })
  const started = { listeners, stop }
  registry.set(signal, started)
  return started
}

/**
 * The result of `work`, or the reason of the first signal that aborts before it. A result that comes
 * later goes to `discard`.
 */
export async function unlessAborted<T>(
  work: Promise<T>,
  signals: readonly (AbortSignal | undefined)[],
  discard: (late: T) => void,
): Promise<T> {
  const removals: (() => void)[] = []
  const aborted = new Promise<never>((_, reject) => {
    for (const signal of signals) removals.push(onAbort(signal, reject))
  })
  try {
    return await Promise.race([work, aborted])
  } catch (error) {
    work.then(discard, () => {})
    throw error
  } finally {
    for (const remove of removals) remove()
  }
}
