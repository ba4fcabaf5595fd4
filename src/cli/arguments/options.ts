import { type Command, Option } from 'commander'
import { collect, duration, integer, label, path, snapshotId, socketPath } from './values.js'

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
export const output = () => required('-o, --output <file>', 'working-set file to write', path)
export const names = () => [
  option('--label <text>', 'description to store in the file', label),
  option('--snapshot-id <id>', 'unique id of the snapshot', snapshotId),
]
export const vcpus = () =>
  new Option('--vcpus <kind>', "vCPUs of KVM, or threads of the VMM (QEMU's TCG)")
    .choices(['kvm', 'threads'])
    .default('kvm')

export const workingSet = () =>
  required('--working-set <file>', 'working-set file, written by "record"', path)
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
