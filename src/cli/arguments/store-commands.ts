import { Argument, Command } from 'commander'
import type { NamedSnapshot, OnParsed } from './arguments.js'
import {
  storeExportHelp,
  storeForgetHelp,
  storeHelp,
  storeImportHelp,
  storeListHelp,
  storeShowHelp,
} from './help-store.js'
import { addAll, json, memory, option, required } from './options.js'
import { path, snapshotId, snapshotKey } from './values.js'

const folder = () => new Argument('<dir>', 'folder of the store').argParser(path)
const key = () => new Argument('[key]', 'key of a snapshot, see "store ls"').argParser(snapshotKey)

/** Options that name a snapshot by its files. */
const files = () => [
  memory().makeOptionMandatory(false),
  option('--snapshot-id <id>', 'id of the snapshot, if it was restored with one', snapshotId),
]

/** The snapshot that a key or the options name. */
function namedSnapshot(
  self: Command,
  key: string | undefined,
  { memory: memoryFile, snapshotId: id }: Record<string, string | undefined>,
): NamedSnapshot {
  if (key !== undefined && memoryFile !== undefined) {
    self.error('error: a key and --memory name a snapshot: give one of them')
  }
  if (memoryFile === undefined && id !== undefined)
    self.error('error: --snapshot-id needs --memory')
  return (
    key ??
    (memoryFile === undefined
      ? self.error('error: a snapshot is missing: its key, or --memory <file>')
      : { memoryFile, id })
  )
}

function listCommand(onParsed: OnParsed): Command {
  return new Command('ls')
    .summary('list the snapshots of a store')
    .description('Lists the snapshots of a store, the most recently restored first.')
    .addArgument(folder())
    .addOption(json())
    .addHelpText('after', storeListHelp)
    .action((store, { json }) => onParsed({ name: 'store ls', store, json: json === true }))
}

/** A command whose only arguments are the store and a snapshot. */
function snapshotCommand(name: 'show' | 'forget', help: string, onParsed: OnParsed): Command {
  const self = new Command(name)
    .usage('DIR (KEY | --memory FILE) [options]')
    .addArgument(folder())
    .addArgument(key())
    .addHelpText('after', help)
    .action((store, key, options) => {
      const snapshot = namedSnapshot(self, key, options)
      onParsed({ name: `store ${name}`, store, snapshot, json: options.json === true })
    })
  return addAll(self, [...files(), json()])
}

const showCommand = (onParsed: OnParsed): Command =>
  snapshotCommand('show', storeShowHelp, onParsed)
    .summary('show what a store knows of a snapshot')
    .description('Shows what a store knows of a snapshot: sets, quality, costs and last restores.')

const forgetCommand = (onParsed: OnParsed): Command =>
  snapshotCommand('forget', storeForgetHelp, onParsed)
    .summary('remove a snapshot from a store')
    .description('Removes what a store knows of a snapshot. The snapshot itself is not touched.')

function exportCommand(onParsed: OnParsed): Command {
  const self = new Command('export')
    .summary('write what a store knows of a snapshot to a file')
    .description(
      'Writes the evidence of a snapshot to a file, for the store of another host. It has the numbers of\npages and no guest memory.',
    )
    .usage('DIR (KEY | --memory FILE) --output FILE [options]')
    .addArgument(folder())
    .addArgument(key())
    .addHelpText('after', storeExportHelp)
    .action((store, key, { output, ...options }) => {
      const snapshot = namedSnapshot(self, key, options)
      onParsed({ name: 'store export', store, snapshot, output, json: options.json === true })
    })
  return addAll(self, [...files(), required('-o, --output <file>', 'file to write', path), json()])
}

function importCommand(onParsed: OnParsed): Command {
  const self = new Command('import')
    .summary('take the evidence of an exported file')
    .description(
      'Takes the evidence of a file of "store export" for a snapshot that the store does not have, and\nwrites its sets from the memory file.',
    )
    .usage('DIR FILE --memory FILE [options]')
    .addArgument(folder())
    .argument('<file>', 'file of "store export"', path)
    .addHelpText('after', storeImportHelp)
    .action((store, file, { memory: memoryFile, snapshotId: id, json }) => {
      const snapshot = { memoryFile, id }
      onParsed({ name: 'store import', store, file, snapshot, json: json === true })
    })
  return addAll(self, [
    memory(),
    option('--snapshot-id <id>', 'id that restores of the snapshot give', snapshotId),
    json(),
  ])
}

export const storeCommand = (onParsed: OnParsed): Command => {
  const self = new Command('store')
    .summary('look into a store of working sets, and change it')
    .description('Commands for a store, which keeps the working sets of "restore --store DIR".')
    .usage('COMMAND DIR [options]')
    .helpCommand(false)
    .addHelpText('after', storeHelp)
  const commands = [listCommand, showCommand, forgetCommand, exportCommand, importCommand]
  for (const each of commands)
    self.addCommand(each(onParsed).helpOption('-h, --help', 'print help'))
  return self
}
