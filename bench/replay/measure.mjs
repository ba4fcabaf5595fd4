// @ts-check
// Takes the samples: arms and limits in turns, round by round.
import { constants } from 'node:fs'
import { access } from 'node:fs/promises'
import { join } from 'node:path'
import { calibrateHost } from '../../dist/index.js'
import { randomNumbers, shuffle } from '../../src/cli/measure/random.mjs'
import {
  caches,
  cells,
  closeCells,
  huge,
  isInRound,
  isOfChoice,
  isQuick,
  MORE_PAIRS,
  middle,
  scenes,
  warmUpScene,
} from './cells.mjs'
import {
  comparisonOf,
  copySets,
  faultsBesideComparison,
  faultsBesidePrefetch,
} from './comparison.mjs'
import { faultCostOf, limitsOf } from './limits.mjs'
import { takeSample } from './run.mjs'
import { filesOf, prepareScene, sceneName } from './scene.mjs'

/** @param {{ only: string, quick: boolean, choice: boolean }} options */
export function chooseCells({ only, quick, choice }) {
  const chosen = cells.filter(
    (cell) =>
      cell.name.includes(only) && (!quick || isQuick(cell)) && (!choice || isOfChoice(cell)),
  )
  if (chosen.length === 0) throw new TypeError('no cell has that name: --list shows them')
  return chosen
}

/**
 * Compared cells (same guest, same state of the page cache) stay together. Their order is random:
 * the after-effects of an arm (memory just freed, a disk still busy) must not always hit the same
 * one.
 *
 * @param {readonly import('./cells.mjs').Cell[]} ofScene
 * @param {number} seed different for each round and scene of a run
 */
export function orderOf(ofScene, seed) {
  /** @type {Map<string, import('./cells.mjs').Cell[]>} */
  const groups = new Map()
  for (const cell of ofScene) {
    const group = `${cell.guest} ${cell.cache}`
    groups.set(group, [...(groups.get(group) ?? []), cell])
  }
  const random = randomNumbers(seed)
  for (const group of groups.values()) shuffle(group, random)
  return [...groups.values()].flat()
}

/** @param {string} path */
const mayOpen = (path) =>
  access(path, constants.R_OK | constants.W_OK).then(
    () => true,
    () => false,
  )

/**
 * Returns the samples so far when `signal` is aborted.
 *
 * @param {readonly import('./cells.mjs').Cell[]} chosen
 * @param {object} context
 * @param {number} context.rounds
 * @param {number} context.seed of the order
 * @param {string} context.scenesFolder
 * @param {string} context.folder for sockets
 * @param {import('../../native/guest/driver/page-cache.mjs').PageCache} context.cache
 * @param {import('../lib/progress.mjs').Progress} context.progress
 * @param {AbortSignal} context.signal
 * @returns {Promise<Omit<import('./report.mjs').Measured, 'machine'>>}
 */
