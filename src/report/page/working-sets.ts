import {
  formatAddress,
  formatBytes,
  formatCount,
  formatDate,
  formatMs,
  formatPlural,
  formatShare,
  formatUs,
  PAGE,
} from '../format.js'
import type { SetEntry } from '../page-data.js'
import { drawBars, drawLines, upTo } from './charts.js'
import { element, figure, numbers, panel, table } from './dom.js'
import { figures, type Named, nameOf, row, sideBySide, swatch } from './entries.js'
import { drawPageMap, type MapPage } from './page-map.js'
import { color, entryColor, entryDash, onTheme, orderColor } from './theme.js'

/** Panels about working sets: figures, page maps, growth and run lengths. */
export function workingSetPanels(sets: readonly Named<SetEntry>[]): HTMLElement[] {
  return [
    figuresPanel(sets),
    ...(isPair(sets) ? [differencePanel(...sets)] : []),
    mapPanel(sets),
    growthPanel(sets),
    runLengthPanel(sets),
  ]
}

/** Whether there are two sets that can be of one snapshot. */
const isPair = (
  sets: readonly Named<SetEntry>[],
): sets is readonly [Named<SetEntry>, Named<SetEntry>] =>
  sets.length === 2 && sets[0]!.entry.summary.memoryBytes === sets[1]!.entry.summary.memoryBytes

/** Whether any touch has a time: a set that was made from page numbers has none. */
const hasTimes = ({ timesUs }: SetEntry): boolean => timesUs.some((time) => time > 0)

function figuresPanel(sets: readonly Named<SetEntry>[]): HTMLElement {
  const sorted = new Map(
    sets.map(({ entry }) => [entry, entry.timesUs.toSorted((a, b) => a - b)] as const),
  )
  const timeOf = (share: number) => (set: SetEntry) =>
    hasTimes(set) ? atShare(sorted.get(set)!, share) : undefined
  const hasDisks = sets.some(({ entry }) => entry.summary.disks)
  const content = figures(sets, [
    row('recorded', ({ summary }) => summary.file?.manifest.createdAt, formatDate),
    row('label', ({ summary }) => summary.file?.manifest.label),
    row('memory', ({ summary }) => summary.memoryBytes, formatBytes),
    row('page size', ({ summary }) => summary.pageSize, formatBytes),
    row('runs merged', ({ summary }) => summary.runCount, formatCount),
    row('pages of 4 KiB', ({ summary }) => summary.pageCount, formatCount),
    row('of these, zero pages', ({ summary }) => summary.file?.zeroPageCount, formatCount),
    row('size', ({ summary }) => summary.bytes, formatBytes),
    row('share of memory', ({ summary }) => summary.share, formatShare),
    row('extents', ({ summary }) => summary.extentCount, formatCount),
    row(
      'pages per extent',
      ({ summary: { pageCount, extentCount } }) =>
        extentCount === 0 ? undefined : pageCount / extentCount,
      (pages) => pages.toFixed(1),
    ),
    row('half touched by', timeOf(0.5), formatUs),
    row('90 % touched by', timeOf(0.9), formatUs),
    row('last touch', timeOf(1), formatUs),
    hasDisks &&
      row(
        'pages of disk images',
        ({ summary }) => summary.disks?.reduce((sum, disk) => sum + disk.pageCount, 0),
        formatCount,
      ),
  ])
  return panel(
    sets.length === 1 ? 'Working set' : 'Working sets',
    'Pages that the guest touched while it was recorded. Times count from the connection of the VMM.',
    content,
  )
}

/** Value below or at which this share of the sorted values is. */
const atShare = (sorted: readonly number[], share: number): number =>
  sorted[Math.ceil(share * sorted.length) - 1] ?? 0

/** The set's pages for a map, in 4 KiB pages. */
export function mapPages({ pages, summary }: SetEntry): MapPage[] {
  const step = summary.pageSize / PAGE
  const last = Math.max(1, pages.length - 1)
  return pages.map((page, rank) => ({ page: page * step, pageCount: step, place: rank / last }))
}

function mapPanel(sets: readonly Named<SetEntry>[]): HTMLElement {
  const maps = sets.map((named) => {
    const { entry } = named
    const { pages, timesUs } = entry
    const at = figure(
      nameOf(named),
      `Page map of ${named.entry.name}`,
      'Arrow keys move the cursor; with Shift, to the next page of the set',
    )
    const last = Math.max(1, pages.length - 1)
    const describe = (cell: readonly MapPage[]) => {
      const ranks = cell.map(({ place }) => Math.round(place * last))
      const first = ranks.reduce((min, rank) => Math.min(min, rank), Number.POSITIVE_INFINITY)
      const time = hasTimes(entry) ? ` at ${formatUs(timesUs[first]!)}` : ''
      return `touched as number ${formatCount(first + 1)} of ${formatCount(pages.length)}${time}`
    }
    drawPageMap(at, {
      memoryBytes: entry.summary.memoryBytes,
      pages: mapPages(entry),
      marks: [],
      describe,
    })
    at.root.append(numbers(rangeTable(entry)))
    return at.root
  })
  return panel(
    'Page map',
    'The guest’s memory from left to right and top to bottom. Color shows the order of the first touches; gray memory is not in the set.',
    orderLegend(),
    sideBySide(maps),
  )
}

