import { type Command, Option } from 'commander'
import {
  collect,
  duration,
  integer,
  label,
  path,
  snapshotId,
  snapshotKey,
  socketPath,
} from './values.js'

// Options of more than one command.

export const option = (
  flags: string,
  description: string,
  parser: (text: string) => unknown,
): Option => new Option(flags, description).argParser(parser)

export function addAll(self: Command, options: readonly Option[]): Command {
  for (const each of options) self.addOption(each)
  return self
}

export const required = (...args: Parameters<typeof option>): Option =>
  option(...args).makeOptionMandatory()

export const json = () => new Option('--json', 'print JSON, and nothing else, on stdout')
export const memory = () => required('--memory <file>', "the snapshot's guest memory file", path)
export const socket = () =>
  option(
    '--socket <path>',
    "socket to listen on, the VMM's backend path (not for page-cache)",
    socketPath,
  )
export const disk = () =>
  option(
    '--disk <file>',
    'disk image that the VM reads; repeat for more, in the order of the recording',
    path,
  )
    .argParser(collect(16))
    .default([], 'none')
export const trustWorkingSet = () =>
  new Option('--trust-working-set', 'use a working-set file that other users may write to')
export const output = () => option('-o, --output <file>', 'working-set file to write', path)
export const names = () => [
  option('--label <text>', 'description to store in the file', label),
  option('--snapshot-id <id>', 'unique id of the snapshot', snapshotId),
]
export const vcpus = () =>
  new Option('--vcpus <kind>', "vCPUs of KVM, or threads of the VMM (QEMU's TCG)")
    .choices(['kvm', 'threads'])
    .default('kvm')

export const workingSet = () =>
  option('--working-set <file>', 'working-set file, written by "record"', path)
/** Options of a restore from a store; `without` are the options that it has no use for. */
export const storeOptions = (...without: string[]): Option[] => [
  option('--store <dir>', 'store of sets that learn from each restore; made if missing', path)
    // The options of a set that is named.
    .conflicts(without),
  option('--variant <name>', 'class of the request, such as a route, for the store', label),
  option('--parent <key>', 'with --store: snapshot that this one was made from', snapshotKey),
]

/** Checks that a working set is named or a store, and that `--variant` and `--parent` have one. */
export function checkStore(
  self: Command,
  { store, variant, parent, ...options }: Record<string, unknown>,
  file: 'workingSet' | 'output',
): void {
  if (store !== undefined) return
  if (options[file] === undefined) {
    const flags = self.options.find((each) => each.attributeName() === file)?.flags
    self.error(`error: required option '${flags}' or '--store <dir>' not specified`)
  }
  const given = variant !== undefined ? '--variant' : parent !== undefined ? '--parent' : undefined
  if (given) self.error(`error: ${given} needs --store`)
}

export const sameId = () =>
  option(
    '--snapshot-id <id>',
    'id of the snapshot: a set with the same id needs no other proof',
    snapshotId,
  )
export const peerUid = () =>
  option('--peer-uid <uid>', 'additional uid that the VMM may run as', integer(0, 2 ** 32 - 2))
export const interpose = () =>
  new Option('--interpose', 'serve a VMM that COMMAND starts and that maps the memory file')

export const commandTimeout = () =>
  option(
    '--command-timeout <time>',
    'maximum run time of COMMAND, which then counts as failed',
    duration,
  )

export const serveOptions = () => [
  option('--connect-timeout <time>', 'maximum time to wait for a VMM to connect', duration).default(
    0,
    'none',
  ),
  commandTimeout().default(0, 'none'),
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

export const serveArguments = (options: Record<string, unknown>, command: readonly string[]) => ({
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

export const storeArguments = (options: Record<string, unknown>, command: readonly string[]) => ({
  name: 'restore from store' as const,
  ...serveArguments(options, command),
  store: options.store as string,
  variant: options.variant as string | undefined,
  parent: options.parent as string | undefined,
  snapshotId: options.snapshotId as string | undefined,
})
