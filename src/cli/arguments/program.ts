import { randomInt } from 'node:crypto'
import { createRequire } from 'node:module'
import { Command, CommanderError, Option } from 'commander'
import { type Arm, arms } from '../compare/arms.js'
import { type Cache, caches } from '../measure/page-cache.js'
import {
  adviseHelp,
  compareHelp,
  demoHelp,
  diffHelp,
  doctorHelp,
  inspectHelp,
  mergeHelp,
  programHelp,
  readyHelp,
  recordHelp,
  reportHelp,
  restoreHelp,
  verifyHelp,
} from './help.js'
import {
  armList,
  collect,
  duration,
  guestMemory,
  integer,
  label,
  path,
  snapshotId,
  socketPath,
  timeSpan,
} from './values.js'

/** Arguments of both `record` and `restore`. */
export interface ServeArguments {
  readonly memory: string
  /** Path of the socket; empty if the backend needs none. */
  readonly socket: string
  readonly disks: readonly string[]
  readonly json: boolean
  /** 0 waits indefinitely. */
  readonly connectTimeoutMs: number
  /** 0 waits indefinitely. */
  readonly commandTimeoutMs: number
  /** 0 sets no limit. */
  readonly readTimeoutMs: number
  readonly onReadTimeout: 'warn' | 'fail'
  readonly leaveVm: boolean
  readonly peerUid: number | undefined
  /** COMMAND and its arguments; empty for none. */
  readonly command: readonly string[]
  /** Whether to load the interposer into COMMAND. */
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
  readonly trustWorkingSet: boolean
  readonly onBadWorkingSet: 'on-demand' | 'fail'
  readonly onStaleWorkingSet: 'warn' | 'rewrite' | 'fail' | undefined
  readonly snapshotId: string | undefined
}

export interface CompareArguments {
  readonly name: 'compare'
  readonly memory: string
  readonly workingSet: string
  readonly disks: readonly string[]
  /** Path of the socket of handlers; `undefined` for one in a private folder. */
  readonly socket: string | undefined
  readonly rounds: number
  readonly arms: readonly Arm[]
  readonly caches: readonly Cache[]
  readonly seed: number
  readonly trustWorkingSet: boolean
  readonly snapshotId: string | undefined
  readonly vcpus: 'kvm' | 'threads'
  readonly peerUid: number | undefined
  readonly interpose: boolean
  readonly commandTimeoutMs: number
  readonly exportCsv: string | undefined
  readonly exportMarkdown: string | undefined
  readonly json: boolean
  readonly command: readonly string[]
}

export interface AdviseArguments {
  readonly name: 'advise'
  readonly file: string
  readonly memory: string
  readonly vcpus: 'kvm' | 'threads'
  readonly calibrate: boolean
  readonly trustWorkingSet: boolean
  readonly json: boolean
}

export interface InspectArguments {
  readonly name: 'inspect'
  readonly file: string
  readonly memory: string | undefined
  readonly json: boolean
}

export interface DiffArguments {
  readonly name: 'diff'
  readonly a: string
  readonly b: string
  readonly firstMs: number | undefined
  readonly json: boolean
}

export interface MergeArguments {
  readonly name: 'merge'
  readonly files: readonly string[]
  readonly memory: string
  readonly disks: readonly string[]
  readonly output: string
  readonly minSets: number | undefined
  readonly label: string | undefined
  readonly snapshotId: string | undefined
  readonly trustWorkingSet: boolean
  readonly json: boolean
}

