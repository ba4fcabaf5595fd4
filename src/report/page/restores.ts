import {
  formatAddress,
  formatBytes,
  formatCount,
  formatDate,
  formatMs,
  formatPlural,
  formatUs,
  PAGE,
} from '../format.js'
import type { FaultStats, FaultWaits, RestoreEntry, SetEntry } from '../page-data.js'
import { drawBars } from './charts.js'
import { element, figure, numbers, panel, table } from './dom.js'
import { figures, type Named, nameOf, row, sideBySide, swatch } from './entries.js'
import { drawPageMap, type MapPage } from './page-map.js'
import { color } from './theme.js'
import { CLASSES, courseOf, drawWaterfall } from './waterfall.js'
import { mapPages, orderLegend, RANGES } from './working-sets.js'

/** Panels about restores: figures, waterfalls, waits of faults, and where the faults were. */
export function restorePanels(
  restores: readonly Named<RestoreEntry>[],
  sets: readonly Named<SetEntry>[],
): HTMLElement[] {
  return [
    figuresPanel(restores),
    waterfallPanel(restores),
    ...waitsPanel(restores),
    ...mapPanel(restores, sets),
  ]
}

/** Figures until the application's mark where there is one, since what follows does not count. */
const statsOf = ({ record }: RestoreEntry): FaultStats | undefined =>
  record.statsAtReady ?? record.stats

function figuresPanel(restores: readonly Named<RestoreEntry>[]): HTMLElement {
  const time = (name: string, key: keyof RestoreEntry['record']['times']) =>
    row(
      name,
      ({ record: { times } }: RestoreEntry) => {
        const at = times[key]
        return at === undefined ? undefined : at - times.started
      },
      formatMs,
    )
  const stat = (
    name: string,
    value: (stats: FaultStats) => number | undefined,
    format = formatCount,
  ) =>
    row(
      name,
      (entry: RestoreEntry) => {
        const stats = statsOf(entry)
        return stats && value(stats)
      },
      format,
    )
  const content = figures(restores, [
    row('date', ({ record }) => record.date, formatDate),
    row('backend', ({ record }) => record.backend),
    row('memory', ({ record }) => record.snapshot.memoryBytes, formatBytes),
    row('pages of the working set', ({ record }) => record.workingSet?.pageCount, formatCount),
    row('pages prefetched', ({ record }) => record.prefetch?.pageCount, formatCount),
    row(
      'of these, in the page cache before',
      ({ record: { prefetch } }) =>
        prefetch && 'residentPageCount' in prefetch ? prefetch.residentPageCount : undefined,
      formatCount,
    ),
    row('bytes read for them', ({ record }) => record.prefetch?.bytes, formatBytes),
    time('connected', 'connected'),
    time('first fault', 'firstFault'),
    time('prefetched', 'prefetched'),
    time('ready', 'ready'),
    row('faults counted until', ({ record: { statsAtReady, stats } }) =>
      statsAtReady ? 'ready' : stats ? 'the end' : undefined,
    ),
    stat('stalled time', ({ stalledMs }) => stalledMs, formatMs),
    stat('faults', ({ faults }) => faults),
    stat('of these, late', ({ lateFaults }) => lateFaults),
    stat('of these, residual', ({ residualFaults }) => residualFaults),
    stat(
      'longest wait',
      ({ waits }) => Math.max(...CLASSES.map((name) => waits[name].maxUs)),
      formatUs,
    ),
    stat('bytes read in all', ({ bytesRead }) => bytesRead, formatBytes),
    row('end', ({ record }) => record.state),
  ])
  return panel(
    restores.length === 1 ? 'Restore' : 'Restores',
    'Times count from the call that asked for the restore. Stalled time is the time with at least one fault unanswered.',
    ...restores.flatMap((named) => verdictOf(named, restores.length > 1)),
    content,
    ...slowestOf(restores),
  )
}

function verdictOf(named: Named<RestoreEntry>, isNamed: boolean): HTMLElement[] {
  const { verdict } = named.entry.record
  if (!verdict) return []
  const name = isNamed ? element('div', {}, nameOf(named)) : undefined
  const remedy = verdict.remedy ? element('div', {}, verdict.remedy) : undefined
  return [element('div', { class: 'note' }, name, element('b', {}, verdict.sentence), remedy)]
}

function slowestOf(restores: readonly Named<RestoreEntry>[]): HTMLElement[] {
  const tables = restores.flatMap((named) => {
    const slowest = statsOf(named.entry)?.slowest ?? []
    if (slowest.length === 0) return []
    const rows = slowest.map((fault) => [
      formatAddress(fault.offset),
      fault.class,
      formatUs(fault.waitUs),
    ])
    const name = restores.length > 1 ? ` of ${named.letter}` : ''
    return [table(['offset in the memory file', 'class', 'wait'], rows, `Slowest faults${name}`)]
  })
  if (tables.length === 0) return []
  const summary = element('summary', {}, 'Slowest faults')
  return [element('details', {}, summary, sideBySide(tables))]
}