/** Steps of the colors of a page map. */
export function orderLegend(): HTMLElement {
  const steps = Array.from({ length: 12 }, () => element('i'))
  const paint = () => {
    steps.forEach((step, i) => {
      step.style.background = orderColor(i / (steps.length - 1))
    })
  }
  paint()
  onTheme(paint)
  return element(
    'p',
    { class: 'legend' },
    'first touch ',
    element('span', { class: 'ramp', 'aria-hidden': 'true' }, ...steps),
    ' last touch',
  )
}

/** Number of ranges of the memory in tables. */
export const RANGES = 16

/** The page map as numbers: pages and their order in sixteenths of the memory. */
function rangeTable({ pages, summary }: SetEntry): HTMLElement {
  const { memoryBytes, pageSize } = summary
  const rangeBytes = memoryBytes / RANGES
  const ranks: number[][] = Array.from({ length: RANGES }, () => [])
  pages.forEach((page, rank) => {
    ranks[Math.floor((page * pageSize) / rangeBytes)]!.push(rank)
  })
  const rows = ranks.map((own, i) => {
    const sum = own.reduce((total, rank) => total + rank, 0)
    return [
      formatAddress(Math.round(i * rangeBytes)),
      formatCount((own.length * pageSize) / PAGE),
      formatShare((own.length * pageSize) / rangeBytes),
      own.length === 0 ? '–' : formatCount(own[0]! + 1),
      own.length === 0 ? '–' : formatShare(sum / own.length / Math.max(1, pages.length - 1)),
    ]
  })
  const head = [
    'from address',
    'pages',
    'of the range',
    'first touched as number',
    'mean place in the order',
  ]
  return table(head, rows, `Ranges of ${formatBytes(rangeBytes)}`)
}

function differencePanel(a: Named<SetEntry>, b: Named<SetEntry>): HTMLElement {
  const [first, second] = [a, b].map(({ entry }) => {
    const step = entry.summary.pageSize / PAGE
    return new Set(
      entry.pages.flatMap((page) => Array.from({ length: step }, (_, i) => page * step + i)),
    )
  }) as [Set<number>, Set<number>]
  const both = [...first].filter((page) => second.has(page)).length
  const onlyA = first.size - both
  const onlyB = second.size - both
  const parts = [
    { what: `only in ${a.letter}`, pages: onlyA, name: 'entry-0' },
    { what: 'in both', pages: both, name: 'shared' },
    { what: `only in ${b.letter}`, pages: onlyB, name: 'entry-1' },
  ]
  const total = Math.max(1, onlyA + both + onlyB)
  const rows = parts.map(({ what, pages }) => [
    what,
    formatCount(pages),
    formatBytes(pages * PAGE),
    formatShare(pages / total),
  ])
  const at = figure(
    element(
      'span',
      { class: 'names' },
      ...parts.map(({ what, name }) =>
        element(
          'span',
          {},
          swatch(() => color(name)),
          what,
        ),
      ),
    ),
    'Map of the difference',
    'Arrow keys move the cursor; with Shift, to the next page of a set',
  )
  const { memoryBytes } = a.entry.summary
  const content = () =>
    [...new Set([...first, ...second])].map((page) => {
      const [inA, inB] = [first.has(page), second.has(page)]
      return { page, pageCount: 1, place: inA && inB ? 0.5 : inA ? 0 : 1 }
    })
  drawPageMap(at, {
    memoryBytes,
    pages: content(),
    marks: [],
    fillOf: (place) => color(place === 0.5 ? 'shared' : place === 0 ? 'entry-0' : 'entry-1'),
    describe: (pages) => {
      const counts = [0, 0.5, 1].map((place) => pages.filter((page) => page.place === place).length)
      return parts
        .flatMap(({ what }, i) =>
          counts[i]! > 0 ? [`${formatPlural(counts[i]!, 'page')} ${what}`] : [],
        )
        .join(', ')
    },
  })
  return panel(
    'Difference',
    'Pages that both sets have, and pages of one alone. Two sets of one snapshot differ much if they were recorded from different work.',
    table(['', 'pages of 4 KiB', 'size', 'of all'], rows, 'Pages in common'),
    at.root,
  )
}

/** Points of a line, at most; a working set may have a million pages. */
const POINTS = 800

