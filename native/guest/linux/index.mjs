// @ts-check
// Linux guests with real functions, for the bench and the tests; described in README.md.
import { createHash } from 'node:crypto'
import { existsSync, readFileSync, realpathSync, statSync } from 'node:fs'
import { mkdir, mkdtemp, readdir, readFile, rename, rm, writeFile } from 'node:fs/promises'
import { availableParallelism } from 'node:os'
import { join, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'
import { root } from '../driver/checkout.mjs'
import { guestFolder, guestFunctions } from './functions.mjs'
import { Guest } from './guest.mjs'
import { findParts } from './packages.mjs'
import { takeSnapshot } from './snapshot.mjs'

export { MissingPackages } from './packages.mjs'
export { Guest }

const namesOf = (/** @type {boolean} */ onDisk) =>
  [...guestFunctions.values()].filter((of) => of.onDisk === onDisk).map(({ name }) => name)

/** @type {readonly string[]} */
export const functionNames = namesOf(false)

/** @type {readonly string[]} those whose root is a disk, which they read when they are invoked */
export const diskFunctionNames = namesOf(true)

export const defaultCacheFolder = join(root, 'build/linux-guest')

/** @typedef {{ name: string, step: 'cached' | 'building' | 'built', ms: number }} Progress */

/**
 * The guests of the named functions, in that order. A snapshot that is not in the cache is built
 * and checked; it takes some seconds each.
 * @param {object} [options]
 * @param {readonly string[]} [options.functions]  of both kinds; `functionNames` by default
 * @param {string} [options.cacheFolder]
 * @param {'tcg' | 'kvm'} [options.accelerator]
 * @param {(progress: Progress) => void} [options.onProgress]
 * @param {AbortSignal} [options.signal]
 * @returns {Promise<Guest[]>}
 */
export async function prepareGuests({
  functions = functionNames,
  cacheFolder = defaultCacheFolder,
  accelerator = 'tcg',
  onProgress,
  signal,
} = {}) {
  const wanted = functions.map((name) => {
    const found = guestFunctions.get(name)
    if (found) return found
    throw new TypeError(`no function "${name}"; there are ${[...guestFunctions.keys()].join(', ')}`)
  })
  const parts = findParts()
  await mkdir(cacheFolder, { recursive: true })
  const context = { parts, cacheFolder: resolve(cacheFolder), accelerator, onProgress, signal }

  // A failure aborts the concurrent builds, and is thrown after they have cleaned up.
  const guests = /** @type {Guest[]} */ ([])
  const failed = new AbortController()
  const either = signal ? AbortSignal.any([signal, failed.signal]) : failed.signal
  const queue = wanted.entries()
  const work = async () => {
    for (const [index, guestFunction] of queue) {
      guests[index] = await prepareGuest(guestFunction, { ...context, signal: either })
    }
  }
  const workers = Array.from({ length: Math.min(availableParallelism(), 4) }, () =>
    work().catch((error) => {
      failed.abort(error)
      throw error
    }),
  )
  const outcomes = await Promise.allSettled(workers)
  const failure = outcomes.find((outcome) => outcome.status === 'rejected')
  if (failure) throw signal?.aborted ? signal.reason : failed.signal.reason
  return guests
}

/**
 * @param {import('./functions.mjs').GuestFunction} guestFunction
 * @param {{ parts: import('./packages.mjs').Parts, cacheFolder: string, accelerator: 'tcg' | 'kvm', onProgress: ((progress: Progress) => void) | undefined, signal: AbortSignal }} options
 */
async function prepareGuest(guestFunction, options) {
  const { parts, cacheFolder, accelerator, onProgress, signal } = options
  const { name, runtime, onDisk } = guestFunction
  const { memoryBytes } = runtime
  const started = performance.now()
  const report = (/** @type {Progress['step']} */ step) =>
    onProgress?.({ name, step, ms: performance.now() - started })
  const open = async (/** @type {string} */ folder) => {
    const inputs = JSON.parse(await readFile(join(folder, 'inputs.json'), 'utf8'))
    const { qemu } = parts
    return new Guest({ name, folder, memoryBytes, inputs, qemu, accelerator, onDisk })
  }

  const kept = join(cacheFolder, `${name}-${cacheKey(guestFunction, parts, accelerator)}`)
  if (existsSync(kept)) {
    report('cached')
    return open(kept)
  }
  report('building')
  await removeOld(name, cacheFolder)
  const building = await mkdtemp(`${kept}.${process.pid}.`)
  try {
    const inputs = await takeSnapshot(guestFunction, {
      parts,
      folder: building,
      consoleLog: join(cacheFolder, `${name}.console.log`), // kept if the build fails
      accelerator,
      signal,
    })
    await writeFile(join(building, 'inputs.json'), JSON.stringify(inputs))
    await (await open(building)).check(signal)
    await rename(building, kept).catch((error) => {
      if (!existsSync(kept)) throw error // another process has built the same one
    })
  } finally {
    await rm(building, { recursive: true, force: true })
  }
  report('built')
  return open(kept)
}

/**
 * Removes the function's snapshots of other keys, and the remains of killed builds.
 * @param {string} name
 * @param {string} cacheFolder
 */
async function removeOld(name, cacheFolder) {
  for (const entry of await readdir(cacheFolder)) {
    const [, owner, pid] = /^(\w+)-[0-9a-f]+(?:\.(\d+)\.\w+)?$/.exec(entry) ?? []
    if (owner !== name || (pid && existsSync(`/proc/${pid}`))) continue
    await rm(join(cacheFolder, entry), { recursive: true, force: true })
  }
}

/**
 * Hash of everything that a snapshot is made from. Packages' files count by size and time, so that
 * a cache lookup takes milliseconds.
 * @param {import('./functions.mjs').GuestFunction} guestFunction
 * @param {import('./packages.mjs').Parts} parts
 * @param {string} accelerator
 */
function cacheKey({ file, runtime, onDisk }, parts, accelerator) {
  const hash = createHash('sha256')
  const modules = ['image.mjs', 'trees.mjs', 'qemu.mjs', 'snapshot.mjs', 'functions.mjs']
  const own = modules.map((name) => fileURLToPath(new URL(name, import.meta.url)))
  const inits = onDisk ? ['init', 'init-disk'] : ['init']
  const guest = [...inits, runtime.agent, file].map((name) => join(guestFolder, name))
  for (const path of [...own, ...guest]) hash.update(readFileSync(path))
  const tools = [parts.kernel, parts.busybox, runtime.command(parts)]
  for (const path of onDisk ? [...tools, parts.mke2fs] : tools) {
    const real = realpathSync(path)
    const { size, mtimeMs } = statSync(real)
    hash.update(`${real} ${size} ${mtimeMs}\n`)
  }
  hash.update(`${parts.qemuVersion} ${accelerator}`)
  return hash.digest('hex').slice(0, 16)
}