function waterfallPanel(restores: readonly Named<RestoreEntry>[]): HTMLElement {
  const courses = restores.map((named) => ({ named, course: courseOf(named.entry.record) }))
  const end = Math.max(1, ...courses.map(({ course }) => course.end)) * 1.02
  const waitsMs = courses.flatMap(({ course }) => course.faults.map(({ from, to }) => to - from))
  const axis = {
    end,
    minWaitMs: waitsMs.reduce((min, ms) => Math.min(min, ms), Number.POSITIVE_INFINITY),
    maxWaitMs: waitsMs.reduce((max, ms) => Math.max(max, ms), 0),
  }
  const drawn = courses.map(({ named, course }) => {
    const at = figure(
      nameOf(named),
      `Waterfall of ${named.entry.name}`,
      'Arrow keys move the cursor in time; with Shift, to the next event',
    )
    drawWaterfall(at, course, axis)
    const rows = [
      ...course.steps.map(({ name, from, to, note }) => [
        note === '' ? name : `${name} (${note})`,
        formatMs(from),
        formatMs(to),
        formatMs(to - from),
      ]),
      ...course.marks.map(({ name, at }) => [name, formatMs(at), '', '']),
    ]
    at.root.append(numbers(table(['step', 'from', 'to', 'duration'], rows)))
    const { backend, timeline, stats } = named.entry.record
    const later = course.faults.filter(({ from }) => from > end).length
    at.root.append(
      ...note(
        backend === 'page-cache',
        'The kernel serves the faults of this restore from the page cache, and reports none of them.',
      ),
      ...note(!timeline && stats !== undefined, 'Without a timeline, single faults are unknown.'),
      ...note(later > 0, `The picture omits ${formatPlural(later, 'later fault')}.`),
      ...note(
        timeline !== undefined && timeline.missing > 0,
        `The timeline was full: it lacks ${formatPlural(timeline?.missing ?? 0, 'later span')}.`,
      ),
    )
    return at.root
  })
  return panel(
    'Waterfall',
    'Steps of the restore over time. A mark in a row of faults is one fault: the higher it is, the longer its thread waited (logarithmic). Fetches that waited for the disk fill their bar.',
    ...drawn,
  )
}

const note = (isTrue: boolean, text: string): HTMLElement[] =>
  isTrue ? [element('p', { class: 'help' }, text)] : []

function waitsPanel(restores: readonly Named<RestoreEntry>[]): HTMLElement[] {
  const shown = restores.flatMap((named) => {
    const stats = statsOf(named.entry)
    return CLASSES.flatMap((name) => {
      const waits = stats?.waits[name]
      return waits && waits.count > 0 ? [{ named, name, waits }] : []
    })
  })
  if (shown.length === 0) return []
  const limits = fillLimits(shown.flatMap(({ waits }) => waits.buckets.map(([limit]) => limit)))
  const labels = limits.map((limit) => `<${formatUs(limit)}`)
  const counts = shown.map(({ waits }) => {
    const byLimit = new Map(waits.buckets)
    return limits.map((limit) => byLimit.get(limit) ?? 0)
  })
  const charts = shown.map(({ named, name, waits }, i) => {
    const own = counts[i]!
    const title = element(
      'span',
      { class: 'names' },
      ...(restores.length > 1 ? [nameOf(named)] : []),
      element(
        'span',
        {},
        swatch(() => color(name)),
        `${name} faults`,
      ),
    )
    const at = figure(title, `Waits of ${name} faults`, 'Arrow keys move the cursor')
    drawBars(
      at,
      {
        labels,
        values: own,
        color: () => color(name),
        // Classes differ too much for one scale; restores are compared within a class.
        max: Math.max(...counts.filter((_, j) => shown[j]!.name === name).flat()),
      },
      { x: 'wait', y: 'faults' },
      formatCount,
      (j) =>
        `${formatPlural(own[j]!, 'fault')} waited ${j > 0 ? `at least ${formatUs(limits[j - 1]!)} and ` : ''}less than ${formatUs(limits[j]!)}`,
    )
    at.root.append(numbers(bucketTable(waits)))
    return at.root
  })
  const rows = shown.map(({ named, name, waits }) => [
    restores.length > 1 ? `${named.letter} ${name}` : name,
    formatCount(waits.count),
    formatUs(waits.totalUs / waits.count),
    quantile(waits, 0.5),
    quantile(waits, 0.99),
    formatUs(waits.maxUs),
    formatUs(waits.totalUs),
  ])
  return [
    panel(
      'Waits of faults',
      'Time from the read of a fault’s message to the wake of its thread, without the time before this read.',
      table(
        ['class', 'faults', 'mean', 'median', '99 %', 'longest', 'sum'],
        rows,
        'Waits by class',
      ),
      sideBySide(charts),
    ),
  ]
}

