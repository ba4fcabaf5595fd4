import { formatCount, formatDate, formatMs, formatPlural } from '../format.js'
import type { ArmFigures, ComparisonEntry, ComparisonRun, Spread } from '../page-data.js'
import { element, figure, numbers, panel, sharpen, table } from './dom.js'
import { figures, type Named, nameOf, row, sideBySide } from './entries.js'
import {
  type Dot,
  drawStrips,
  linearScale,
  ratioScale,
  type Scale,
  type Strip,
  shapes,
} from './strips.js'
import { onTheme } from './theme.js'

type Cache = 'cold' | 'warm'
/** A run that did not fail. */
type Run = ComparisonRun & { readonly sample: NonNullable<ComparisonRun['sample']> }

/** Panels about comparisons: their facts, and the arms with a cold and a warm page cache. */
export function comparisonPanels(comparisons: readonly Named<ComparisonEntry>[]): HTMLElement[] {
  const caches = (['cold', 'warm'] as const).filter((cache) =>
    comparisons.some(({ entry }) => entry.comparison[cache].length > 0),
  )
  return [factsPanel(comparisons), ...caches.map((cache) => cachePanel(cache, comparisons))]
}

function factsPanel(comparisons: readonly Named<ComparisonEntry>[]): HTMLElement {
  const content = figures(comparisons, [
    row('date', ({ comparison }) => comparison.date, formatDate),
    row('memory file', ({ comparison }) => comparison.memoryFile),
    row('working set', ({ comparison }) => comparison.workingSet),
    row('command', ({ comparison }) => comparison.command.join(' ')),
    row('rounds', ({ comparison: { rounds, complete } }) =>
      complete ? formatCount(rounds) : `${formatCount(rounds)}, not all measured`,
    ),
    row('seed', ({ comparison }) => String(comparison.seed)),
    row('kernel', ({ comparison }) => `Linux ${comparison.kernel}`),
    row('processors', ({ comparison: { cpus, cpu } }) => `${cpus} × ${cpu}`),
    row('Node', ({ comparison }) => comparison.node),
  ])
  const isOne = comparisons.length === 1
  const warnings = comparisons.flatMap((named) => {
    const lines = named.entry.comparison.warnings.map((line) => `Warning: ${line}`)
    return note(lines, 'note', isOne ? undefined : nameOf(named))
  })
  return panel(
    isOne ? 'Comparison' : 'Comparisons',
    'Restores of one snapshot in several ways, in turns.',
    content,
    ...warnings,
  )
}

function note(lines: readonly string[], name: string, title?: HTMLElement): HTMLElement[] {
  if (lines.length === 0) return []
  return [element('div', { class: name }, title, ...lines.map((line) => element('div', {}, line)))]
}

/** The arms of a comparison in one state of the page cache. */
interface Subject {
  readonly named: Named<ComparisonEntry>
  readonly cache: Cache
  readonly arms: readonly ArmFigures[]
  readonly runs: readonly Run[]
  /** Counted run of the base in the round of a run. */
  readonly baseOf: (run: Run) => Run | undefined
}

const isCounted = ({ leftOut }: Run): boolean => leftOut === undefined

function subjectOf(named: Named<ComparisonEntry>, cache: Cache): Subject {
  const { comparison } = named.entry
  const runs = comparison.runs.filter(
    (run): run is Run => run.cache === cache && run.sample !== undefined,
  )
  const bases = new Map(
    runs.flatMap((run) =>
      run.arm === comparison.base && isCounted(run) ? [[run.round, run] as const] : [],
    ),
  )
  return {
    named,
    cache,
    arms: comparison[cache],
    runs,
    baseOf: ({ round }) => bases.get(round),
  }
}

/** Time of a counted run, divided by that of the base in the same round. */
function ratioOf(run: Run, { baseOf }: Subject): number | undefined {
  const base = isCounted(run) ? baseOf(run) : undefined
  return base && run.sample.ms / base.sample.ms
}

function kindOf(run: Run, { baseOf }: Subject, { isRatio }: Measure): Dot['kind'] {
  if (!isCounted(run)) return 'left-out'
  return run.isOutlier || (isRatio && baseOf(run)?.isOutlier) ? 'outlier' : 'counted'
}

