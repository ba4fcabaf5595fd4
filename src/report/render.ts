import { readFileSync } from 'node:fs'
import { deflateRawSync } from 'node:zlib'
import { ReapTraceError } from '../errors.js'
import { describeCall, replaceFile, writeWhole } from '../files.js'
import { checkOptions, print, required, rules } from '../options.js'
import { ownFolder, packageRoot } from '../package-root.js'
import { WorkingSet } from '../working-set/working-set.js'
import { checkComparison } from './comparison-shape.js'
import type { ReportInput } from './inputs.js'
import type { Entry, PageData } from './page-data.js'
import { checkRecord } from './record-shape.js'
import type { Check } from './shape.js'

/** More would make a page that nobody can compare. */
const MAX_INPUTS = 26

/**
 * Page of a report: HTML that works from the disk, without a network, with pictures of its inputs.
 * Several inputs are compared side by side, in their order.
 *
 * @throws TypeError without inputs, with more than 26, or for one that is no {@link ReportInput}.
 * @throws ReapTraceError `ERR_REPORT_IO`: the page's template is missing from the package.
 */
export function renderReport(inputs: Iterable<ReportInput>): string {
  const data: PageData = { entries: checkInputs(inputs).map(entryOf) }
  const text = deflateRawSync(JSON.stringify(data)).toString('base64')
  return readTemplate().replace('<!--DATA-->', () => text)
}

/**
 * Writes the page of {@link renderReport} to a file, mode 0600, replacing an existing one
 * atomically.
 *
 * @throws TypeError as `renderReport()`.
 * @throws ReapTraceError `ERR_REPORT_IO`: the file cannot be written.
 */
export async function writeReport(path: string, inputs: Iterable<ReportInput>): Promise<void> {
  checkOptions('writeReport()', { path }, { path: required(rules.path) }, 'argument')
  const bytes = Buffer.from(renderReport(inputs))
  await replaceFile('report', path, (file) => writeWhole(file, bytes, 0))
}

function checkInputs(inputs: Iterable<ReportInput>): readonly ReportInput[] {
  if (typeof inputs === 'string' || typeof inputs?.[Symbol.iterator] !== 'function') {
    throw new TypeError(`renderReport() expects an array of inputs, got ${print(inputs)}`)
  }
  const list = [...inputs]
  if (list.length === 0 || list.length > MAX_INPUTS) {
    throw new TypeError(`renderReport() expects 1 to ${MAX_INPUTS} inputs, got ${list.length}`)
  }
  for (const input of list) {
    checkOptions('an input of renderReport()', input, { name, ...subjectRule(input) }, 'field')
  }
  return list
}

const name = required(rules.name)
const workingSet = required({
  expected: 'a WorkingSet',
  accepts: (value) => value instanceof WorkingSet,
})
const shaped = (expected: string, check: Check) =>
  required({
    expected,
    accepts: (value) => {
      try {
        check(value, '')
        return true
      } catch {
        return false
      }
    },
  })
const restore = shaped('a RestoreRecord', checkRecord)
const comparison = shaped('a Comparison', checkComparison)

function subjectRule(input: ReportInput) {
  if ('restore' in input) return { restore }
  return 'comparison' in input ? { comparison } : { workingSet }
}

function entryOf(input: ReportInput): Entry {
  const { name } = input
  if ('restore' in input) return { kind: 'restore', name, record: input.restore }
  if ('comparison' in input) return { kind: 'comparison', name, comparison: input.comparison }
  const { pages, timesUs } = input.workingSet.order
  return {
    kind: 'working-set',
    name,
    summary: input.workingSet.describe(),
    pages: Array.from(pages),
    timesUs: Array.from(timesUs),
  }
}

/** The page without its data, from the package or from next to a bundle. */
function readTemplate(): string {
  const paths = [new URL('dist/report.html', packageRoot), new URL('report.html', ownFolder)]
  let failure: NodeJS.ErrnoException | undefined
  for (const path of paths) {
    try {
      return readFileSync(path, 'utf8')
    } catch (error) {
      failure ??= error as NodeJS.ErrnoException
    }
  }
  const { errno, syscall, path } = failure!
  const { cause } = describeCall(failure!, 'read')
  throw new ReapTraceError('ERR_REPORT_IO', `cannot read the page of a report: ${cause}`, {
    hint: 'dist/report.html belongs to the package: install it again, or copy it next to a bundle.',
    errno,
    syscall,
    path,
    cause: failure,
  })
}
