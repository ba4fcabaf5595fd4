import type { Entry } from '../page-data.js'
import { element, table } from './dom.js'
import { entryColor, onTheme } from './theme.js'

/** An entry with the letter and the color that stand for it everywhere on the page. */
export interface Named<E extends Entry = Entry> {
  readonly entry: E
  readonly letter: string
  /** Place among all entries, which chooses its color and its dashes. */
  readonly place: number
}

export function swatch(color: () => string): HTMLElement {
  const mark = element('i', { class: 'swatch', 'aria-hidden': 'true' })
  const paint = () => {
    mark.style.background = color()
  }
  paint()
  onTheme(paint)
  return mark
}

/** Letter, color and name of an entry. */
export const nameOf = ({ entry, letter, place }: Named): HTMLElement =>
  element(
    'span',
    { class: 'name' },
    swatch(() => entryColor(place)),
    element('b', {}, letter),
    ` ${entry.name}`,
  )

export const sideBySide = (figures: readonly HTMLElement[]): HTMLElement =>
  element('div', { class: figures.length > 1 ? 'side-by-side' : '' }, ...figures)

/** A row of a table of figures: a value of each entry, as text or as a number. */
export interface Row<E> {
  readonly name: string
  readonly value: (entry: E) => string | number | undefined
  readonly format: (value: never) => string
}

export function row<E, V extends string | number>(
  name: string,
  value: (entry: E) => V | undefined,
  format: (value: V) => string = String,
): Row<E> {
  return { name, value, format }
}

/** Figures of entries, a column each; later columns also as a ratio to the first. */
export function figures<E extends Entry>(
  entries: readonly Named<E>[],
  rows: readonly (Row<E> | false)[],
): HTMLElement {
  const cells = rows.flatMap((row) => {
    if (!row) return []
    const values = entries.map(({ entry }) => row.value(entry))
    if (values.every((value) => value === undefined)) return []
    return [[row.name, ...values.map((value, i) => cell(row, value, i === 0 ? value : values[0]))]]
  })
  if (entries.length > 1) return table(['', ...entries.map(nameOf)], cells, 'Figures')
  const half = Math.ceil(cells.length / 2)
  const halves = [cells.slice(0, half), cells.slice(half)]
  return sideBySide(halves.map((rows) => table([], rows)))
}

function cell(
  row: Row<never>,
  value: string | number | undefined,
  first: string | number | undefined,
): string {
  if (value === undefined) return '–'
  const text = row.format(value as never)
  if (typeof value !== 'number' || typeof first !== 'number' || value === first) return text
  if (first === 0 || value === 0) return text
  return `${text} (×\u00a0${Number((value / first).toPrecision(3))})`
}