/** A value of each run, with its picture. */
interface Measure {
  readonly title: (subject: Subject) => string
  readonly of: (run: Run, subject: Subject) => number | undefined
  readonly format: (value: number) => string
  /** Arms without the base, compared with it. */
  readonly isRatio?: boolean
  readonly isWhole?: boolean
}

const measures = {
  time: { title: () => 'Time', of: ({ sample }) => sample.ms, format: formatMs },
  ratio: {
    title: ({ named: { entry } }) =>
      `Time, divided by that of ${entry.comparison.base} in the same round (left of × 1: faster)`,
    of: ratioOf,
    format: (ratio) => `× ${Number(ratio.toPrecision(3))}`,
    isRatio: true,
  },
  stalled: {
    title: () => 'Stalled time',
    of: ({ sample }) => sample.stats?.stalledMs,
    format: formatMs,
  },
  residual: {
    title: () => 'Residual faults',
    of: ({ sample }) => sample.stats?.residualFaults,
    format: formatCount,
    isWhole: true,
  },
} as const satisfies Record<string, Measure>

function cachePanel(cache: Cache, comparisons: readonly Named<ComparisonEntry>[]): HTMLElement {
  const subjects = comparisons
    .filter(({ entry }) => entry.comparison[cache].length > 0)
    .map((named) => subjectOf(named, cache))
  const draw = (measure: Measure) => {
    const scale = scaleOf(subjects, measure)
    return (subject: Subject) => drawMeasure(subject, measure, scale)
  }
  const [time, ratio] = [draw(measures.time), draw(measures.ratio)]
  const [stalled, residual] = [draw(measures.stalled), draw(measures.residual)]
  const content = subjects.flatMap((subject) => [
    ...(comparisons.length > 1 ? [element('h3', {}, nameOf(subject.named))] : []),
    ...note(subject.named.entry.comparison.conclusions[cache], 'note finding'),
    armTable(subject),
    ...time(subject),
    ...ratio(subject),
    sideBySide([...stalled(subject), ...residual(subject)]),
  ])
  const bases = new Set(subjects.map(({ named }) => named.entry.comparison.basis))
  return panel(
    `${cache === 'cold' ? 'Cold' : 'Warm'} page cache`,
    `The figures are ${[...bases].join('; ')}. In the pictures a dot is a run; the rounds go from top to bottom.`,
    legend(),
    ...content,
  )
}

/** A scale for all arms, whose end no outlier moves. */
function scaleOf(subjects: readonly Subject[], measure: Measure): Scale {
  const counted = subjects.flatMap((subject) =>
    subject.runs
      .filter((run) => kindOf(run, subject, measure) === 'counted')
      .flatMap((run) => measure.of(run, subject) ?? []),
  )
  return measure.isRatio
    ? ratioScale(counted, measure.format)
    : linearScale(counted, measure.format, measure.isWhole === true)
}

/** The picture of a measure, unless no arm has it. */
function drawMeasure(subject: Subject, measure: Measure, scale: Scale): HTMLElement[] {
  const { named, cache, arms, runs } = subject
  const { base } = named.entry.comparison
  const own = arms.filter(({ arm }) => !(measure.isRatio && arm === base))
  const strips = own.flatMap(({ arm }): Strip[] => {
    const dots = runs.flatMap((run): (Dot & { run: Run })[] => {
      const value = run.arm === arm ? measure.of(run, subject) : undefined
      if (value === undefined) return []
      const kind = kindOf(run, subject, measure)
      return [{ run, value, row: run.round - 1, kind, text: describe(run, subject) }]
    })
    if (dots.length === 0) return []
    return [
      {
        name: arm,
        spread: spreadOf(dots.flatMap(({ run, value }) => (isCounted(run) ? [value] : []))),
        dots,
      },
    ]
  })
  if (strips.length === 0) return []
  const title = measure.title(subject)
  const at = figure(
    title,
    `${title}, ${cache} page cache, ${named.entry.name}`,
    'Arrow keys move between the arms (up and down) and their runs (left and right)',
  )
  drawStrips(at, strips, scale)
  at.root.append(numbers(roundTable(strips, measure)))
  return [at.root]
}

