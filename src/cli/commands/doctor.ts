import { release } from 'node:os'
import { CliError } from '../terminal/failure.js'
import type { Terminal } from '../terminal/terminal.js'
import { formatPlural } from '../terminal/units.js'
import { type Check, checks, type Finding } from './doctor-checks.js'

const styles = { ok: 'green', warn: 'yellow', fail: 'red', skip: 'dim' } as const

export async function doctor(terminal: Terminal): Promise<void> {
  const findings: ({ name: string } & Finding)[] = []
  for (const check of checks) {
    const { name } = check
    const finding = await run(check, findings)
    findings.push({ name, ...finding })
    const status = terminal.style(styles[finding.status], finding.status.padEnd(4))
    terminal.print(`${status}  ${name.padEnd(14)}  ${finding.detail}`)
    if (finding.remedy) terminal.print(`${' '.repeat(22)}→ ${finding.remedy}`)
  }
  const failed = findings.filter(({ status }) => status === 'fail')
  terminal.emit({
    ok: failed.length === 0,
    kernel: release(),
    arch: process.arch,
    node: process.versions.node,
    checks: findings,
  })
  terminal.print()
  terminal.print('A handler needs no privilege; only the VMM that creates the userfaultfd does.')
  terminal.print('A warning concerns a feature that you may not need.')
  if (failed.length === 0) return
  throw new CliError(
    'ERR_MACHINE_UNFIT',
    `reap-trace does not work here: ${formatPlural(failed.length, 'check')} failed`,
    'Fix the first check that is marked "fail" first.',
  )
}

async function run(
  { needs, run }: Check,
  findings: readonly ({ name: string } & Finding)[],
): Promise<Finding> {
  const needed = findings.find(({ name }) => name === needs)
  if (needed?.status === 'fail' || needed?.status === 'skip') {
    return { status: 'skip', detail: `needs the check "${needs}" to pass` }
  }
  try {
    return await run()
  } catch (error) {
    // A check that throws has failed.
    return { status: 'fail', detail: String(error), remedy: 'please report this' }
  }
}
