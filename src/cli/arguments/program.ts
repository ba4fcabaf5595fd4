import { createRequire } from 'node:module'
import { Command, CommanderError, Option } from 'commander'
import {
  adviseHelp,
  demoHelp,
  doctorHelp,
  inspectHelp,
  programHelp,
  recordHelp,
  restoreHelp,
  verifyHelp,
} from './help.js'
import {
  duration,
  guestMemory,
  integer,
  label,
  oneMore,
  path,
  snapshotId,
  socketPath,
  timeSpan,
} from './values.js'

/** What `record` and `restore` share. */
export interface ServeArguments {
  readonly memory: string
  /** Empty where the backend needs none. */
  readonly socket: string
  readonly disks: readonly string[]
  readonly json: boolean
  /** 0 waits for ever. */
  readonly connectTimeoutMs: number
  readonly leaveVm: boolean
  readonly peerUid: number | undefined
  /** Empty for none. */
  readonly command: readonly string[]
  /** Load the interposer into COMMAND. */
  readonly interpose: boolean
}

export interface RecordArguments extends ServeArguments {
  readonly name: 'record'
  readonly backend: 'uffd' | 'page-cache'
  readonly output: string
  readonly forMs: number | undefined
  readonly label: string | undefined
  readonly snapshotId: string | undefined
}

export interface RestoreArguments extends ServeArguments {
  readonly name: 'restore'
  readonly backend: 'auto' | 'uffd' | 'page-cache'
  readonly vcpus: 'kvm' | 'threads'
  readonly workingSet: string
  readonly onBadWorkingSet: 'on-demand' | 'fail'
  readonly onStaleWorkingSet: 'warn' | 'rewrite' | 'fail' | undefined
  readonly snapshotId: string | undefined
}

export interface AdviseArguments {
  readonly name: 'advise'
  readonly file: string
  readonly memory: string
  readonly vcpus: 'kvm' | 'threads'
  readonly calibrate: boolean
  readonly json: boolean
}

export interface InspectArguments {
  readonly name: 'inspect'
  readonly file: string
  readonly json: boolean
}

export interface VerifyArguments {
  readonly name: 'verify'
  readonly file: string
  readonly memory: string
  readonly json: boolean
}

export interface DoctorArguments {
  readonly name: 'doctor'
  readonly json: boolean
}

export interface DemoArguments {
  readonly name: 'demo'
  readonly json: boolean
  readonly memoryBytes: number
  readonly rounds: number
  readonly keep: string | undefined
  /** A binary, for a guest in a real microVM. */
  readonly firecracker: string | undefined
}

export type Arguments =
  | RecordArguments
  | RestoreArguments
  | AdviseArguments
  | InspectArguments
  | VerifyArguments
  | DoctorArguments
  | DemoArguments

/** What the command line asks for, or what to print instead of doing it. */
export type Parsed =
  | { readonly arguments: Arguments }
  | { readonly exitCode: 0 | 2; readonly stdout: string; readonly stderr: string }

const version = (): string =>
  (createRequire(import.meta.url)('reap-trace/package.json') as { version: string }).version

const option = (flags: string, description: string, parser: (text: string) => unknown): Option =>
  new Option(flags, description).argParser(parser)

const required = (...args: Parameters<typeof option>): Option =>
  option(...args).makeOptionMandatory()

const json = () => new Option('--json', 'print JSON on stdout, and nothing else there')
const memory = () => required('--memory <file>', "the snapshot's guest memory file", path)
const socket = () =>
  option('--socket <path>', "where to listen for the VMM: its backend's path", socketPath)
const disk = () =>
  option('--disk <file>', 'a disk image that the VM reads; again for more, in one order', path)
    .argParser(oneMore(16))
    .default([], 'none')
const vcpus = () =>
  new Option('--vcpus <kind>', "what runs the guest: KVM, or the VMM's threads (QEMU's TCG)")
    .choices(['kvm', 'threads'])
    .default('kvm')

const serveOptions = () => [
  option('--connect-timeout <time>', 'give up when no VMM has connected by then', duration).default(
    0,
    'none',
  ),
  new Option('--leave-vm', 'leave the VM frozen, instead of killed, when it cannot be served'),
  option('--peer-uid <uid>', 'a uid that the VMM may have, besides ours', integer(0, 2 ** 32 - 2)),
  new Option('--interpose', 'COMMAND has a VMM that maps FILE: take that memory over'),
  json(),
]

