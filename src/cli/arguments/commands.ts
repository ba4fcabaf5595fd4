import { randomInt } from 'node:crypto'
import { Command, Option } from 'commander'
import { arms } from '../compare/arms.js'
import { caches } from '../measure/page-cache.js'
import type { OnParsed } from './arguments.js'
import {
  adviseHelp,
  compareHelp,
  demoHelp,
  doctorHelp,
  readyHelp,
  recordHelp,
  restoreHelp,
} from './help.js'
import {
  addAll,
  checkStore,
  commandTimeout,
  disk,
  interpose,
  json,
  memory,
  names,
  option,
  output,
  peerUid,
  sameId,
  serveArguments,
  serveOptions,
  socket,
  storeArguments,
  storeOptions,
  trustWorkingSet,
  vcpus,
  workingSet,
} from './options.js'
import { setCommands } from './set-commands.js'
import { storeCommand } from './store-commands.js'
import { armList, guestMemory, integer, path, socketPath, timeSpan } from './values.js'

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
    .usage('--memory FILE (--output FILE | --store DIR) [options] [-- COMMAND …]')
    .addHelpText('after', recordHelp)
    .action((options) => {
      const { backend, output, label, snapshotId } = options
      checkBackend(self, options)
      checkStore(self, options, 'output')
      if (options.store !== undefined) {
        if (backend === 'page-cache') {
          self.error('error: --store needs a fault handler to record, not --backend page-cache')
        }
        const ways = { record: true, backend: 'uffd', vcpus: 'kvm', trace: undefined } as const
        return onParsed({ ...storeArguments(options, command), ...ways, forMs: options.for })
      }
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
    ...storeOptions('output', 'label', 'disk'),
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
    .usage('--memory FILE (--working-set FILE | --store DIR) [options] [-- COMMAND …]')
    .addHelpText('after', restoreHelp)
    .action((options) => {
      const { backend, vcpus, workingSet, onBadWorkingSet, onStaleWorkingSet, ...more } = options
      checkBackend(self, options)
      checkStore(self, options, 'workingSet')
      if (options.store !== undefined) {
        const { trace } = options
        const ways = { record: false, backend, vcpus, trace, forMs: undefined }
        return onParsed({ ...storeArguments(options, command), ...ways })
      }
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
        snapshotId: more.snapshotId,
        trace: more.trace,
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
    ...storeOptions(
      'workingSet',
      'trustWorkingSet',
      'onBadWorkingSet',
      'onStaleWorkingSet',
      'disk',
    ),
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
    option(
      '--trace <file>',
      'write a record of the restore, for "report" and ui.perfetto.dev',
      path,
    ),
    ...serveOptions(),
  ])
}

function compareCommand(command: readonly string[], onParsed: OnParsed): Command {
  const self = new Command('compare')
    .summary('measure restores of your own VM, with and without its working set')
    .description(
      'Restores a VM repeatedly in several ways, in turns, and compares the times until COMMAND is ready.',
    )
    .usage('--memory FILE --working-set FILE [options] -- COMMAND …')
    .addHelpText('after', compareHelp)
    .action((options) => {
      const { memory, workingSet, disk: disks, socket, rounds, arms, snapshotId, vcpus } = options
      const { peerUid, commandTimeout: commandTimeoutMs } = options
      const { report, exportCsv, exportMarkdown } = options
      if (command.length === 0)
        self.error('error: a command is missing: -- ./restore-and-invoke.sh')
      const chosen = caches.filter((cache) => options[cache] === true)
      onParsed({
        ...{ name: 'compare', memory, workingSet, disks, socket, rounds, arms, snapshotId, vcpus },
        ...{ peerUid, commandTimeoutMs, report, exportCsv, exportMarkdown, command },
        caches: chosen.length > 0 ? chosen : caches,
        seed: options.seed ?? randomInt(2 ** 31),
        trustWorkingSet: options.trustWorkingSet === true,
        interpose: options.interpose === true,
        json: options.json === true,
      })
    })
  return addAll(self, [
    memory(),
    workingSet().makeOptionMandatory(),
    disk(),
    option('--rounds <n>', 'number of restores by each arm', integer(1, 1000)).default(10),
    option('--arms <list>', 'ways to restore, see below', armList).default(arms, arms.join(',')),
    new Option('--cold', 'only with the files evicted from the page cache'),
    new Option('--warm', 'only with the files in the page cache'),
    option('--seed <n>', 'repeat the order of an earlier run', integer(0, 2 ** 31 - 1)),
    option('--socket <path>', "the VMM's backend path (default: in a private folder)", socketPath),
    commandTimeout().default(60_000, '1m'),
    vcpus(),
    trustWorkingSet(),
    sameId(),
    peerUid(),
    interpose(),
    option('--report <file>', 'write a page with pictures of all runs', path),
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

function readyCommand(onParsed: OnParsed): Command {
  return new Command('ready')
    .summary('mark the guest as ready, in the COMMAND of record, restore or compare')
    .description(
      'Marks the guest of the surrounding record, restore or compare as ready, as of the start of this\nprocess.',
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

/** All commands; `command` is what follows the dashes. */
export const commandsOf = (command: readonly string[], onParsed: OnParsed): Command[] => [
  recordCommand(command, onParsed),
  restoreCommand(command, onParsed),
  compareCommand(command, onParsed),
  adviseCommand(onParsed),
  ...setCommands(onParsed),
  storeCommand(onParsed),
  readyCommand(onParsed),
  doctorCommand(onParsed),
  demoCommand(onParsed),
]
