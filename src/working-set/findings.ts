import { lstat, readdir, stat, unlink } from 'node:fs/promises'
import { homedir } from 'node:os'
import { join, resolve } from 'node:path'
import { LRUCache } from 'lru-cache'
import { native } from '../binding/addon.js'
import { isFailure } from '../binding/failure.js'
import { makeFolder, replaceFile, writeWhole } from '../files.js'
import { type FileStamp, keyOfStamp, stampKey, statFile } from '../snapshot/file-stamp.js'

/** Result of writing a working set from, or comparing it with, a memory file on this host. */
export interface Finding {
  /** State of the memory file, as the key of its stamp. */
  readonly memory: string
  /** Absolute path of the memory file at that time. */
  readonly memoryFile: string
  /** Whether the set was written from the memory file, or every page was compared with it. */
  readonly how: 'written' | 'compared'
  /** Time, as ISO 8601 in UTC. */
  readonly at: string
  /** Number of pages that differ; 0 is a proof. */
  readonly mismatchedPageCount: number
  /** Numbers of the first pages that differ. */
  readonly mismatches: readonly number[]
}

/** The content of a working-set file in one state of the file. */
export interface SetState {
  readonly path: string
  /** 16 random bytes, new for each write. */
  readonly id: Uint8Array
  readonly stamp: FileStamp
}

/** All findings about one working-set file, the newest first. */
interface Findings {
  readonly id: string
  readonly stamp: string
  readonly findings: readonly Finding[]
}

const MAX_FINDINGS = 16
const MAX_FILES = 4096

/** Findings known to this process, by {@link nameOf}. */
const known = new LRUCache<string, Findings>({ max: 1024 })

/**
 * Path of the folder of findings: `REAP_TRACE_PROOFS`, or `reap-trace/proofs` in the user's cache
 * folder. Empty for a user without a home.
 */
export function proofFolder(): string {
  const named = process.env.REAP_TRACE_PROOFS
  if (named) return resolve(named)
  const home = process.env.XDG_CACHE_HOME || (homedir() && join(homedir(), '.cache'))
  return home && join(home, 'reap-trace/proofs')
}

/**
 * Name of the file of findings, one per inode, so that findings on a modified set replace older
 * ones. Same as in native/addon/working_set.cc.
 */
const nameOf = ({ stamp: [device, inode] }: SetState): string => `${device}-${inode}.json`

const search = (findings: readonly Finding[], memory: FileStamp): Finding | undefined =>
  findings.find((finding) => finding.memory === keyOfStamp(memory))

/**
 * Finding on a working set and a memory file in these states, by this process or another one of
 * this user.
 */
export async function findingOf(set: SetState, memory: FileStamp): Promise<Finding | undefined> {
  return search(rememberedOf(set), memory) ?? search(await findingsOf(set), memory)
}

/** {@link findingOf} with the file of findings already read. */
export function findingIn(
  bytes: Uint8Array | undefined,
  set: SetState,
  memory: FileStamp,
): Finding | undefined {
  learn(bytes, set)
  return search(rememberedOf(set), memory)
}

/** Findings on a working set in its current state, the newest first. */
export async function findingsOf(set: SetState): Promise<readonly Finding[]> {
  const bytes = await native().readPrivateFile(proofFolder(), nameOf(set))
  if (bytes && !isFailure(bytes)) learn(bytes, set)
  return rememberedOf(set)
}

function learn(bytes: Uint8Array | null | undefined, set: SetState): void {
  const name = nameOf(set)
  const read = bytes && parse(Buffer.from(bytes).toString('utf8'))
  // Ignores findings on an older file with this inode, which would replace current ones.
  if (read && isOf(read, set)) known.set(name, merge(read, known.get(name)))
}

function rememberedOf(set: SetState): readonly Finding[] {
  const found = known.get(nameOf(set))
  return found && isOf(found, set) ? found.findings : []
}

const isOf = (found: Findings, { id, stamp }: SetState): boolean =>
  found.id === Buffer.from(id).toString('hex') && found.stamp === keyOfStamp(stamp)

/** A finding of this host on a working-set file and a memory file. */
export interface WorkingSetFinding extends Omit<Finding, 'memory'> {
  /** Whether `memoryFile` is unchanged since then. */
  readonly isCurrent: boolean
}

/** {@link findingsOf}, with the current state of each memory file checked. */
export async function listFindings(set: SetState): Promise<readonly WorkingSetFinding[]> {
  const findings = await findingsOf(set)
  return Promise.all(
    findings.map(async ({ memory, ...finding }) => {
      const stats = await statFile(finding.memoryFile).catch(() => undefined)
      return { ...finding, isCurrent: stats !== undefined && stampKey(stats) === memory }
    }),
  )
}

