import type {
  ReapTraceError,
  ServeEvent,
  ServeResult,
  Verdict,
  WorkingSetComparison,
} from '../../index.js'
import { errorFields } from '../terminal/failure.js'
import type { Terminal } from '../terminal/terminal.js'
import { formatBytes, formatCount, formatMs, formatPlural } from '../terminal/units.js'
import type { ChildCommand } from './child-command.js'
import { stepTable } from './step-table.js'

/** Prints an event of a session, as text or as JSON. */
export function reportEvent(
  event: ServeEvent,
  terminal: Terminal,
  isPrefetched: boolean,
  verdict?: Verdict,
): void {
  terminal.emit({ ...toJson(event), verdict }, event.atMs)
  if (event.type === 'warning') terminal.warn(event.error, consequenceOf(event.error, isPrefetched))
  else terminal.print(toText(event))
  if (event.type === 'closed') for (const line of describePhases(event)) terminal.print(line)
  if (verdict) reportVerdict(verdict, terminal)
}

export function reportVerdict({ sentence, remedy }: Verdict, terminal: Terminal): void {
  terminal.print(sentence)
  if (remedy) terminal.print(remedy)
}

/** Prints the mark of a COMMAND; as JSON only for the end of a recording without one. */
export function reportReady(
  atMs: number,
  command: ChildCommand | undefined,
  terminal: Terminal,
): void {
  terminal.emit({ type: 'ready' }, atMs)
  if (!command) return
  terminal.print(`ready ${formatMs(atMs - command.startedMs)} after the start of ${command.name}`)
}

function consequenceOf({ code, check }: ReapTraceError, isPrefetched: boolean): string {
  if (check === 'stale' || check === 'snapshot-id') {
    return 'the bytes come from the memory file, and only their order from the set'
  }
  if (code === 'ERR_SOURCE_READ' && check === 'hangs') return 'the guest waits for its pages'
  return isPrefetched ? 'the guest is not affected' : 'the VM is served on demand'
}

function toText(event: Exclude<ServeEvent, { type: 'warning' }>): string {
  switch (event.type) {
    case 'listening':
      return `listening on ${event.socketPath}`
    case 'connected': {
      const { pid, memoryBytes, regions, pageSize } = event
      return `connected: pid ${pid}, ${formatBytes(memoryBytes)} in ${formatPlural(regions.length, 'region')} of ${formatBytes(pageSize)} pages`
    }
    case 'prefetched': {
      const { pageCount, extentCount, bytes, sinceConnectMs, source } = event
      const from = source === 'working-set' ? 'the working set' : 'the memory file'
      return `prefetched ${formatPlural(pageCount, 'page')} in ${formatPlural(extentCount, 'extent')} (${formatBytes(bytes)} read from ${from}), ${formatMs(sinceConnectMs)} after the connection`
    }
    case 'ready':
      return 'ready'
    case 'compared':
      return describeComparison(event)
    case 'closed':
      return describeEnd(event)
  }
}

function describeComparison(result: WorkingSetComparison): string {
  const { pageCount, mismatchedPageCount, identical, remembered, rewritten } = result
  const set = rewritten ? '; the set was rewritten' : ''
  if (!identical) {
    const differ = mismatchedPageCount === 1 ? 'differs' : 'differ'
    return `compared: ${formatCount(mismatchedPageCount)} of ${formatPlural(pageCount, 'page')} of the working set ${differ} from the memory file${set}`
  }
  const next = remembered && !rewritten ? '; later restores install its bytes' : set
  return `compared: the working set has the memory file's bytes in all of ${formatPlural(pageCount, 'page')}${next}`
}

const endings: Record<ServeResult['state'], string> = {
  closed: 'closed before a VM was served',
  'vm-exited': 'the VM exited',
  'vm-killed': 'the VM was killed',
  'vm-left': 'the VM was left without a handler',
  detached: 'detached: the VM continues with all of its memory',
}

function describeEnd({ state, oom, stats }: ServeResult): string {
  if (state === 'closed') return endings.closed
  const { faults, lateFaults, residualFaults, installedAhead, removed } = stats
  const parts = [
    formatPlural(faults, 'fault'),
    ...(lateFaults + residualFaults > 0
      ? [`${formatCount(lateFaults)} late and ${formatCount(residualFaults)} residual`]
      : []),
    ...(installedAhead > 0 ? [`${formatPlural(installedAhead, 'page')} installed ahead`] : []),
    ...(removed > 0 ? [`${formatPlural(removed, 'page')} released`] : []),
  ]
  const end = oom ? 'the VM was ended by the OOM killer' : endings[state]
  return `${end} (${parts.join(', ')})`
}

const phases = [
  ['listening', 'listening'],
  ['accepted', 'VMM connected'],
  ['connected', 'handshake complete'],
  ['firstFault', 'first fault'],
  ['prefetched', 'prefetched'],
  ['ready', 'ready'],
  ['closed', 'end'],
] as const

/** Lines of the steps and of the stalled time of a session that served a VM. */
function describePhases({ times, stats, statsAtReady }: ServeResult): string[] {
  const { connected, ready, closed = Number.POSITIVE_INFINITY } = times
  if (connected === undefined) return []
  const { stalledMs } = statsAtReady ?? stats
  // The figures are those of the receipt of the mark, which may be dated back.
  const untilReadyMs = ready === undefined ? Number.POSITIVE_INFINITY : ready - connected
  const stalled = formatMs(Math.min(stalledMs, untilReadyMs))
  return [
    ...stepTable(
      phases.flatMap(([step, name]) => {
        const at = times[step]
        // A prefetch that the end of the session interrupts ends after it.
        return at === undefined || at > closed ? [] : [[name, at] as const]
      }),
      times.listening,
    ),
    ready === undefined
      ? `  the guest waited for pages for ${stalled}`
      : `  the guest waited for pages for ${stalled} of the ${formatMs(untilReadyMs)} from the handshake until it was ready`,
  ]
}

/** JSON form of an event, with its error as an object. */
const toJson = (event: ServeEvent): object =>
  'error' in event && event.error ? { ...event, error: errorFields(event.error) } : event
