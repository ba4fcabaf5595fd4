const dark = window.matchMedia('(prefers-color-scheme: dark)')

/** The value of a custom property of style.css, in the current color scheme. */
export const color = (name: string): string =>
  getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim()

/** Calls `draw` whenever the color scheme changes. */
export const onTheme = (draw: () => void): void => dark.addEventListener('change', draw)

/** Color of an entry, by its place in the report. */
export const entryColor = (place: number): string => color(`entry-${place % 4}`)

/** Dashes that tell the lines of entries apart without color. */
export const entryDash = (place: number): number[] =>
  [[], [8, 4], [2, 3], [10, 3, 2, 3]][place % 4]!

// Viridis: its lightness rises evenly, so that order stays readable in gray. Each end is cut where
// it would be lost in the background of one scheme.
const STOPS = [
  [68, 1, 84],
  [71, 44, 122],
  [59, 81, 139],
  [44, 113, 142],
  [33, 144, 141],
  [39, 173, 129],
  [92, 200, 99],
  [170, 220, 50],
  [253, 231, 37],
] as const

/** Color of a place in an order, from 0 (first) to 1 (last). */
export function orderColor(place: number): string {
  const [from, to] = dark.matches ? [0.22, 1] : [0, 0.88]
  const at = (from + (to - from) * place) * (STOPS.length - 1)
  const low = Math.min(STOPS.length - 2, Math.floor(at))
  const mixed = STOPS[low]!.map((value, i) =>
    Math.round(value + (STOPS[low + 1]![i]! - value) * (at - low)),
  )
  return `rgb(${mixed.join(' ')})`
}
