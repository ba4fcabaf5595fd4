import { openStore, type Store } from '../../index.js'
import type {
  NamedSnapshot,
  StoreExportArguments,
  StoreForgetArguments,
  StoreImportArguments,
  StoreListArguments,
  StoreShowArguments,
} from '../arguments/arguments.js'
import { CliError } from '../terminal/failure.js'
import { printable } from '../terminal/locale.js'
import { printTable, UNKNOWN } from '../terminal/table.js'
import type { Terminal } from '../terminal/terminal.js'
import { formatAge, formatBytes, formatCount, formatPlural } from '../terminal/units.js'
import { checkOutput } from './check-output.js'
import { printSnapshot } from './store-show.js'

/** Opens a store that exists: a wrong path must not become one. */
async function openExisting(folder: string, { readOnly }: { readOnly: boolean }): Promise<Store> {
  const store = await openStore(folder, { readOnly: true })
  return readOnly ? store : openStore(folder)
}

const nameOf = (snapshot: NamedSnapshot): string =>
  typeof snapshot === 'string' ? snapshot : `of ${snapshot.memoryFile}`

const unknown = (folder: string, snapshot: NamedSnapshot): CliError =>
  new CliError(
    'ERR_STORE_INVALID',
    `the store ${folder} has no snapshot ${nameOf(snapshot)}`,
    `"reap-trace store ls ${folder}" lists those it has. A memory file that was written to since is another snapshot.`,
  )

export async function storeList(
  { store: folder }: StoreListArguments,
  terminal: Terminal,
): Promise<void> {
  const store = await openExisting(folder, { readOnly: true })
  const snapshots = await store.snapshots()
  for (const snapshot of snapshots) terminal.emit(snapshot)
  if (terminal.json) return
  if (snapshots.length === 0) {
    terminal.print('the store has no snapshots')
    return
  }
  const rows = snapshots.map((snapshot) => {
    const { key, id, memoryBytes, sets, restoreCount, lastRestoreAt, diskBytes } = snapshot
    const pageCount = Math.max(0, ...sets.map(({ pageCount }) => pageCount))
    return {
      cells: [
        key,
        formatBytes(memoryBytes),
        formatCount(sets.length),
        formatCount(pageCount),
        formatBytes(diskBytes),
        formatCount(restoreCount),
        // An imported snapshot may not have been restored yet.
        restoreCount === 0 ? UNKNOWN : `${formatAge(lastRestoreAt)} ago`,
      ],
      memoryFile: printable(`${snapshot.memoryFile}${id === undefined ? '' : ` (${id})`}`),
    }
  })
  const width = Math.max(...rows.map(({ memoryFile }) => memoryFile.length))
  printTable(
    ['key', 'memory', 'sets', 'pages', 'on disk', 'restores', 'last', 'memory file'.padEnd(width)],
    rows.map(({ cells, memoryFile }) => [...cells, memoryFile.padEnd(width)]),
    terminal,
  )
  const bytes = snapshots.reduce((sum, { diskBytes }) => sum + diskBytes, 0)
  terminal.print()
  terminal.print(`${formatPlural(snapshots.length, 'snapshot')}, ${formatBytes(bytes)}`)
}

export async function storeShow(
  { store: folder, snapshot }: StoreShowArguments,
  terminal: Terminal,
): Promise<void> {
  const store = await openExisting(folder, { readOnly: true })
  const found = await store.describe(snapshot)
  if (!found) throw unknown(folder, snapshot)
  terminal.emit(found)
  if (!terminal.json) printSnapshot(found, terminal)
}

export async function storeForget(
  { store: folder, snapshot }: StoreForgetArguments,
  terminal: Terminal,
): Promise<void> {
  const store = await openExisting(folder, { readOnly: false })
  const known = await store.describe(snapshot).catch(() => undefined)
  if (!(await store.forget(snapshot))) throw unknown(folder, snapshot)
  const key = known?.key ?? null
  terminal.emit({ type: 'forgotten', key, bytes: known?.diskBytes ?? null })
  const freed = known ? ` (${formatBytes(known.diskBytes)})` : ''
  terminal.print(`forgot the snapshot ${nameOf(snapshot)}${freed}`)
}

export async function storeExport(
  { store: folder, snapshot, output }: StoreExportArguments,
  terminal: Terminal,
): Promise<void> {
  const inputs = typeof snapshot === 'string' ? {} : { memory: snapshot.memoryFile }
  await checkOutput(output, inputs, { option: '--output', code: 'ERR_STORE_IO' })
  const store = await openExisting(folder, { readOnly: true })
  await store.export(snapshot, output)
  terminal.emit({ type: 'exported', path: output })
  terminal.print(`wrote what is known of the snapshot ${nameOf(snapshot)} to ${output}`)
}

export async function storeImport(
  { store: folder, file, snapshot }: StoreImportArguments,
  terminal: Terminal,
): Promise<void> {
  const store = await openStore(folder)
  const live = terminal.live(() => `writing the sets from ${snapshot.memoryFile}`)
  try {
    const key = await store.import(file, snapshot)
    const sets = (await store.describe(key))?.sets ?? []
    terminal.emit({ type: 'imported', key, sets })
    terminal.print(`took ${file} as the snapshot ${key}`)
    for (const { variant, pageCount } of sets) {
      const name = variant === undefined ? 'a set' : `a set for ${JSON.stringify(variant)}`
      terminal.print(`wrote ${name} of ${formatPlural(pageCount, 'page')}`)
    }
  } finally {
    live.stop()
  }
}
