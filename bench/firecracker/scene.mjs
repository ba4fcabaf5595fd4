// @ts-check
// The restored snapshot: that of our own guest, made by the Firecracker that restores it, and each
// arm's form of its working set.
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { serve, WorkingSet } from '../../dist/index.js'
import { MicroVm } from '../../native/guest/driver/microvm.mjs'
import { cachedSnapshot } from '../../native/guest/driver/microvm-snapshot.mjs'
import { packReapPages } from '../lib/reap-handler.mjs'

/** Requests of the guest (native/guest/microvm), by the number of MiB that each walks. */
export const requestByMib = /** @type {const} */ ({ 10: 's', 30: 'm', 64: 'l' })
/** Walks 30 MiB and writes to each page. */
export const WRITE_REQUEST = /** @type {const} */ ('w')
const MEMORY_MIB = 256

/**
 * @typedef {object} Scene
 * @property {string} vmstate
 * @property {string} memoryFile
 * @property {string} workingSet
 * @property {string} pageList
 * @property {string} reapPages
 * @property {number} pages of the working set
 * @property {number} extents
 * @property {number} memoryMib
 * @property {import('../../native/guest/driver/microvm.mjs').Request} request
 * @property {number} requests how many the guest has had with the one that is measured
 */

/**
 * The snapshot is kept between runs; the working set of a request is recorded in each run, into
 * `folder`.
 *
 * @param {string} folder
 * @param {import('../../native/guest/driver/microvm.mjs').Request} request
 * @returns {Promise<Scene>}
 */
export async function prepareScene(folder, request) {
  const boot = { memoryMib: MEMORY_MIB }
  // Filled: pages that no request reads must come from the disk, too.
  const { vmstate, memoryFile } = await cachedSnapshot('bench', { boot, filled: true })
  const { trace, requests } = await recorded({ vmstate, memoryFile, folder, request })
  const set = WorkingSet.fromTraces([trace])
  const file = (/** @type {string} */ kind) => join(folder, kind)
  const pageList = file('pages')
  const { pages } = trace
  await set.write(file('working-set'), { snapshot: { memoryFile } })
  await writeFile(pageList, Buffer.from(pages.buffer, pages.byteOffset, pages.byteLength))
  await packReapPages({ memoryFile, pageList, output: file('reap') })
  return {
    vmstate,
    memoryFile,
    workingSet: file('working-set'),
    pageList,
    reapPages: file('reap'),
    pages: set.pageCount,
    extents: set.extents.length,
    memoryMib: MEMORY_MIB,
    request,
    requests,
  }
}

/** @param {Pick<Scene, 'vmstate' | 'memoryFile' | 'request'> & { folder: string }} what */
async function recorded({ vmstate, memoryFile, folder, request }) {
  const socketPath = join(folder, 'recording.sock')
  const vm = await MicroVm.start()
  const handler = await serve({ socketPath, snapshot: { memoryFile }, record: true })
  try {
    vm.send(request)
    await vm.load({ vmstate, uffdSocket: socketPath })
    const { requests } = await vm.answer(request)
    return { trace: handler.stopRecording(), requests }
  } finally {
    await vm.kill()
    await handler.close()
  }
}

/**
 * Makes each build remember that the memory file holds the set's bytes; otherwise they would come
 * from the memory file.
 *
 * @param {Scene} scene
 * @param {readonly (typeof import('../../dist/index.js'))[]} builds
 */
export async function proveSet({ workingSet, memoryFile }, builds) {
  for (const build of builds) {
    const set = await build.WorkingSet.read(workingSet)
    const { identical, remembered } = await set.verify({ memoryFile })
    if (!identical) throw new Error(`the working set holds other bytes than ${memoryFile}`)
    if (remembered) continue
    throw new Error(
      `no proof can be kept of ${workingSet}: is it on a file system whose times do not tell of changes?`,
    )
  }
}

/** Files whose residency in the page cache is part of a sample. @param {Scene} scene */
export const filesOf = ({ vmstate, memoryFile, workingSet, reapPages }) => [
  vmstate,
  memoryFile,
  workingSet,
  reapPages,
]