const serveArguments = (options: Record<string, unknown>, command: readonly string[]) => ({
  memory: options.memory as string,
  socket: (options.socket as string | undefined) ?? '',
  disks: options.disk as readonly string[],
  json: options.json === true,
  connectTimeoutMs: options.connectTimeout as number,
  leaveVm: options.leaveVm === true,
  peerUid: options.peerUid as number | undefined,
  command,
  interpose: options.interpose === true,
})

/** Tells the caller what a command was given. */
type Found = (args: Arguments) => void

function addAll(self: Command, options: readonly Option[]): Command {
  for (const each of options) self.addOption(each)
  return self
}

/** Every backend but the page cache may need one. */
function needsSocket(command: Command, { backend, socket }: Record<string, unknown>): void {
  if (socket !== undefined || backend === 'page-cache') return
  command.error("error: required option '--socket <path>' not specified")
}

/** The page cache needs nothing in the VMM. */
function mayInterpose(command: Command, { backend, interpose }: Record<string, unknown>): void {
  if (!interpose || backend !== 'page-cache') return
  command.error('error: --interpose is for a fault handler, and --backend page-cache has none')
}

function recordCommand(command: readonly string[], found: Found): Command {
  const self = new Command('record')
    .summary('record the working set of a restored VM')
    .description(
      'Notes which pages of its memory a restored VM touches and in which order, and writes them to a\nworking-set file: as a handler that serves its page faults, or, with --backend page-cache, by what\ncomes into the page cache.',
    )
    .usage('--memory FILE [--socket PATH] --output FILE [options] [-- COMMAND …]')
    .addHelpText('after', recordHelp)
    .action((options) => {
      const { backend, output, label, snapshotId } = options
      needsSocket(self, options)
      mayInterpose(self, options)
      if (options.disk.length > 0 && backend === 'uffd') {
        self.error('error: --disk needs --backend page-cache, which sees the reads of disk images')
      }
      const args = serveArguments(options, command)
      found({ name: 'record', backend, ...args, output, forMs: options.for, label, snapshotId })
    })
  return addAll(self, [
    memory(),
    new Option('--backend <how>', 'serve the faults, or watch what comes into the page cache')
      .choices(['uffd', 'page-cache'])
      .default('uffd'),
    socket(),
    disk(),
    required('--output <file>', 'the working-set file to write', path),
    option(
      '--for <time>',
      "record for so long, from the VM's connection or the eviction on: 2s",
      timeSpan,
    ),
    option('--label <text>', 'what the file shall say of itself', label),
    option('--snapshot-id <id>', 'a name that only this snapshot has', snapshotId),
    ...serveOptions(),
  ])
}

function restoreCommand(command: readonly string[], found: Found): Command {
  const self = new Command('restore')
    .summary('restore a VM with its working set brought beforehand')
    .description(
      'Brings the pages of a working set before the VM asks for them: as a handler that serves its page\nfaults, or, with --backend page-cache, into the page cache.',
    )
    .usage('--memory FILE [--socket PATH] --working-set FILE [options] [-- COMMAND …]')
    .addHelpText('after', restoreHelp)
    .action((options) => {
      const { backend, vcpus, workingSet, onBadWorkingSet, onStaleWorkingSet, snapshotId } = options
      needsSocket(self, options)
      mayInterpose(self, options)
      const args = serveArguments(options, command)
      found({
        name: 'restore',
        backend,
        vcpus,
        ...args,
        workingSet,
        onBadWorkingSet,
        onStaleWorkingSet,
        snapshotId,
      })
    })
  return addAll(self, [
    memory(),
    new Option('--backend <how>', 'install the pages, bring them into the page cache, or choose')
      .choices(['auto', 'uffd', 'page-cache'])
      .default('uffd'),
    socket(),
    disk(),
    vcpus(),
    required('--working-set <file>', 'what "record" wrote', path),
    new Option('--on-bad-working-set <what>', 'when it is damaged, or of a memory of another size')
      .choices(['on-demand', 'fail'])
      .default('on-demand'),
    new Option(
      '--on-stale-working-set <what>',
      'when pages of it are not those of the memory file (default: "fail" with --on-bad-working-set fail, else "warn")',
    ).choices(['warn', 'rewrite', 'fail']),
    option(
      '--snapshot-id <id>',
      'name of the snapshot: a set with this name needs no other proof',
      snapshotId,
    ),
    ...serveOptions(),
  ])
}

