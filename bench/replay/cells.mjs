// @ts-check
// What is measured: one cell is one scene, guest, arm and state of the page cache.
import { sceneName } from './scene.mjs'

const MIB = 2 ** 20

/** @type {import('./scene.mjs').SceneOptions[]} */
const options = [
  { pattern: 'linux', setBytes: 10 * MIB, memoryBytes: 128 * MIB },
  { pattern: 'linux', setBytes: 64 * MIB, memoryBytes: 512 * MIB },
  { pattern: 'linux', setBytes: 1024 * MIB, memoryBytes: 2048 * MIB },
  ...[1, 3, 16, 256].map((pattern) => ({ pattern, setBytes: 64 * MIB, memoryBytes: 512 * MIB })),
]
export const scenes = new Map(options.map((scene) => [sceneName(scene), scene]))
export const [small, middle, large] = /** @type {[string, string, string]} */ ([...scenes.keys()])

/**
 * @typedef {object} Cell
 * @property {string} name
 * @property {string} scene
 * @property {'cold' | 'warm'} cache
 * @property {import('./sample.mjs').Arm} arm
 * @property {'kvm' | 'process'} guest
 * @property {boolean} [paused]
 * @property {boolean} [busy]
 * @property {number} [concurrent]
 * @property {boolean} [large]
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

const caches = /** @type {const} */ (['cold', 'warm'])
const guests = /** @type {const} */ (['process', 'kvm'])
const arms = /** @type {const} */ (['kernel-file', 'on-demand', 'reap', 'working-set'])

/** @type {readonly Cell[]} */
export const cells = [
  // The question of a user: from the restore request to the response.
  ...[...scenes.keys()]
    .filter((scene) => scene !== large)
    .flatMap((scene) =>
      guests.flatMap((guest) =>
        caches.flatMap((cache) => arms.map((arm) => cell({ scene, guest, arm, cache }))),
      ),
    ),
  // The engine alone: the guest does not run before its working set is there.
  ...[small, middle].flatMap((scene) =>
    caches.map((cache) =>
      cell({ scene, guest: 'process', arm: 'working-set', paused: true, cache }),
    ),
  ),
  {
    ...cell({ scene: large, guest: 'process', arm: 'working-set', paused: true, cache: 'warm' }),
    large: true,
  },
  cell({ scene: middle, guest: 'process', arm: 'record', cache: 'warm' }),
  cell({ scene: middle, guest: 'process', arm: 'working-set', busy: true, cache: 'warm' }),
  cell({
    scene: small,
    guest: 'process',
    arm: 'working-set',
    concurrent: 64,
    paused: true,
    cache: 'warm',
  }),
]

/** @param {Partial<Cell>} wanted */
export const nameOf = (wanted) =>
  cell(/** @type {Omit<Cell, 'name'>} */ ({ guest: 'process', ...wanted })).name