/** All limits from the minimum to the maximum: powers of two with linear halves. */
function fillLimits(known: readonly number[]): number[] {
  const sorted = [...new Set(known)].sort((a, b) => a - b)
  const filled: number[] = []
  for (const limit of sorted) {
    for (let last = filled.at(-1); last !== undefined; ) {
      const isPower = Number.isInteger(Math.log2(Math.round(last * 1000)))
      last = Math.round(last * 1000 * (isPower ? 3 / 2 : 4 / 3)) / 1000
      if (last >= limit * 0.999 || filled.length > 100) break
      filled.push(last)
    }
    filled.push(limit)
  }
  return filled
}

/** Limit of the bucket at this share of the waits. */
function quantile({ buckets, count }: FaultWaits, share: number): string {
  let seen = 0
  for (const [limit, own] of buckets) {
    seen += own
    if (seen >= share * count) return `< ${formatUs(limit)}`
  }
  return '–'
}

function bucketTable({ buckets, count }: FaultWaits): HTMLElement {
  let seen = 0
  const rows = buckets.map(([limit, own]) => {
    seen += own
    return [`< ${formatUs(limit)}`, formatCount(own), `${((100 * seen) / count).toFixed(1)} %`]
  })
  return table(['wait', 'faults', 'up to here'], rows)
}

function mapPanel(
  restores: readonly Named<RestoreEntry>[],
  sets: readonly Named<SetEntry>[],
): HTMLElement[] {
  const maps = restores.flatMap((named) => {
    const { timeline, snapshot } = named.entry.record
    if (!timeline || timeline.faults.length === 0) return []
    const set = setOf(named.entry, sets)
    const step = snapshot.pageSize / PAGE
    const order = [...new Set(timeline.faults.map(({ offset }) => Math.floor(offset / PAGE)))]
    const last = Math.max(1, order.length - 1)
    const faulted = order.map((page, rank) => ({ page, pageCount: step, place: rank / last }))
    const residual = timeline.faults.filter((fault) => fault.class === 'residual')
    const title = element(
      'span',
      { class: 'names' },
      nameOf(named),
      set ? element('span', {}, 'on ', nameOf(set)) : undefined,
    )
    const at = figure(
      title,
      `Page map of ${named.entry.name}`,
      'Arrow keys move the cursor; with Shift, to the next page',
    )
    drawPageMap(at, {
      memoryBytes: snapshot.memoryBytes,
      pages: set ? mapPages(set.entry) : faulted,
      marks: set ? residual.map(({ offset }) => offset) : [],
      describe: (pages, marks) => describeCell(pages, marks, set !== undefined),
    })
    at.root.append(numbers(faultRanges(named.entry)))
    return [at.root]
  })
  if (maps.length === 0) return []
  return [
    panel(
      'Pages of the faults',
      'Where the guest waited. Color shows the order of the faults; on a working set of this report it is the order of its pages, and a cross is a residual fault.',
      orderLegend(),
      sideBySide(maps),
    ),
  ]
}

/** The set of this report that the restore prefetched. */
function setOf(
  { record }: RestoreEntry,
  sets: readonly Named<SetEntry>[],
): Named<SetEntry> | undefined {
  const { workingSet, snapshot } = record
  if (!workingSet) return undefined
  const fits = sets.filter(
    ({ entry: { summary } }) =>
      summary.memoryBytes === snapshot.memoryBytes && summary.pageCount === workingSet.pageCount,
  )
  return fits.find(({ entry }) => entry.summary.file?.path === workingSet.path) ?? fits[0]
}

function describeCell(pages: readonly MapPage[], marks: number, isOnSet: boolean): string {
  if (!isOnSet) return `${formatPlural(pages.length, 'page')} with a fault`
  const parts = [
    pages.length > 0 ? `${formatPlural(pages.length, 'page')} of the set` : 'no page of the set',
    marks > 0 && formatPlural(marks, 'residual fault'),
  ]
  return parts.filter(Boolean).join(', ')
}

function faultRanges({ record: { timeline, snapshot } }: RestoreEntry): HTMLElement {
  const rangeBytes = snapshot.memoryBytes / RANGES
  const rows = Array.from({ length: RANGES }, (_, i) => {
    const own = timeline!.faults.filter(({ offset }) => Math.floor(offset / rangeBytes) === i)
    const waitMs = own.reduce((sum, { from, to }) => sum + to - from, 0)
    return [
      formatAddress(Math.round(i * rangeBytes)),
      ...CLASSES.map((name) => formatCount(own.filter((fault) => fault.class === name).length)),
      own.length === 0 ? '–' : formatMs(waitMs),
    ]
  })
  const head = ['from offset', ...CLASSES, 'sum of waits']
  return table(head, rows, `Faults in ranges of ${formatBytes(rangeBytes)}`)
}
