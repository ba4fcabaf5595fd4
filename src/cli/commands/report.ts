import { stat } from 'node:fs/promises'
import { readReportInput, writeReport } from '../../index.js'
import type { ReportArguments } from '../arguments/arguments.js'
import type { Terminal } from '../terminal/terminal.js'
import { formatBytes } from '../terminal/units.js'
import { checkIsNoInput } from './check-output.js'

export async function report(
  { files, output }: ReportArguments,
  terminal: Terminal,
): Promise<void> {
  await checkIsNoInput(output, { files }, { option: '--output', code: 'ERR_REPORT_IO' })
  const inputs = await Promise.all(files.map(readReportInput))
  await writeReport(output, inputs)
  const { size: bytes } = await stat(output)
  terminal.emit({ type: 'report', path: output, bytes })
  terminal.print(`wrote ${output} (${formatBytes(bytes)})`)
}
