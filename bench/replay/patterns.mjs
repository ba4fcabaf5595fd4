// @ts-check
// Pages that a replayed guest touches. A pattern is a list of runs in first-touch order over memory
// of a given size; the same arguments give the same pattern.
import { readFileSync } from 'node:fs'
import { randomNumbers, shuffle } from '../../src/cli/measure/random.mjs'

/** @typedef {{ first: number, pages: number }} Run in pages of the memory */

/**
 * Runs of geometrically distributed lengths with mean `meanRun`, evenly spread, touched in random
 * order.
 * @param {{ pages: number, meanRun: number, memoryPages: number }} wanted
 * @returns {Run[]}
 */
export function syntheticPattern({ pages, meanRun, memoryPages }) {
  const random = randomNumbers(meanRun)
  const runs = /** @type {Run[]} */ ([])
  const gap = (memoryPages / pages - 1) * meanRun
  let at = 0
  for (let left = pages; left > 0; ) {
    const drawn =
      meanRun === 1 ? 1 : 1 + Math.floor(Math.log(1 - random()) / Math.log(1 - 1 / meanRun))
    const length = Math.min(left, drawn)
    runs.push({ first: at, pages: length })
    left -= length
    // At least one page apart, or two runs would merge.
    at += length + 1 + Math.floor(random() * 2 * Math.max(0, gap - 1))
  }
  shuffle(runs, random)
  return fit(runs, memoryPages)
}

/**
 * Touches of a Linux guest in a real first invocation, repeated up to `pages`: each copy has the
 * recorded runs in the recorded order, the copies follow each other in time and are placed at
 * random in memory. Gaps between runs are reduced so that the copies fit.
 * @param {{ pages: number, memoryPages: number, recorded?: Recorded }} wanted
 * @returns {Run[]}
 */
export function linuxPattern({ pages, memoryPages, recorded = readRecorded() }) {
  const sorted = recorded.runs
    .map((run, rank) => ({ ...run, rank }))
    .sort((a, b) => a.first - b.first)
  const recordedPages = sorted.reduce((sum, run) => sum + run.pages, 0)
  const mostGap = Math.max(
    1,
    Math.floor(((memoryPages / pages - 1) * recordedPages) / sorted.length),
  )
  let at = 0
  let before = 0
  for (const run of sorted) {
    const gap = Math.min(run.first - before, mostGap)
    before = run.first + run.pages
    run.first = at + gap
    at = run.first + run.pages
  }
  const copyPages = at + 1
  const inOrder = sorted.sort((a, b) => a.rank - b.rank)
  const copies = Math.ceil(pages / recordedPages)
  const places = Array.from({ length: copies }, (_, i) => i * copyPages)
  shuffle(places, randomNumbers(copies))
  const runs = /** @type {Run[]} */ ([])
  let left = pages
  for (const place of places) {
    for (const run of inOrder) {
      const length = Math.min(left, run.pages)
      if (length > 0) runs.push({ first: place + run.first, pages: length })
      left -= length
    }
  }
  return fit(runs, memoryPages)
}

/** @typedef {{ from: string, runs: Run[] }} Recorded */

/** @returns {Recorded} */
function readRecorded() {
  const { from, runs } = JSON.parse(
    readFileSync(new URL('linux-trace.json', import.meta.url), 'utf8'),
  )
  return {
    from,
    runs: runs.map((/** @type {[number, number]} */ [first, pages]) => ({ first, pages })),
  }
}

/**
 * @param {Run[]} runs
 * @param {number} memoryPages
 */
function fit(runs, memoryPages) {
  const end = runs.reduce((most, run) => Math.max(most, run.first + run.pages), 0)
  if (end > memoryPages) throw new RangeError(`the pattern needs ${end} pages of memory`)
  return runs
}

/** @param {Run[]} runs */
export const pagesOf = (runs) =>
  Uint32Array.from(
    runs.flatMap(({ first, pages }) => Array.from({ length: pages }, (_, i) => first + i)),
  )