/** Median and quartiles, as those of the comparison: interpolated between the closest ranks. */
function spreadOf(values: readonly number[]): Spread | null {
  if (values.length === 0) return null
  const sorted = values.toSorted((a, b) => a - b)
  const at = (share: number) => {
    const rank = share * (sorted.length - 1)
    const low = sorted[Math.floor(rank)]!
    return low + (sorted[Math.ceil(rank)]! - low) * (rank % 1)
  }
  return { median: at(0.5), p25: at(0.25), p75: at(0.75), samples: sorted.length }
}

function describe(run: Run, subject: Subject): string {
  const { round, sample, isOutlier, leftOut } = run
  const { base } = subject.named.entry.comparison
  const ratio = run.arm === base ? undefined : ratioOf(run, subject)
  const baseIsFar = subject.baseOf(run)?.isOutlier
  const parts = [
    `${formatMs(sample.ms)}${sample.until === 'end' ? " until the command's end" : ''}`,
    ratio && `${measures.ratio.format(ratio)} of ${base}${baseIsFar ? ', itself an outlier' : ''}`,
    run.arm === 'auto' && `by ${sample.backend}`,
    sample.stats && formatPlural(sample.stats.residualFaults, 'residual fault'),
    sample.stats && `stalled for ${formatMs(sample.stats.stalledMs)}`,
    isOutlier && 'an outlier',
    leftOut !== undefined && `not counted: ${leftOut}`,
  ]
  return `round ${round}: ${parts.filter(Boolean).join(', ')}`
}

const marks = { counted: '', outlier: ' ▲', 'left-out': ' ×' } as const

function roundTable(strips: readonly Strip[], { format }: Measure): HTMLElement {
  const ofSpread = (name: string, key: 'median' | 'p25' | 'p75') => [
    name,
    ...strips.map(({ spread }) => (spread ? format(spread[key]) : '–')),
  ]
  const rows = Math.max(...strips.flatMap(({ dots }) => dots.map(({ row }) => row + 1)))
  const rounds = Array.from({ length: rows }, (_, row) => [
    `round ${row + 1}`,
    ...strips.map(({ dots }) => {
      const dot = dots.find((each) => each.row === row)
      return dot ? `${format(dot.value)}${marks[dot.kind]}` : '–'
    }),
  ])
  return table(
    ['', ...strips.map(({ name }) => name)],
    [
      ofSpread('median', 'median'),
      ofSpread('lower quartile', 'p25'),
      ofSpread('upper quartile', 'p75'),
      ...rounds,
    ],
  )
}

function armTable({ arms, named }: Subject): HTMLElement {
  const or = (value: number | null, format: (value: number) => string) =>
    value === null ? '–' : format(value)
  const rows = arms.map((each) => [
    each.arm,
    formatMs(each.ms.median),
    `${formatMs(each.ms.p25)} to ${formatMs(each.ms.p75)}`,
    each.ratio
      ? `${each.ratio.median.toFixed(2)} (${each.ratio.p25.toFixed(2)} to ${each.ratio.p75.toFixed(2)})`
      : '–',
    or(each.faults, formatCount),
    or(each.residualFaults, formatCount),
    or(each.stalledMs, formatMs),
    each.leftOutCount > 0
      ? `${formatCount(each.ms.samples)} of ${formatCount(each.ms.samples + each.leftOutCount)}`
      : formatCount(each.ms.samples),
    formatCount(each.outlierCount),
  ])
  const { base } = named.entry.comparison
  const head = ['median', 'quartiles', `÷ ${base}`, 'faults', 'residual', 'stalled']
  return table(['', ...head, 'runs', 'outliers'], rows, 'Medians')
}

function legend(): HTMLElement {
  const items = [
    ['counted', 'a run'],
    ['outlier', 'an outlier'],
    ['beyond', 'beyond the end'],
    ['left-out', 'not counted'],
  ] as const
  const drawn = items.map(([kind, name]) => {
    const canvas = element('canvas', { 'aria-hidden': 'true' })
    const draw = () => shapes[kind](sharpen(canvas, 14, 14), 7, 7, 3.2)
    draw()
    onTheme(draw)
    return element('span', {}, canvas, ` ${name}`)
  })
  const band = element('i', { class: 'band', 'aria-hidden': 'true' })
  return element(
    'p',
    { class: 'legend names' },
    ...drawn,
    element('span', {}, band, ' quartiles and median'),
  )
}
