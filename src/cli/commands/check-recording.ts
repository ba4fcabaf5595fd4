import type { Trace } from '../../index.js'
import { CliError } from '../terminal/failure.js'
import { formatPlural } from '../terminal/units.js'

/**
 * Number of pages below which a VM cannot have run: a VMM that loads a snapshot touches a few pages
 * for its devices, and a guest that runs touches hundreds. Small guests may need fewer.
 */
const minPages = ({ memoryBytes, pageSize }: Trace): number =>
  Math.max(1, Math.min(64, Math.floor(memoryBytes / pageSize / 256)))

/**
 * @param consequence what a recording of nothing leads to, such as "vm.ws is not written".
 * @throws CliError `ERR_NOTHING_RECORDED` for the recording of a VM that did not run.
 */
export function checkRecording(trace: Trace, consequence: string): void {
  const count = trace.pages.length
  if (count >= minPages(trace)) return
  const touched = count === 0 ? 'no page' : `only ${formatPlural(count, 'page')}`
  throw new CliError(
    'ERR_NOTHING_RECORDED',
    `the guest touched ${touched} during the recording: ${consequence}`,
    'Was the snapshot loaded (curl needs --fail to tell) and resumed ("resume_vm": true), and did it answer a request?',
  )
}