export async function measure(chosen, context) {
  const { rounds, seed, scenesFolder, folder, cache, progress, signal } = context
  let wanted = [...chosen]
  if (wanted.some(({ guest }) => guest === 'kvm') && !(await mayOpen('/dev/kvm'))) {
    progress.note(
      'skipped: the cells with a guest of KVM, which need /dev/kvm readable and writable',
    )
    wanted = wanted.filter(({ guest }) => guest !== 'kvm')
  }
  if (wanted.length === 0) throw new TypeError('no cell is left: they all need /dev/kvm')

  /** @type {Map<string, import('./scene.mjs').Scene>} */
  const prepared = new Map()
  const prepare = async (/** @type {import('./scene.mjs').SceneOptions} */ options) => {
    progress.say(`making ${sceneName(options)}`)
    const scene = await prepareScene(options, scenesFolder)
    signal.throwIfAborted()
    return scene
  }
  const warmUp = await prepare(warmUpScene)
  for (const name of new Set(wanted.map((cell) => cell.scene))) {
    const options = scenes.get(name)
    if (!options) throw new Error(`no scene ${name}`)
    prepared.set(name, await prepare(options))
  }
  if (wanted.some(({ arm }) => arm === 'auto')) {
    progress.say('calibrating this host, for the arm that chooses')
    // Only for this run; the sampling processes read it.
    process.env.REAP_TRACE_CALIBRATION = join(folder, 'calibration.json')
    await calibrateHost({ folder: scenesFolder, signal })
  }
  await cache.set('warm', [warmUp.memoryFile, warmUp.workingSet])
  const copies = prepared.has(middle) ? await copySets(warmUp, folder) : []

  const measured = {
    scenes: [...prepared.values()],
    samples: /** @type {import('./report.mjs').Sample[]} */ ([]),
    limits: /** @type {import('./report.mjs').Limit[]} */ ([]),
    faults: /** @type {import('./report.mjs').FaultCost[]} */ ([]),
    comparisons: /** @type {import('./report.mjs').ComparisonCost[]} */ ([]),
    besides: /** @type {import('./report.mjs').FaultsBeside[]} */ ([]),
    victims: /** @type {import('./report.mjs').FaultsBesidePrefetch[]} */ ([]),
  }
  /** @param {import('./cells.mjs').Cell} cell @param {number} round */
  const sampleCell = async (cell, round) => {
    const scene = /** @type {import('./scene.mjs').Scene} */ (prepared.get(cell.scene))
    // All arms of a round have the same half cached.
    await cache.set(cell.cache, filesOf(scene), Math.floor(round) + 1)
    const sample = await takeSample(cell, { scene, warmUp, folder }, signal)
    measured.samples.push({ cell: cell.name, round, ...sample })
  }
  /** @param {import('./scene.mjs').Scene} scene @param {number} round */
  const sampleLimits = async (scene, round) => {
    await cache.set('warm', [scene.memoryFile])
    measured.limits.push({ scene: scene.name, round, ...(await limitsOf(scene, signal)) })
    if (scene.name !== middle) return
    measured.faults.push({ round, ...(await faultCostOf(scene, folder, signal)) })
    for (const state of caches) {
      const taken = await comparisonOf(scene, { warmUp, round, state, cache }, signal)
      measured.comparisons.push({ round, cache: state, ...taken })
    }
    await cache.set('warm', [scene.memoryFile, warmUp.memoryFile, warmUp.workingSet])
    const beside = await faultsBesideComparison({ scene, warmUp, copies, folder, round }, signal)
    measured.besides.push({ round, ...beside })
    const large = isInRound(huge, round) ? prepared.get(huge) : undefined
    if (!large) return
    await cache.set('warm', [scene.memoryFile, large.workingSet])
    const victim = await faultsBesidePrefetch({ scene, large, folder }, signal)
    if (victim.besideP99Us !== undefined) measured.victims.push({ round, ...victim })
  }

  /** Measures the cells that are sampled several times in this round. @param {number} round */
  const closeSteps = (round) =>
    Array.from({ length: MORE_PAIRS }, (_, i) => i).flatMap((i) =>
      closeCells.flatMap((close) => {
        const some = wanted.filter(({ name }) => close.includes(name))
        if (some.length < 2) return []
        const part = round + (i + 1) / (MORE_PAIRS + 1)
        const steps = some.map((cell) => ({ name: cell.name, take: () => sampleCell(cell, part) }))
        return i % 2 === 0 ? steps.reverse() : steps
      }),
    )
  /** @param {number} round */
  const stepsOf = (round) => {
    const steps = measured.scenes
      .filter(({ name }) => isInRound(name, round))
      .flatMap((scene) => [
        ...orderOf(
          wanted.filter((cell) => cell.scene === scene.name),
          draw() * 2 ** 32,
        ).map((cell) => ({ name: cell.name, take: () => sampleCell(cell, round) })),
        { name: `limits of ${scene.name}`, take: () => sampleLimits(scene, round) },
        ...(scene.name === middle ? closeSteps(round) : []),
      ])
    // Cold before warm in one round and after it in the next.
    return round % 2 === 0 ? steps : steps.reverse()
  }
  const draw = randomNumbers(seed)
  const all = Array.from({ length: rounds }, (_, round) => ({ round, steps: stepsOf(round) }))
  const total = all.reduce((sum, { steps }) => sum + steps.length, 0)
  const startedAt = Date.now()
  let done = 0
  try {
    for (const { round, steps } of all) {
      for (const { name, take } of steps) {
        signal.throwIfAborted()
        const left = done === 0 ? undefined : ((Date.now() - startedAt) / done) * (total - done)
        progress.say(`round ${round + 1} of ${rounds}, ${name}`, done / total, left)
        await take()
        done++
      }
    }
  } catch (error) {
    if (!signal.aborted) throw error
  }
  return measured
}
