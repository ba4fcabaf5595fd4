// @ts-check
// Snapshots of the guest in native/guest/microvm, made by the Firecracker that restores them.
import { createHash, randomFillSync } from 'node:crypto'
import {
  closeSync,
  existsSync,
  fsyncSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  readSync,
  renameSync,
  rmSync,
  writeSync,
} from 'node:fs'
import { join } from 'node:path'
import { root } from './checkout.mjs'
import { firecracker, guestKernel, MicroVm } from './microvm.mjs'

const cache = join(root, 'build/microvm-snapshots')
const PAGE = 4096
/** Start of the guest's chains, after its code and its tables. */
const CHAINS_BEGIN = 32 << 20

/**
 * @typedef {object} SnapshotFiles
 * @property {string} folder
 * @property {string} vmstate
 * @property {string} memoryFile
 *
 * @typedef {object} SnapshotOptions
 * @property {import('./microvm.mjs').BootOptions} [boot]
 * @property {string} [requests] Requests before the snapshot; default: `mo`, a warm function.
 * @property {boolean} [filled] The pages that no request asks for hold something, as in most guests.
 *   Those of 4 KiB only.
 * @property {string} [binary]
 */

/**
 * Boots a guest and takes its snapshot into a folder. A guest that tracks its dirty pages gets a sparse
 * memory file, of all that was ever written.
 *
 * @param {string} folder
 * @param {SnapshotOptions} [options]
 * @returns {Promise<SnapshotFiles>}
 */
export async function makeSnapshot(
  folder,
  { boot = {}, requests = 'mo', filled = false, binary } = {},
) {
  const files = filesIn(folder)
  const vm = await MicroVm.start({ ...(binary !== undefined && { binary }) })
  try {
    await vm.boot(boot)
    for (const request of requests) {
      await vm.ask(/** @type {import('./microvm.mjs').Request} */ (request))
    }
    await vm.snapshot({ ...files, type: boot.trackDirtyPages ? 'Diff' : 'Full' })
  } finally {
    await vm.kill()
  }
  if (filled) fill(files.memoryFile)
  return files
}

/**
 * The same, made once for this guest, this Firecracker and these options, and kept under build/. A
 * name stands for one set of options: snapshots made with others are removed.
 *
 * @param {string} name
 * @param {SnapshotOptions} [options]
 * @returns {Promise<SnapshotFiles>}
 */
export async function cachedSnapshot(name, options = {}) {
  const hash = createHash('sha256').update(JSON.stringify(options))
  for (const file of [guestKernel, options.binary ?? firecracker]) hash.update(readFileSync(file))
  const folder = join(cache, `${name}-${hash.digest('hex').slice(0, 12)}`)
  if (existsSync(folder)) return filesIn(folder)
  mkdirSync(cache, { recursive: true })
  const isOfBefore = new RegExp(`^${name}-[0-9a-f]{12}$`)
  for (const old of readdirSync(cache)) {
    // Keep what another process has made meanwhile.
    if (!isOfBefore.test(old) || join(cache, old) === folder) continue
    rmSync(join(cache, old), { recursive: true, force: true })
  }
  const work = mkdtempSync(join(cache, 'new-'))
  try {
    await makeSnapshot(work, options)
    renameSync(work, folder)
  } catch (error) {
    rmSync(work, { recursive: true, force: true })
    // Another process may have made it first.
    if (!existsSync(folder)) throw error
  }
  return filesIn(folder)
}

/** @param {string} folder */
function filesIn(folder) {
  return { folder, vmstate: join(folder, 'vmstate'), memoryFile: join(folder, 'memory') }
}

/** @param {string} memoryFile */
function fill(memoryFile) {
  const file = openSync(memoryFile, 'r+')
  try {
    const zeros = Buffer.alloc(PAGE)
    const block = Buffer.alloc(1 << 20)
    for (let at = CHAINS_BEGIN; ; at += block.length) {
      const bytes = readSync(file, block, 0, block.length, at)
      if (bytes === 0) break
      for (let page = 0; page < bytes; page += PAGE) {
        const part = block.subarray(page, page + PAGE)
        if (part.equals(zeros)) randomFillSync(part)
      }
      writeSync(file, block, 0, bytes, at)
    }
    fsyncSync(file)
  } finally {
    closeSync(file)
  }
}
