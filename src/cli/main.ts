#!/usr/bin/env node
import type { Arguments } from './arguments/arguments.js'
import { parse } from './arguments/program.js'
import { advise } from './commands/advise.js'
import { compare } from './commands/compare.js'
import { diff } from './commands/diff.js'
import { doctor } from './commands/doctor.js'
import { inspect } from './commands/inspect.js'
import { merge } from './commands/merge.js'
import { ready } from './commands/ready.js'
import { AlreadyReported, record } from './commands/record.js'
import { report } from './commands/report.js'
import { restore } from './commands/restore.js'
import { storeExport, storeForget, storeImport, storeList, storeShow } from './commands/store.js'
import { restoreFromStore } from './commands/store-restore.js'
import { verify } from './commands/verify.js'
import { demo } from './demo/demo.js'
import { CliError, errorFields, Interrupted } from './terminal/failure.js'
import { forLocale } from './terminal/locale.js'
import { Terminal } from './terminal/terminal.js'

async function run(args: Arguments, terminal: Terminal): Promise<void> {
  switch (args.name) {
    case 'record':
      return record(args, terminal)
    case 'restore':
      return restore(args, terminal)
    case 'restore from store':
      return restoreFromStore(args, terminal)
    case 'compare':
      return compare(args, terminal)
    case 'advise':
      return advise(args, terminal)
    case 'inspect':
      return inspect(args, terminal)
    case 'diff':
      return diff(args, terminal)
    case 'merge':
      return merge(args, terminal)
    case 'report':
      return report(args, terminal)
    case 'verify':
      return verify(args, terminal)
    case 'store ls':
      return storeList(args, terminal)
    case 'store show':
      return storeShow(args, terminal)
    case 'store forget':
      return storeForget(args, terminal)
    case 'store export':
      return storeExport(args, terminal)
    case 'store import':
      return storeImport(args, terminal)
    case 'ready':
      return ready()
    case 'doctor':
      return doctor(terminal)
    case 'demo':
      return demo(args, terminal)
  }
}

/** Whether wrong arguments ask for JSON. */
const wantsJson = (argv: readonly string[]): boolean =>
  argv.slice(0, argv.includes('--') ? argv.indexOf('--') : undefined).includes('--json')

/** JSON form of a usage error, from its lines. */
function usageError(text: string): Record<string, unknown> {
  const [, message = text] = /^error: (.*)$/m.exec(text) ?? []
  const [, hint] = /^hint: (.*)$/m.exec(text) ?? []
  return errorFields(new CliError('ERR_USAGE', message, hint))
}

async function main(argv: readonly string[]): Promise<void> {
  const parsed = parse(argv)
  const json = 'arguments' in parsed ? parsed.arguments.json : wantsJson(argv)
  const terminal = new Terminal({ json })
  if (!('arguments' in parsed)) {
    process.stdout.write(forLocale(parsed.stdout))
    if (parsed.exitCode !== 0) terminal.emit({ type: 'error', error: usageError(parsed.stderr) })
    process.stderr.write(forLocale(parsed.stderr))
    process.exitCode = parsed.exitCode
    return
  }
  try {
    await run(parsed.arguments, terminal)
  } catch (error) {
    if (error instanceof Interrupted) {
      terminal.interrupted(error)
      // Dies of the signal, so that a shell stops its script too.
      process.kill(process.pid, error.signal)
      return
    }
    if (!(error instanceof AlreadyReported)) terminal.error(error)
    process.exitCode = 1
  }
}

await main(process.argv.slice(2))
