import { release } from 'node:os'
import { CliError } from '../terminal/failure.js'
import type { Terminal } from '../terminal/terminal.js'
import { formatPlural } from '../terminal/units.js'
import { checks, type Finding } from './doctor-checks.js'

const styles = { ok: 'green', warn: 'yellow', fail: 'red' } as const

export async function doctor(terminal: Terminal): Promise<void> {
  const findings: ({ name: string } & Finding)[] = []
  for (const { name, look } of checks) {
    // A check that breaks is itself a finding.
    const finding = await Promise.resolve()
      .then(look)
      .catch(
        (error): Finding => ({
          status: 'fail',
          detail: String(error),
          remedy: 'mend what is above first',
        }),
      )
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
  terminal.print(
    'A handler that is sent a userfaultfd needs no privilege, only the VMM that makes it does;',
  )
  terminal.print('a warning is about a use that you may not have.')
  if (failed.length === 0) return
  throw new CliError(
    'ERR_MACHINE_UNFIT',
    `reap-trace does not work here: ${formatPlural(failed.length, 'check')} failed`,
    'Mend what is marked "fail", the first one first.',
  )
}
