// @ts-check
// The restored scene of a replay: a memory file, the trace that its guest replays, and each arm's
// form of it. Made once, in a folder named after its content.
import { randomFillSync } from 'node:crypto'
import { existsSync } from 'node:fs'
import { mkdir, open, rename, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { Trace, WorkingSet } from '../../dist/index.js'
import { writeKvmTrace } from '../../native/guest/driver/kvm-guest.mjs'
import { randomNumbers } from '../../src/cli/measure/random.mjs'
import { packReapPages } from '../lib/reap-handler.mjs'
import { linuxPattern, pagesOf, syntheticPattern } from './patterns.mjs'

const PAGE = 4096
const MIB = 2 ** 20
const WRITE_SHARE = 0.4
/** Version of a scene's folder: that of working-set files. */
const FORMAT = 3

/**
 * @typedef {object} SceneOptions
 * @property {'linux' | number} pattern runs of a recorded Linux guest, or random ones of this mean length
 * @property {number} setBytes size of the working set
 * @property {number} memoryBytes
 *
 * @typedef {object} Scene
 * @property {string} name
 * @property {number} pages of the working set
 * @property {number} meanRun
 * @property {number} memoryBytes
 * @property {string} memoryFile
 * @property {string} trace
 * @property {string} workingSet
 * @property {string} pageList
 * @property {string} reapPages
 */

/** @param {SceneOptions} options */
export const sceneName = ({ pattern, setBytes, memoryBytes }) =>
  `${pattern === 'linux' ? 'linux' : `runs-${pattern}`}-${setBytes / MIB}-of-${memoryBytes / MIB}`

/**
 * @param {SceneOptions} options
 * @param {string} cacheFolder
 * @returns {Promise<Scene>}
 */
export async function prepareScene(options, cacheFolder) {
  const { pattern, setBytes, memoryBytes } = options
  const name = sceneName(options)
  const [pages, memoryPages] = [setBytes / PAGE, memoryBytes / PAGE]
  const runs =
    pattern === 'linux'
      ? linuxPattern({ pages, memoryPages })
      : syntheticPattern({ pages, meanRun: pattern, memoryPages })
  const folderOf = (/** @type {number} */ format) => join(cacheFolder, `${name}.${format}`)
  const folder = folderOf(FORMAT)
  if (!existsSync(folder)) {
    await rm(folderOf(FORMAT - 1), { recursive: true, force: true })
    const making = `${folder}.tmp${process.pid}`
    await mkdir(making, { recursive: true })
    try {
      await makeScene(making, pagesOf(runs), memoryBytes)
      await rename(making, folder)
    } finally {
      await rm(making, { recursive: true, force: true })
    }
  }
  const file = (/** @type {string} */ kind) => join(folder, kind)
  const scene = {
    name,
    pages,
    meanRun: pages / runs.length,
    memoryBytes,
    memoryFile: file('memory'),
    trace: file('trace'),
    workingSet: file('working-set'),
    pageList: file('pages'),
    reapPages: file('reap'),
  }
  await proveSet(scene)
  return scene
}

/**
 * Records in the folder of this bench that the memory file holds the set's bytes: the scene may be
 * from an earlier run.
 *
 * @param {Scene} scene
 */
async function proveSet({ memoryFile, workingSet }) {
  const set = await WorkingSet.read(workingSet)
  const { identical, remembered } = await set.verify({ memoryFile })
  if (!identical) throw new Error(`${workingSet} holds other bytes than ${memoryFile}: remove both`)
  if (remembered) return
  throw new Error(
    `no proof can be kept of ${workingSet}: is it on a file system whose times do not tell of changes?`,
  )
}

/**
 * @param {string} folder
 * @param {Uint32Array} pages in first-touch order
 * @param {number} memoryBytes
 */
async function makeScene(folder, pages, memoryBytes) {
  const memoryFile = join(folder, 'memory')
  // No holes and no zeros: every page must be read from the disk.
  const file = await open(memoryFile, 'wx', 0o600)
  try {
    const block = Buffer.alloc(8 * MIB)
    for (let done = 0; done < memoryBytes; done += block.length) {
      await file.write(randomFillSync(block), 0, Math.min(block.length, memoryBytes - done))
    }
    await file.datasync()
  } finally {
    await file.close()
  }
  const random = randomNumbers(pages.length)
  writeKvmTrace(
    join(folder, 'trace'),
    memoryFile,
    Array.from(pages, (page) => ({ page, write: random() < WRITE_SHARE })),
  )
  const trace = new Trace({
    pageSize: PAGE,
    memoryBytes,
    pages,
    timesUs: Uint32Array.from(pages, (_, i) => i),
  })
  const pageList = join(folder, 'pages')
  await WorkingSet.fromTraces([trace]).write(join(folder, 'working-set'), {
    snapshot: { memoryFile },
  })
  await writeFile(pageList, Buffer.from(pages.buffer, pages.byteOffset, pages.byteLength))
  await packReapPages({ memoryFile, pageList, output: join(folder, 'reap') })
}

/** Files whose residency in the page cache is part of a sample. @param {Scene} scene */
export const filesOf = ({ memoryFile, workingSet, reapPages }) => [
  memoryFile,
  workingSet,
  reapPages,
]
