import { createRequire } from 'node:module'
import { Command, CommanderError } from 'commander'
import type { Arguments, OnParsed } from './arguments.js'
import { commandsOf } from './commands.js'
import { programHelp } from './help.js'

/** Parsed arguments, or output and exit code for help and wrong usage. */
export type Parsed =
  | { readonly arguments: Arguments }
  | { readonly exitCode: 0 | 2; readonly stdout: string; readonly stderr: string }

const version = (): string =>
  (createRequire(import.meta.url)('reap-trace/package.json') as { version: string }).version

function program(command: readonly string[], onParsed: OnParsed): Command {
  const root = new Command('reap-trace')
    .description(
      'Records the pages that a microVM touches after a snapshot restore, and prefetches them.',
    )
    .version(version(), '-V, --version', 'print the version')
    .helpOption('-h, --help', 'print help')
    .helpCommand('help [command]', 'print help for a command')
    .usage('COMMAND [options]')
    .addHelpText('after', programHelp)
  for (const each of commandsOf(command, onParsed)) {
    root.addCommand(each.helpOption('-h, --help', 'print help'))
  }
  return root
}

/** A command with all below it. */
const allOf = (command: Command): Command[] => [command, ...command.commands.flatMap(allOf)]

/** Name of the command that the arguments begin with, such as "store ls"; empty for none. */
function nameOf(command: Command, [first, ...rest]: readonly string[]): string {
  const found = command.commands.find((each) => each.name() === first)
  return found ? `${found.name()} ${nameOf(found, rest)}`.trimEnd() : ''
}

/** Parses a command line, without the program's name. Has no side effects. */
export function parse(argv: readonly string[]): Parsed {
  const dashes = argv.indexOf('--')
  const args = dashes < 0 ? argv : argv.slice(0, dashes)
  const command = dashes < 0 ? [] : argv.slice(dashes + 1)
  let stdout = ''
  let stderr = ''
  let result: Arguments | undefined
  const root = program(command, (parsed) => {
    result = parsed
  })
  for (const each of allOf(root)) {
    each.exitOverride().configureOutput({
      writeOut: (text) => {
        stdout += text
      },
      writeErr: (text) => {
        stderr += text
      },
      getOutHelpWidth: () => 100,
      getErrHelpWidth: () => 100,
    })
  }
  const fail = (): Parsed => {
    if (!stderr.startsWith('error:')) return { exitCode: 2, stdout, stderr }
    const name = nameOf(root, args)
    const hint = /^error: too many arguments for '(record|restore|compare)'/.test(stderr)
      ? 'a command goes after --: -- ./invoke-once.sh'
      : `see "reap-trace ${name ? `${name} ` : ''}--help"`
    return { exitCode: 2, stdout, stderr: `${stderr.trimEnd()}\nhint: ${hint}\n` }
  }
  try {
    root.parse([...args], { from: 'user' })
    if (dashes >= 0 && command.length === 0) root.error('error: a command is missing after --')
    if (result && 'command' in result && result.interpose && command.length === 0) {
      root.error('error: --interpose needs a command after --')
    }
    if (command.length > 0 && result && !('command' in result)) {
      root.error(`error: ${result.name} takes no command after --`)
    }
  } catch (error) {
    if (!(error instanceof CommanderError)) throw error
    return error.exitCode === 0 ? { exitCode: 0, stdout, stderr } : fail()
  }
  return { arguments: result! }
}