function adviseCommand(found: Found): Command {
  return new Command('advise')
    .summary('say which backend a restore would use now, and why')
    .description('Says which backend a restore of a snapshot would use on this host now, and why.')
    .argument('<file>', 'a working-set file', path)
    .addOption(memory())
    .addOption(vcpus())
    .addOption(
      new Option('--no-calibrate', 'do not calibrate a host that was not calibrated before'),
    )
    .addOption(json())
    .addHelpText('after', adviseHelp)
    .action((file, { memory, vcpus, calibrate, json }) =>
      found({ name: 'advise', file, memory, vcpus, calibrate, json: json === true }),
    )
}

function inspectCommand(found: Found): Command {
  return new Command('inspect')
    .summary('show what is in a working-set file')
    .description('Shows what is in a working-set file, with a map of the address space.')
    .argument('<file>', 'a working-set file', path)
    .addOption(json())
    .addHelpText('after', inspectHelp)
    .action((file, options) => found({ name: 'inspect', file, json: options.json === true }))
}

function verifyCommand(found: Found): Command {
  return new Command('verify')
    .summary('compare every page of a working-set file with the snapshot')
    .description('Compares every page of a working-set file with the memory file.')
    .argument('<file>', 'a working-set file', path)
    .addOption(memory())
    .addOption(json())
    .addHelpText('after', verifyHelp)
    .action((file, { memory, json }) =>
      found({ name: 'verify', file, memory, json: json === true }),
    )
}

function doctorCommand(found: Found): Command {
  return new Command('doctor')
    .summary('check what this machine has')
    .description(
      'Checks kernel, userfaultfd, permissions and limits, and names the command that mends each.',
    )
    .addOption(json())
    .addHelpText('after', doctorHelp)
    .action((options) => found({ name: 'doctor', json: options.json === true }))
}

function demoCommand(found: Found): Command {
  const self = new Command('demo')
    .summary('record and restore the embedded guest, and compare')
    .description('Shows on this machine what recording and prefetching a working set does.')
    .addHelpText('after', demoHelp)
    .action(({ memorySize: memoryBytes, rounds, keep, firecracker, json }) => {
      found({ name: 'demo', json: json === true, memoryBytes, rounds, keep, firecracker })
    })
  return addAll(self, [
    option('--memory-size <size>', "the guest's memory", guestMemory).default(2 ** 28, '256M'),
    option('--rounds <n>', 'restores of each kind', integer(1, 1000)).default(5),
    option('--keep <dir>', 'make guest.mem and guest.ws there, and leave them', path),
    option('--firecracker [path]', 'restore a real microVM with this binary', path).preset(
      'firecracker',
    ),
    json(),
  ])
}

function program(command: readonly string[], found: Found): Command {
  const root = new Command('reap-trace')
    .description(
      'Records what a microVM touches after a snapshot restore, and brings it beforehand.',
    )
    .version(version(), '-V, --version', 'print the version')
    .helpOption('-h, --help', 'print help')
    .helpCommand('help [command]', 'print help for a command')
    .usage('COMMAND [options]')
    .addHelpText('after', programHelp)
  const commands = [
    recordCommand(command, found),
    restoreCommand(command, found),
    adviseCommand(found),
    inspectCommand(found),
    verifyCommand(found),
    doctorCommand(found),
    demoCommand(found),
  ]
  for (const each of commands) root.addCommand(each.helpOption('-h, --help', 'print help'))
  return root
}

/** Reads a command line, without the program's name. Does nothing else. */
export function parse(argv: readonly string[]): Parsed {
  const dashes = argv.indexOf('--')
  const own = dashes < 0 ? argv : argv.slice(0, dashes)
  const command = dashes < 0 ? [] : argv.slice(dashes + 1)
  let stdout = ''
  let stderr = ''
  let result: Arguments | undefined
  const root = program(command, (args) => {
    result = args
  })
  for (const each of [root, ...root.commands]) {
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
    const name = root.commands.find((each) => each.name() === own[0])?.name()
    const hint = /^error: too many arguments for '(record|restore)'/.test(stderr)
      ? 'a command goes after --: -- ./invoke-once.sh'
      : `see "reap-trace ${name ? `${name} ` : ''}--help"`
    return { exitCode: 2, stdout, stderr: `${stderr.trimEnd()}\nhint: ${hint}\n` }
  }
  try {
    root.parse([...own], { from: 'user' })
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
