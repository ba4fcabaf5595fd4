import { Command } from 'commander'
import type { OnParsed } from './arguments.js'
import { diffHelp, inspectHelp, mergeHelp, reportHelp, verifyHelp } from './help.js'
import {
  addAll,
  disk,
  json,
  memory,
  names,
  option,
  output,
  required,
  trustWorkingSet,
} from './options.js'
import { collect, integer, path, timeSpan } from './values.js'

// Commands for files that exist already.

function inspectCommand(onParsed: OnParsed): Command {
  return new Command('inspect')
    .summary('show the content of a working-set file')
    .description(
      'Shows the content of a working-set or trace file, with a map of the address space.',
    )
    .argument('<file>', 'a working-set or trace file', path)
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
    output().makeOptionMandatory(),
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
    .summary('draw working sets, restores and comparisons in an HTML page')
    .description(
      'Draws working sets, restores and comparisons in one HTML page that needs no network.',
    )
    .argument(
      '<files...>',
      'working sets, files of "restore --trace", and output of "compare --json"',
      collect(26),
    )
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

export const setCommands = (onParsed: OnParsed): Command[] => [
  inspectCommand(onParsed),
  diffCommand(onParsed),
  mergeCommand(onParsed),
  reportCommand(onParsed),
  verifyCommand(onParsed),
]
