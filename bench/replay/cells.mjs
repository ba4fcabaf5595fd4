// @ts-check
// The measured cells: one scene, guest, arm and page-cache state each.
import { sceneName } from './scene.mjs'

const MIB = 2 ** 20

/** @type {import('./scene.mjs').SceneOptions[]} */
const options = [
  { pattern: 'linux', setBytes: 10 * MIB, memoryBytes: 128 * MIB },
  { pattern: 'linux', setBytes: 64 * MIB, memoryBytes: 512 * MIB },
  { pattern: 'linux', setBytes: 256 * MIB, memoryBytes: 1024 * MIB },
  { pattern: 'linux', setBytes: 1024 * MIB, memoryBytes: 2048 * MIB },
  ...[1, 3, 16, 256].map((pattern) => ({ pattern, setBytes: 64 * MIB, memoryBytes: 512 * MIB })),
]
export const scenes = new Map(options.map((scene) => [sceneName(scene), scene]))
export const [small, middle, large, huge] = /** @type {[string, string, string, string]} */ ([
  ...scenes.keys(),
])
/** Scenes of one trace in several sizes, for the chart. */
export const sizes = [small, middle, large, huge]
const runs3 = 'runs-3-64-of-512'
/** Scenes in which restores with an unproven set are measured as well. */
const unprovenScenes = [middle, 'runs-1-64-of-512', runs3]
const isLarge = (/** @type {string} */ scene) => scene === large || scene === huge

/** Scene that a process restores before it is measured. */
export const warmUpScene = /** @type {const} */ ({
  pattern: 'linux',
  setBytes: 32 * MIB,
  memoryBytes: 64 * MIB,
})

/**
 * @typedef {object} Cell
 * @property {string} name
 * @property {string} scene
 * @property {'cold' | 'half-warm' | 'warm'} cache
 * @property {import('./sample.mjs').Arm} arm
 * @property {'kvm' | 'process'} guest
 * @property {boolean} [paused]
 * @property {boolean} [busy]
 * @property {number} [concurrent]
 * @property {number} [shared]
 * @property {number} [burst]
 */

/** @param {Omit<Cell, 'name'>} cell @returns {Cell} */
const cell = ({ scene, guest, arm, cache, ...more }) => {
  const extras = Object.entries(more).map(([key, value]) =>
    value === true ? key : `${key} ${value}`,
  )
  return {
    name: [scene, guest, arm, ...extras, cache].join(', '),
    scene,
    guest,
    arm,
    cache,
    ...more,
  }
}

/** @param {object} wanted the fields of a cell but its name; `guest` is `process` if not given */
export const nameOf = (wanted) =>
  cell(/** @type {Omit<Cell, 'name'>} */ ({ guest: 'process', ...wanted })).name

export const caches = /** @type {const} */ (['cold', 'warm'])
export const arms = /** @type {const} */ (['kernel-file', 'on-demand', 'reap', 'working-set'])
/** Arms that `auto` chooses between, and its baseline. */
export const choosable = /** @type {const} */ (['kernel-file', 'page-cache', 'working-set'])
/** States of the page cache in which `auto` is measured. */
export const choiceCaches = /** @type {const} */ (['cold', 'half-warm', 'warm'])

/** Compared cells are adjacent, and so run one after the other. */
const ofScene = (/** @type {string} */ scene, /** @type {Cell['guest']} */ guest) =>
  caches.flatMap((cache) => [
    cell({ scene, guest, arm: 'page-cache', cache }),
    cell({ scene, guest, arm: 'kernel-file', cache }),
    cell({ scene, guest, arm: 'auto', cache }),
    ...(scene === middle && guest === 'process' && cache === 'warm'
      ? [cell({ scene, guest, arm: 'record', cache })]
      : []),
    cell({ scene, guest, arm: 'on-demand', cache }),
    cell({ scene, guest, arm: 'reap', cache }),
    // With a cold page cache it would be a slower REAP.
    ...(cache === 'warm' && !isLarge(scene)
      ? [cell({ scene, guest, arm: 'reap-cached', cache })]
      : []),
    cell({ scene, guest, arm: 'working-set', cache }),
    ...(unprovenScenes.includes(scene) ? [cell({ scene, guest, arm: 'unproven', cache })] : []),
    ...(scene === middle && guest === 'process' && cache === 'warm'
      ? [cell({ scene, guest, arm: 'working-set', busy: true, cache })]
      : []),
    // Measures the engine alone: the guest does not run before its working set is installed.
    ...(guest === 'process' && sizes.includes(scene)
      ? [cell({ scene, guest, arm: 'working-set', paused: true, cache })]
      : []),
  ])

/** Concurrent restores of one snapshot, measured for their use of the machine's memory. */
export const sharedBy = (/** @type {'page-cache' | 'working-set'} */ arm) =>
  cell({ scene: middle, guest: 'process', arm, shared: 8, cache: 'warm' })

/** Concurrent restores of one snapshot, with VMMs that start and guests that compute. */
export const burstBy = (
  /** @type {'kernel-file' | 'page-cache' | 'working-set'} */ arm,
  /** @type {'cold' | 'warm'} */ cache,
) => cell({ scene: small, guest: 'process', arm, burst: 8, cache })

/** A state between the two matters only for the choice. */
const halfWarm = (/** @type {string} */ scene, /** @type {Cell['guest']} */ guest) =>
  [...choosable, /** @type {const} */ ('auto')].map((arm) =>
    cell({ scene, guest, arm, cache: 'half-warm' }),
  )

/** @type {readonly Cell[]} */
export const cells = [
  ...[...scenes.keys()].flatMap((scene) => ofScene(scene, 'process')),
  ...[middle, runs3].flatMap((scene) => ofScene(scene, 'kvm')),
  ...[...sizes, runs3].flatMap((scene) => halfWarm(scene, 'process')),
  ...[middle, runs3].flatMap((scene) => halfWarm(scene, 'kvm')),
  sharedBy('page-cache'),
  sharedBy('working-set'),
  ...caches.flatMap((cache) => choosable.map((arm) => burstBy(arm, cache))),
  cell({
    scene: small,
    guest: 'process',
    arm: 'working-set',
    concurrent: 64,
    paused: true,
    cache: 'warm',
  }),
]

/** The cells that show how well `auto` chooses. */
export const isOfChoice = (/** @type {Cell} */ { arm, paused, busy, concurrent, shared, burst }) =>
  [...choosable, 'auto'].includes(arm) && !paused && !busy && !concurrent && !shared && !burst

/** The cells for every ratio except that of 1 GiB. */
export const isQuick = (/** @type {Cell} */ { scene, guest, arm }) =>
  scene === small ||
  scene === middle ||
  (scene === runs3 && guest === 'process' && !arm.startsWith('reap'))

/**
 * Cells whose difference is smaller than the spread of their samples: measured several times a
 * round.
 */
export const closeCells = [
  [{ arm: 'kernel-file' }, { arm: 'auto' }],
  [{ arm: 'record' }, { arm: 'on-demand' }],
  [{ arm: 'working-set', busy: true }, { arm: 'working-set' }, { arm: 'unproven' }],
].map((close) => close.map((one) => nameOf({ scene: middle, ...one, cache: 'warm' })))
export const MORE_PAIRS = 3

/** Number of samples per round: large sets are measured in every third round. */
export const isInRound = (/** @type {string} */ scene, /** @type {number} */ round) =>
  !isLarge(scene) || round % 3 === 0
