import type { StoreEvent } from '../../index.js'
import type { Terminal } from '../terminal/terminal.js'
import { formatBytes, formatCount, formatPlural, PAGE } from '../terminal/units.js'

type StoreEventOf<Type extends StoreEvent['type']> = Extract<StoreEvent, { type: Type }>

/** Prints what a restore has taught, as text or as JSON. */
export function reportLearned(event: StoreEventOf<'learned'>, terminal: Terminal): void {
  terminal.emit(event, event.atMs)
  if (event.written.length === 0) terminal.print('learned: saved, and no set changes')
  for (const { variant, pageCount, previousPageCount } of event.written) {
    const more = pageCount - (previousPageCount ?? 0)
    const change =
      previousPageCount === undefined
        ? 'the first one'
        : `${formatCount(Math.abs(more))} ${more < 0 ? 'fewer' : 'more'} than before`
    const size = `${formatPlural(pageCount, 'page')} (${formatBytes(pageCount * PAGE)})`
    terminal.print(`learned: wrote ${nameOf(variant)} of ${size}, ${change}`)
  }
}

/** Prints a change of what restores touch. */
export function reportDrift(event: StoreEventOf<'drift'>, terminal: Terminal): void {
  terminal.emit(event, event.atMs)
  terminal.say(`drift: ${describeDrift(event)}`)
}

/** Sentence for a drift. */
export function describeDrift({
  kind,
  variant,
}: Pick<StoreEventOf<'drift'>, 'kind' | 'variant'>): string {
  const of = variant === undefined ? '' : ` of ${JSON.stringify(variant)}`
  return kind === 'touches'
    ? `restores${of} touch pages that they hardly touched before; the store adapts its sets`
    : `restores${of} no longer touch many pages of their set; the store drops them`
}

const nameOf = (variant: string | undefined): string =>
  variant === undefined ? 'a set' : `a set for ${JSON.stringify(variant)}`