function growthPanel(sets: readonly Named<SetEntry>[]): HTMLElement {
  const help =
    'The number of pages touched so far, over time. A restore without a prefetch would wait most where the curve is steep.'
  const timed = sets.filter(({ entry }) => hasTimes(entry))
  const missing = sets
    .filter(({ entry }) => !hasTimes(entry))
    .map((named) =>
      element(
        'p',
        { class: 'note' },
        nameOf(named),
        ' has no times: it was made from page numbers alone.',
      ),
    )
  if (timed.length === 0) return panel('Growth', help, ...missing)
  const end = Math.max(...timed.map(({ entry }) => entry.summary.lastTouchUs)) / 1000
  const grown = timed.map((named) => {
    const { timesUs, summary } = named.entry
    const times = timesUs.map((us) => us / 1000).sort((a, b) => a - b)
    const step = Math.max(1, Math.ceil(times.length / POINTS))
    const kept = times.flatMap((_, i) => (i % step === 0 || i === times.length - 1 ? [i] : []))
    return {
      ...named,
      times,
      pagesEach: summary.pageSize / PAGE,
      line: {
        color: () => entryColor(named.place),
        dash: entryDash(named.place),
        x: [0, ...kept.map((i) => times[i]!), end],
        y: [0, ...kept.map((i) => ((i + 1) * summary.pageSize) / PAGE), summary.pageCount],
      },
    }
  })
  const at = figure(
    element('span', { class: 'names' }, ...timed.map(nameOf)),
    'Growth of the working set over time',
    'Arrow keys move the cursor, with Shift faster',
  )
  const pagesAt = ({ times, pagesEach }: (typeof grown)[number], ms: number) =>
    upTo(times, ms) * pagesEach
  drawLines(
    at,
    grown.map(({ line }) => line),
    { x: 'time since the connection', y: 'pages of 4 KiB' },
    { x: formatMs, y: formatCount },
    (ms) =>
      `by ${formatMs(ms)}: ${grown
        .map((set) => {
          const pages = pagesAt(set, ms)
          const name = sets.length > 1 ? `${set.letter} ` : ''
          return `${name}${formatPlural(pages, 'page')} (${formatBytes(pages * PAGE)}, ${formatShare(pages / Math.max(1, set.entry.summary.pageCount))})`
        })
        .join(', ')}`,
  )
  const shares = [0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1]
  const rows = shares.map((share) => [
    formatShare(share),
    ...grown.map(({ times }) => formatMs(atShare(times, share))),
  ])
  at.root.append(
    numbers(table(['of the pages', ...timed.map(nameOf)], rows, 'Time until a share was touched')),
  )
  return panel('Growth', help, at.root, ...missing)
}

function runLengthPanel(sets: readonly Named<SetEntry>[]): HTMLElement {
  const from = [
    ...new Set(
      sets.flatMap(({ entry }) => entry.summary.runLengths.map((range) => range.fromPages)),
    ),
  ]
  const longest = Math.max(1, ...from)
  const starts = Array.from({ length: Math.log2(longest) + 1 }, (_, i) => 2 ** i)
  const labels = starts.map((pages) => (pages === 1 ? '1' : `${pages}–${2 * pages - 1}`))
  const perSet = sets.map((named) => {
    const ranges = new Map(named.entry.summary.runLengths.map((range) => [range.fromPages, range]))
    return {
      named,
      pages: starts.map((start) => ranges.get(start)?.pageCount ?? 0),
      extents: starts.map((start) => ranges.get(start)?.extentCount ?? 0),
    }
  })
  const max = Math.max(...perSet.flatMap(({ pages }) => pages))
  const charts = perSet.map(({ named, pages, extents }) => {
    const at = figure(
      nameOf(named),
      `Run lengths of ${named.entry.name}`,
      'Arrow keys move the cursor',
    )
    const total = Math.max(1, named.entry.summary.pageCount)
    drawBars(
      at,
      { labels, values: pages, color: () => entryColor(named.place), max },
      { x: 'pages in a run', y: 'pages of 4 KiB' },
      formatCount,
      (i) =>
        `runs of ${labels[i]} pages: ${formatPlural(extents[i]!, 'extent')}, ${formatPlural(pages[i]!, 'page')} (${formatShare(pages[i]! / total)} of the set)`,
    )
    const rows = starts.map((_, i) => [
      labels[i]!,
      formatCount(extents[i]!),
      formatCount(pages[i]!),
      formatShare(pages[i]! / total),
    ])
    at.root.append(numbers(table(['pages in a run', 'extents', 'pages', 'of the set'], rows)))
    return at.root
  })
  return panel(
    'Run lengths',
    'The number of pages in runs of adjacent pages, by the length of the run. Long runs are cheap to fetch and to install; single pages cost one system call each.',
    sideBySide(charts),
  )
}