/** Merges findings on one state of a set; for the same memory file, those of `newer` win. */
function merge(newer: Findings, older: Findings | undefined): Findings {
  if (!older || older.id !== newer.id || older.stamp !== newer.stamp) return newer
  const isReplaced = (old: Finding) =>
    newer.findings.some(
      ({ memory, memoryFile }) => memory === old.memory || memoryFile === old.memoryFile,
    )
  const rest = older.findings.filter((old) => !isReplaced(old))
  return { ...newer, findings: [...newer.findings, ...rest].slice(0, MAX_FINDINGS) }
}

function parse(text: string): Findings | undefined {
  try {
    const { id, stamp, findings } = JSON.parse(text) as Findings
    const isFinding = ({ memory, memoryFile, how, at, mismatchedPageCount, mismatches }: Finding) =>
      [memory, memoryFile, at].every((value) => typeof value === 'string') &&
      ['written', 'compared'].includes(how) &&
      [mismatchedPageCount, ...mismatches].every(Number.isSafeInteger)
    const isWhole = typeof id === 'string' && typeof stamp === 'string' && findings.every(isFinding)
    return isWhole ? { id, stamp, findings } : undefined
  } catch {
    return undefined
  }
}

/**
 * Remembers a finding in this process and saves it for other processes of this user. A finding that
 * cannot be saved only costs another comparison.
 *
 * @returns whether it was saved.
 * @param memory state of the memory file, settled and on a file system whose timestamps reveal
 * every change.
 * @param sync writes the memory file to the disk: after a power failure it could otherwise have new
 * timestamps and old bytes, for which the finding does not hold.
 */
export async function remember(
  set: SetState,
  memory: FileStamp,
  found: Omit<Finding, 'memory' | 'at'>,
  sync: () => Promise<void>,
): Promise<boolean> {
  const memoryFile = resolve(found.memoryFile)
  const finding = { memory: keyOfStamp(memory), at: new Date().toISOString(), ...found, memoryFile }
  const name = nameOf(set)
  const own: Findings = {
    id: Buffer.from(set.id).toString('hex'),
    stamp: keyOfStamp(set.stamp),
    findings: [finding],
  }
  // At once for this process: the next restore may already have started.
  known.set(name, merge(own, known.get(name)))
  await findingsOf(set)
  const findings = merge(own, known.get(name))
  known.set(name, findings)
  return sync()
    .then(() => keep(name, findings))
    .catch(() => false)
}

async function keep(name: string, findings: Findings): Promise<boolean> {
  const folder = proofFolder()
  if (!(await ensureFolder(folder))) return false
  const bytes = Buffer.from(JSON.stringify(findings))
  await replaceFile('file of findings', join(folder, name), (file) => writeWhole(file, bytes, 0))
  await prune(folder)
  return true
}

/**
 * Creates the folder, accessible to its owner alone.
 *
 * @returns false if it cannot be created, or if others may write to it.
 */
export async function ensureFolder(folder: string): Promise<boolean> {
  if (folder === '') return false
  await makeFolder(folder).catch(() => {})
  const found = await lstat(folder).catch(() => undefined)
  return (
    found?.isDirectory() === true && found.uid === process.geteuid?.() && (found.mode & 0o022) === 0
  )
}

/**
 * Folder in which results of writes and comparisons are saved for other processes of this user, and
 * whether it is usable: it must belong to this user and be writable by nobody else.
 */
export async function findingsFolder(): Promise<{
  readonly path: string
  readonly isUsable: boolean
}> {
  const path = proofFolder()
  return { path, isUsable: await ensureFolder(path) }
}

/** Names of files of findings, temporary ones included. */
const FINDINGS_FILE = /^(\d+-\d+\.json|reap-trace-\w+\.tmp)$/

/** Deletes the oldest half if there are too many. */
async function prune(folder: string): Promise<void> {
  const names = (await readdir(folder)).filter((name) => FINDINGS_FILE.test(name))
  if (names.length <= MAX_FILES) return
  const files = await Promise.all(
    names.map(async (name) => {
      const path = join(folder, name)
      const { mtimeMs: time } = await stat(path).catch(() => ({ mtimeMs: 0 }))
      return { path, time }
    }),
  )
  files.sort((a, b) => a.time - b.time)
  for (const { path } of files.slice(0, MAX_FILES / 2)) await unlink(path).catch(() => {})
}