export interface ReportArguments {
  readonly name: 'report'
  readonly files: readonly string[]
  readonly output: string
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

export interface ReadyArguments {
  readonly name: 'ready'
  readonly json: boolean
}

export interface DemoArguments {
  readonly name: 'demo'
  readonly json: boolean
  readonly memoryBytes: number
  readonly rounds: number
  readonly keep: string | undefined
  /** Path of the Firecracker binary; `undefined` for the embedded guest. */
  readonly firecracker: string | undefined
}

export type Arguments =
  | RecordArguments
  | RestoreArguments
  | CompareArguments
  | AdviseArguments
  | InspectArguments
  | DiffArguments
  | MergeArguments
  | ReportArguments
  | VerifyArguments
  | ReadyArguments
  | DoctorArguments
  | DemoArguments

/** Parsed arguments, or output and exit code for help and wrong usage. */
export type Parsed =
  | { readonly arguments: Arguments }
  | { readonly exitCode: 0 | 2; readonly stdout: string; readonly stderr: string }

const version = (): string =>
  (createRequire(import.meta.url)('reap-trace/package.json') as { version: string }).version

const option = (flags: string, description: string, parser: (text: string) => unknown): Option =>
  new Option(flags, description).argParser(parser)

const required = (...args: Parameters<typeof option>): Option =>
  option(...args).makeOptionMandatory()

const json = () => new Option('--json', 'print JSON, and nothing else, on stdout')
const memory = () => required('--memory <file>', "the snapshot's guest memory file", path)
const socket = () =>
  option(
    '--socket <path>',
    "socket to listen on, the VMM's backend path (not for page-cache)",
    socketPath,
  )
const disk = () =>
  option(
    '--disk <file>',
    'disk image that the VM reads; repeat for more, in the order of the recording',
    path,
  )
    .argParser(collect(16))
    .default([], 'none')
const trustWorkingSet = () =>
  new Option('--trust-working-set', 'use a working-set file that other users may write to')
const output = () => required('-o, --output <file>', 'working-set file to write', path)
const names = () => [
  option('--label <text>', 'description to store in the file', label),
  option('--snapshot-id <id>', 'unique id of the snapshot', snapshotId),
]
const vcpus = () =>
  new Option('--vcpus <kind>', "vCPUs of KVM, or threads of the VMM (QEMU's TCG)")
    .choices(['kvm', 'threads'])
    .default('kvm')

const workingSet = () =>
  required('--working-set <file>', 'working-set file, written by "record"', path)
const sameId = () =>
  option(
    '--snapshot-id <id>',
    'id of the snapshot: a set with the same id needs no other proof',
    snapshotId,
  )
const peerUid = () =>
  option('--peer-uid <uid>', 'additional uid that the VMM may run as', integer(0, 2 ** 32 - 2))
const interpose = () =>
  new Option('--interpose', 'serve a VMM that COMMAND starts and that maps the memory file')

const serveOptions = () => [
  option('--connect-timeout <time>', 'maximum time to wait for a VMM to connect', duration).default(
    0,
    'none',
  ),
  option(
    '--command-timeout <time>',
    'maximum run time of COMMAND, which then counts as failed',
    duration,
  ).default(0, 'none'),
  option(
    '--read-timeout <time>',
    'time after which a read of a file counts as hung; 0s: never',
    duration,
  ).default(30_000, '30s'),
  new Option(
    '--on-read-timeout <what>',
    'what to do when a read of the memory file hangs; "fail" ends the session',
  )
    .choices(['warn', 'fail'])
    .default('warn'),
  new Option('--leave-vm', 'do not kill a VM that can no longer be served: leave it frozen'),
  peerUid(),
  interpose(),
  json(),
]

const serveArguments = (options: Record<string, unknown>, command: readonly string[]) => ({
  memory: options.memory as string,
  socket: (options.socket as string | undefined) ?? '',
  disks: options.disk as readonly string[],
  json: options.json === true,
  connectTimeoutMs: options.connectTimeout as number,
  commandTimeoutMs: options.commandTimeout as number,
  readTimeoutMs: options.readTimeout as number,
  onReadTimeout: options.onReadTimeout as 'warn' | 'fail',
  leaveVm: options.leaveVm === true,
  peerUid: options.peerUid as number | undefined,
  command,
  interpose: options.interpose === true,
})

/** Called with the parsed arguments of a command. */
type OnParsed = (args: Arguments) => void

function addAll(self: Command, options: readonly Option[]): Command {
  for (const each of options) self.addOption(each)
  return self
}

/** Checks --socket and --interpose against the backend. */
function checkBackend(command: Command, options: Record<string, unknown>): void {
  const { backend, socket, interpose } = options
  if (backend !== 'page-cache') {
    if (socket === undefined)
      command.error("error: required option '--socket <path>' not specified")
  } else if (interpose) {
    command.error('error: --interpose is for a fault handler, not for --backend page-cache')
  }
}

function recordCommand(command: readonly string[], onParsed: OnParsed): Command {
  const self = new Command('record')
    .summary('record the working set of a restored VM')
    .description(
      'Records which pages of its memory a restored VM touches, and in which order, in a working-set file:\nas a handler of its page faults, or, with --backend page-cache, by watching the page cache.',
    )
    .usage('--memory FILE [--socket PATH] --output FILE [options] [-- COMMAND …]')
    .addHelpText('after', recordHelp)
    .action((options) => {
      const { backend, output, label, snapshotId } = options
      checkBackend(self, options)
      if (options.disk.length > 0 && backend === 'uffd') {
        self.error('error: --disk needs --backend page-cache, which records reads of disk images')
      }
      const args = serveArguments(options, command)
      onParsed({ name: 'record', backend, ...args, output, forMs: options.for, label, snapshotId })
    })
  return addAll(self, [
    memory(),
    new Option('--backend <how>', 'serve the page faults, or watch the page cache')
      .choices(['uffd', 'page-cache'])
      .default('uffd'),
    socket(),
    disk(),
    output(),
    option('--for <time>', 'duration of the recording, such as 2s', timeSpan),
    ...names(),
    ...serveOptions(),
  ])
}

function restoreCommand(command: readonly string[], onParsed: OnParsed): Command {
  const self = new Command('restore')
    .summary('restore a VM with its working set prefetched')
    .description(
      'Prefetches the pages of a working set for a VM: as a handler of its page faults, or, with\n--backend page-cache, into the page cache.',
    )
    .usage('--memory FILE [--socket PATH] --working-set FILE [options] [-- COMMAND …]')
    .addHelpText('after', restoreHelp)
    .action((options) => {
      const { backend, vcpus, workingSet, onBadWorkingSet, onStaleWorkingSet, snapshotId } = options
      checkBackend(self, options)
      const args = serveArguments(options, command)
      onParsed({
        name: 'restore',
        backend,
        vcpus,
        ...args,
        workingSet,
        trustWorkingSet: options.trustWorkingSet === true,
        onBadWorkingSet,
        onStaleWorkingSet,
        snapshotId,
      })
    })
  return addAll(self, [
    memory(),
    new Option('--backend <how>', 'install the pages, prefetch them into the page cache, or choose')
      .choices(['auto', 'uffd', 'page-cache'])
      .default('uffd'),
    socket(),
    disk(),
    vcpus(),
    workingSet(),
    trustWorkingSet(),
    new Option(
      '--on-bad-working-set <what>',
      'what to do with a set that is damaged, of another memory size, or not trusted',
    )
      .choices(['on-demand', 'fail'])
      .default('on-demand'),
    new Option(
      '--on-stale-working-set <what>',
      'what to do with a set that differs from the memory file (default: "fail" with --on-bad-working-set fail, else "warn")',
    ).choices(['warn', 'rewrite', 'fail']),
    sameId(),
    ...serveOptions(),
  ])
}

function compareCommand(command: readonly string[], onParsed: OnParsed): Command {
  const self = new Command('compare')
    .summary('measure restores of your own VM, with and without its working set')
    .description(
      'Restores a VM again and again in several ways, in turns, and compares the time until COMMAND is\nready.',
    )
    .usage('--memory FILE --working-set FILE [options] -- COMMAND …')
    .addHelpText('after', compareHelp)
    .action((options) => {
      const { memory, workingSet, disk: disks, socket, rounds, arms, snapshotId, vcpus } = options
      const { peerUid, commandTimeout: commandTimeoutMs, exportCsv, exportMarkdown } = options
      if (command.length === 0)
        self.error('error: a command is missing: -- ./restore-and-invoke.sh')
      const chosen = caches.filter((cache) => options[cache] === true)
      onParsed({
        ...{ name: 'compare', memory, workingSet, disks, socket, rounds, arms, snapshotId, vcpus },
        ...{ peerUid, commandTimeoutMs, exportCsv, exportMarkdown, command },
        caches: chosen.length > 0 ? chosen : caches,
        seed: options.seed ?? randomInt(2 ** 31),
        trustWorkingSet: options.trustWorkingSet === true,
        interpose: options.interpose === true,
        json: options.json === true,
      })
    })
  return addAll(self, [
    memory(),
    workingSet(),
    disk(),
    option('--rounds <n>', 'number of restores by each arm', integer(1, 1000)).default(10),
    option('--arms <list>', 'ways to restore, see below', armList).default(arms, arms.join(',')),
    new Option('--cold', 'only with the files evicted from the page cache'),
    new Option('--warm', 'only with the files in the page cache'),
    option('--seed <n>', 'repeat the order of an earlier run', integer(0, 2 ** 31 - 1)),
    option('--socket <path>', "the VMM's backend path (default: in a private folder)", socketPath),
    option(
      '--command-timeout <time>',
      'maximum time for COMMAND, which then fails',
      duration,
    ).default(60_000, '1m'),
    vcpus(),
    trustWorkingSet(),
    sameId(),
    peerUid(),
    interpose(),
    option('--export-csv <file>', 'write each run as a row', path),
    option('--export-markdown <file>', 'write the tables', path),
    json(),
  ])
}

function adviseCommand(onParsed: OnParsed): Command {
  return new Command('advise')
    .summary('show which backend a restore would use now, and why')
    .description('Shows which backend a restore of a snapshot would use on this host now, and why.')
    .argument('<file>', 'a working-set file', path)
    .addOption(memory())
    .addOption(vcpus())
    .addOption(trustWorkingSet())
    .addOption(new Option('--no-calibrate', 'do not calibrate this host'))
    .addOption(json())
    .addHelpText('after', adviseHelp)
    .action((file, { memory, vcpus, calibrate, ...flags }) => {
      const [trustWorkingSet, json] = [flags.trustWorkingSet === true, flags.json === true]
      onParsed({ name: 'advise', file, memory, vcpus, calibrate, trustWorkingSet, json })
    })
}

function inspectCommand(onParsed: OnParsed): Command {
  return new Command('inspect')
    .summary('show the content of a working-set file')
    .description('Shows the content of a working-set file, with a map of the address space.')
    .argument('<file>', 'a working-set file', path)
    .addOption(option('--memory <file>', "also look at the snapshot's guest memory file", path))
    .addOption(json())
    .addHelpText('after', inspectHelp)
    .action((file, { memory, json }) =>
      onParsed({ name: 'inspect', file, memory, json: json === true }),
    )
}

function diffCommand(onParsed: OnParsed): Command {
  return new Command('diff')
    .summary('compare the pages of two working sets')
    .description('Compares the pages of two working-set or trace files, and their order.')
    .argument('<a>', 'a working-set or trace file', path)
    .argument('<b>', 'another one, of the same snapshot', path)
    .addOption(
      option('--first <time>', 'also compare the pages touched by then, such as 20ms', timeSpan),
    )
    .addOption(json())
    .addHelpText('after', diffHelp)
    .action((a, b, { first, json }) =>
      onParsed({ name: 'diff', a, b, firstMs: first, json: json === true }),
    )
}

function mergeCommand(onParsed: OnParsed): Command {
  const self = new Command('merge')
    .summary('merge working sets into one')
    .description('Merges working-set or trace files of one snapshot into a working-set file.')
    .usage('FILE… --memory FILE --output FILE [options]')
    .argument('<files...>', 'working-set or trace files')
    .addHelpText('after', mergeHelp)
    .action((files: string[], { memory, disk: disks, minSets, ...options }) => {
      if (files.includes('')) self.error('error: the path of a file must not be empty')
      if (minSets > files.length) {
        self.error(`error: --min-sets is ${minSets}, and ${files.length} files are given`)
      }
      onParsed({
        name: 'merge',
        files,
        memory,
        disks,
        output: options.output,
        minSets,
        label: options.label,
        snapshotId: options.snapshotId,
        trustWorkingSet: options.trustWorkingSet === true,
        json: options.json === true,
      })
    })
  return addAll(self, [
    memory(),
    disk(),
    output(),
    option(
      '--min-sets <n>',
      'number of files that must have a page to keep it (default: all of them)',
      integer(1, 2 ** 31),
    ),
    ...names(),
    trustWorkingSet(),
    json(),
  ])
}

function reportCommand(onParsed: OnParsed): Command {
  return new Command('report')
    .summary('draw working sets and restores in an HTML page')
    .description(
      'Draws working sets and restores in one HTML page that needs no network, and compares them.',
    )
    .argument('<files...>', 'working sets, and records of "restore --trace"', collect(26))
    .addOption(required('-o, --output <file>', 'HTML file to write', path))
    .addOption(json())
    .addHelpText('after', reportHelp)
    .action((files, { output, json }) =>
      onParsed({ name: 'report', files, output, json: json === true }),
    )
}

function verifyCommand(onParsed: OnParsed): Command {
  return new Command('verify')
    .summary('compare every page of a working-set file with the snapshot')
    .description('Compares every page of a working-set file with the memory file.')
    .argument('<file>', 'a working-set file', path)
    .addOption(memory())
    .addOption(json())
    .addHelpText('after', verifyHelp)
    .action((file, { memory, json }) =>
      onParsed({ name: 'verify', file, memory, json: json === true }),
    )
}

function readyCommand(onParsed: OnParsed): Command {
  return new Command('ready')
    .summary('mark the guest as ready, in the COMMAND of record, restore or compare')
    .description(
      'Tells the reap-trace that runs this command line that its guest is ready, as of the start of\nthis process.',
    )
    .addOption(json())
    .addHelpText('after', readyHelp)
    .action((options) => onParsed({ name: 'ready', json: options.json === true }))
}

function doctorCommand(onParsed: OnParsed): Command {
  return new Command('doctor')
    .summary('check this machine')
    .description(
      'Checks kernel, userfaultfd, permissions and limits, and shows the command that fixes each problem.',
    )
    .addOption(json())
    .addHelpText('after', doctorHelp)
    .action((options) => onParsed({ name: 'doctor', json: options.json === true }))
}

function demoCommand(onParsed: OnParsed): Command {
  const self = new Command('demo')
    .summary('record and restore the embedded guest, and compare')
    .description('Shows the effect of recording and prefetching a working set on this machine.')
    .addHelpText('after', demoHelp)
    .action(({ memorySize: memoryBytes, rounds, keep, firecracker, json }) => {
      onParsed({ name: 'demo', json: json === true, memoryBytes, rounds, keep, firecracker })
    })
  return addAll(self, [
    option('--memory-size <size>', "the guest's memory", guestMemory).default(2 ** 28, '256M'),
    option('--rounds <n>', 'number of restores of each kind', integer(1, 1000)).default(5),
    option('--keep <dir>', 'create guest.mem and guest.ws there, and keep them', path),
    option('--firecracker [path]', 'restore a real microVM with this binary', path).preset(
      'firecracker',
    ),
    json(),
  ])
}

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
  const commands = [
    recordCommand(command, onParsed),
    restoreCommand(command, onParsed),
    compareCommand(command, onParsed),
    adviseCommand(onParsed),
    inspectCommand(onParsed),
    diffCommand(onParsed),
    mergeCommand(onParsed),
    reportCommand(onParsed),
    verifyCommand(onParsed),
    readyCommand(onParsed),
    doctorCommand(onParsed),
    demoCommand(onParsed),
  ]
  for (const each of commands) root.addCommand(each.helpOption('-h, --help', 'print help'))
  return root
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
    const name = root.commands.find((each) => each.name() === args[0])?.name()
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
