// @ts-check
// Files of recorded runs: a line of JSON, then Brotli-compressed numbers; the format is in README.md.
import { readdirSync } from 'node:fs'
import { readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { brotliCompressSync, brotliDecompressSync, constants } from 'node:zlib'

export const tracesFolder = fileURLToPath(new URL('traces', import.meta.url))
const extension = '.trace'
const version = 1

/**
 * What a run was.
 * @typedef {object} RunFacts
 * @property {string} variant       class of its request, as an orchestrator could name it
 * @property {'huge' | 'failed'} [outlier]
 * @property {number} writtenShare  share of its pages that it modified
 */
/** @typedef {RunFacts & { pages: Uint32Array, timesUs: Uint32Array }} Run  pages in first-touch order */
/**
 * @typedef {object} ScenarioFacts
 * @property {string} name
 * @property {string} function
 * @property {number} memoryBytes
 * @property {number} pageSize
 * @property {number} timeUnitUs      resolution of the times
 * @property {number} seed            of its inputs
 * @property {number} [shiftAt]       the first run of the second distribution
 * @property {{ of: string }} [remade]  the snapshot is another boot of the function of the scenario `of`
 * @property {{ of: string, invocations: number, changedPages: number }} [child]  `of`: the scenario of the parent's
 *   snapshot; what was done to it, and how many pages of the memory file that changed
 */
/**
 * Pages of one snapshot whose content is also in another.
 * @typedef {{ pages: Uint32Array, places: Uint32Array }} Carried  `pages` in the first, `places` in the second
 */
/**
 * `carried`, of a snapshot that was made again: what the runs of `remade.of` touched, as far as the
 * new memory file has it, in the same place if it is there.
 * @typedef {ScenarioFacts & { runs: Run[], carried?: Carried }} Scenario
 */

/** Names of the recorded scenarios. */
export const scenarioNames = () =>
  readdirSync(tracesFolder)
    .filter((file) => file.endsWith(extension))
    .map((file) => file.slice(0, -extension.length))
    .sort()

export const pathOf = (/** @type {string} */ name) => join(tracesFolder, `${name}${extension}`)

/**
 * @param {string} name
 * @returns {Promise<Scenario>}
 */
export async function readScenario(name) {
  return decodeScenario(await readFile(pathOf(name)))
}

/** @param {Scenario} scenario */
export async function writeScenario(scenario) {
  await writeFile(pathOf(scenario.name), encodeScenario(scenario))
}

/**
 * @param {Scenario} scenario
 * @returns {Buffer}
 */
export function encodeScenario({ runs, carried, ...facts }) {
  const header = {
    version,
    ...facts,
    ...(carried && { carried: carried.pages.length }),
    runs: runs.map(({ pages, timesUs: _, ...run }) => ({ pages: pages.length, ...run })),
  }
  const numbers = runs.flatMap(({ pages, timesUs }) => [
    ...zigzag(pages),
    ...deltas(timesUs.map((us) => Math.floor(us / facts.timeUnitUs))),
  ])
  if (carried) numbers.push(...zigzag(carried.pages), ...zigzag(carried.places))
  const packed = brotliCompressSync(varints(numbers), {
    params: {
      [constants.BROTLI_PARAM_QUALITY]: constants.BROTLI_MAX_QUALITY,
      [constants.BROTLI_PARAM_LGWIN]: constants.BROTLI_MAX_WINDOW_BITS,
    },
  })
  return Buffer.concat([Buffer.from(`${JSON.stringify(header)}\n`), packed])
}

/**
 * @param {Buffer} file
 * @returns {Scenario}
 */
export function decodeScenario(file) {
  const end = file.indexOf('\n')
  const { version: found, runs, carried, ...facts } = JSON.parse(file.toString('utf8', 0, end))
  if (found !== version) throw new Error(`a trace file of version ${found}, not ${version}`)
  const next = varintReader(brotliDecompressSync(file.subarray(end + 1)))
  const column = (/** @type {number} */ count, /** @type {(number: number) => number} */ delta) => {
    let sum = 0
    return Uint32Array.from({ length: count }, () => (sum += delta(next())))
  }
  const pageColumn = (/** @type {number} */ count) =>
    column(count, (n) => (n % 2 === 1 ? -(n + 1) / 2 : n / 2))
  const decodedRuns = runs.map((/** @type {RunFacts & { pages: number }} */ run) => {
    const pages = pageColumn(run.pages)
    const timesUs = column(run.pages, (n) => n * facts.timeUnitUs)
    return { ...run, pages, timesUs }
  })
  if (carried === undefined) return { ...facts, runs: decodedRuns }
  const [pages, places] = [pageColumn(carried), pageColumn(carried)]
  return { ...facts, runs: decodedRuns, carried: { pages, places } }
}

/**
 * @param {Uint32Array} values
 * @returns {number[]}
 */
const deltas = (values) => Array.from(values, (value, i) => value - (values[i - 1] ?? 0))

/** Differences, the negative ones as odd numbers. @param {Uint32Array} values */
const zigzag = (values) => deltas(values).map((delta) => (delta < 0 ? -2 * delta - 1 : 2 * delta))

/** @param {readonly number[]} numbers */
function varints(numbers) {
  /** @type {number[]} */
  const bytes = []
  for (let number of numbers) {
    for (; number >= 0x80; number = Math.floor(number / 0x80)) bytes.push((number % 0x80) | 0x80)
    bytes.push(number)
  }
  return Uint8Array.from(bytes)
}

/** @param {Uint8Array} bytes */
function varintReader(bytes) {
  let at = 0
  return () => {
    let number = 0
    for (let scale = 1; ; scale *= 0x80) {
      const byte = bytes[at++]
      if (byte === undefined) throw new Error('a trace file that ends too soon')
      number += (byte % 0x80) * scale
      if (byte < 0x80) return number
    }
  }
}
