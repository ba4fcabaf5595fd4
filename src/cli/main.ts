#!/usr/bin/env node
import { advise } from './advise.js'
import { demo } from './demo.js'
import { doctor } from './doctor.js'
import { Interrupted } from './failure.js'
import { inspect } from './inspect.js'
import { type Arguments, parse } from './program.js'
import { Reported, record } from './record.js'
import { restore } from './restore.js'
import { Terminal } from './terminal.js'
import { verify } from './verify.js'

async function run(args: Arguments, terminal: Terminal): Promise<void> {
  switch (args.name) {
    case 'record':
      return record(args, terminal)
    case 'restore':
      return restore(args, terminal)
    case 'advise':
      return advise(args, terminal)
    case 'inspect':
      return inspect(args, terminal)
    case 'verify':
      return verify(args, terminal)
    case 'doctor':
      return doctor(terminal)
    case 'demo':
      return demo(args, terminal)
  }
}

async function main(argv: readonly string[]): Promise<void> {
  const parsed = parse(argv)
  const terminal = new Terminal({ json: 'arguments' in parsed && parsed.arguments.json })
  if (!('arguments' in parsed)) {
    process.stdout.write(parsed.stdout)
    process.stderr.write(parsed.stderr)
    process.exitCode = parsed.exitCode
    return
  }
  try {
    await run(parsed.arguments, terminal)
  } catch (error) {
    if (error instanceof Interrupted) {
      terminal.say(error.message)
      // So that a shell knows, and stops its script too.
      process.kill(process.pid, error.signal)
      return
    }
    if (!(error instanceof Reported)) terminal.error(error)
    process.exitCode = 1
  }
}

await main(process.argv.slice(2))
