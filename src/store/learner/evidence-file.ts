import { HUGE_PAGE, MAX_MEMORY, PAGE } from '../../page.js'
import { Reader, Writer } from './bytes.js'
import { Evidence, MAX_VARIANTS } from './evidence.js'
import { type LearnerState, type Means, meanNames } from './learner-state.js'
import { MAX_COHORTS, Scope } from './scope.js'

// The bytes are specified in docs/store.md; the names here are the ones used there.
const MAGIC = [0x5041_4552, 0x4449_5645] // "REAPEVID"
const VERSION = 1
/** Weights of pages are below this. */
const MAX_WEIGHT = 128
const MAX_PLACE = 2 ** 16 - 1
const DRIFTS = [undefined, 'touches', 'waste'] as const

export function encodeEvidence({ facts, evidence, ledgers, means, drift }: LearnerState): Buffer {
  const { scopes, count, cohortSizes, common } = evidence
  const writer = new Writer()
  writer.u32(...MAGIC, VERSION, facts.pageSize)
  writer.f64(facts.memoryBytes)
  writer.u32(count, scopes.length, cohortSizes.length, DRIFTS.indexOf(drift?.kind))
  writer.f64(drift?.restoreCount ?? 0)
  writer.text(drift?.variant)
  for (const name of meanNames) writer.f64(means[name].sum, means[name].weight)
  scopes.forEach((scope, number) => {
    const { setPages = 0, regretUs = 0 } = ledgers[number] ?? {}
    writer.text(scope.name)
    writer.f64(scope.restores, scope.known, scope.use / common.unit)
    writer.f64(setPages, regretUs)
    cohortSizes.forEach((_, cohort) => {
      writer.f64(scope.cohortTouched[cohort]!, scope.cohortKnown[cohort]!)
    })
  })
  writer.column(evidence.pages.subarray(0, count), 4)
  writer.column(evidence.sets.subarray(0, count), 4)
  const places = evidence.places.subarray(0, count)
  writer.column(places, 2, (place) => Math.min(1, place) * MAX_PLACE)
  writer.column(evidence.cohorts.subarray(0, count), 1)
  for (const scope of scopes) {
    const { bytes, most } = weightCode(scope)
    const code = (weight: number) =>
      Math.sqrt(Math.min(1, Math.max(0, weight / scope.unit / MAX_WEIGHT))) * most
    writer.column(scope.touched.subarray(0, count), bytes, code)
    writer.column(scope.expected.subarray(0, count), bytes, code)
  }
  return writer.finish()
}

/** Weights of pages are square roots, so that small ones keep their precision. */
const weightCode = ({ name }: Scope) =>
  name === undefined
    ? ({ bytes: 2, most: 2 ** 16 - 1 } as const)
    : ({ bytes: 1, most: 255 } as const)

/**
 * @throws EvidenceError for bytes that {@link encodeEvidence} has not made, or that have changed since.
 */
export function decodeEvidence(bytes: Uint8Array): LearnerState {
  const reader = new Reader(bytes)
  const isEvidence = MAGIC.every((word) => reader.u32() === word)
  reader.rule(isEvidence, 'magic', 'it does not begin with "REAPEVID"')
  const version = reader.u32()
  reader.rule(version === VERSION, 'version', `its version is ${version}, not ${VERSION}`)
  reader.verifyChecksum()

  const pageSize = reader.u32()
  const isPageSize = pageSize === PAGE || pageSize === HUGE_PAGE
  reader.rule(isPageSize, 'page-size', `its guest has pages of ${pageSize} bytes`)
  const memoryBytes = reader.f64()
  const pageLimit = memoryBytes / pageSize
  const isMemory = Number.isInteger(pageLimit) && memoryBytes <= MAX_MEMORY
  reader.rule(isMemory, 'memory-bytes', "the size of its guest's memory is invalid")
  const [count, scopes, cohortCount] = [reader.u32(), reader.u32(), reader.u32()]
  reader.rule(count <= pageLimit, 'page-count', 'it has more pages than the memory')
  const isScopes = scopes >= 1 && scopes <= 1 + MAX_VARIANTS
  reader.rule(isScopes, 'scope-count', `it has ${scopes} scopes`)
  reader.rule(cohortCount <= MAX_COHORTS, 'cohort-count', `it has ${cohortCount} cohorts`)
  const drift = readDrift(reader)
  const means = Object.fromEntries(
    meanNames.map((name) => [name, { sum: reader.f64(), weight: reader.f64() }]),
  ) as unknown as Means

  const evidence = new Evidence(pageLimit)
  evidence.scopes.length = 0
  evidence.cohortSizes.length = cohortCount
  evidence.cohortSizes.fill(0)
  const ledgers: { setPages: number; regretUs: number }[] = []
  for (let number = 0; number < scopes; number++) {
    const name = reader.text()
    const isNew = evidence.scopes.every((scope) => scope.name !== name)
    reader.rule((name === undefined) === (number === 0) && isNew, 'variant', 'a variant is invalid')
    const scope = new Scope(name, 0)
    evidence.scopes.push(scope)
    scope.restores = reader.f64()
    scope.known = reader.f64()
    scope.use = reader.f64()
    ledgers.push({ setPages: reader.f64(), regretUs: reader.f64() })
    for (let cohort = 0; cohort < cohortCount; cohort++) {
      scope.cohortTouched[cohort] = reader.f64()
      scope.cohortKnown[cohort] = reader.f64()
    }
  }
  readPages(reader, evidence, count, pageLimit)
  reader.end()
  return { facts: { pageSize, memoryBytes }, evidence, ledgers, means, drift }
}

function readDrift(reader: Reader): LearnerState['drift'] {
  const number = reader.u32()
  reader.rule(number < DRIFTS.length, 'drift', 'its drift is unknown')
  const kind = DRIFTS[number]
  const restoreCount = reader.f64()
  const variant = reader.text()
  return kind && { kind, variant, restoreCount }
}

function readPages(reader: Reader, evidence: Evidence, count: number, pageLimit: number): void {
  const pages = reader.column(count, 4)
  const sets = reader.column(count, 4)
  const places = reader.column(count, 2)
  const cohorts = reader.column(count, 1)
  evidence.reserve(count)
  for (let i = 0; i < count; i++) {
    const isNew = pages[i]! < pageLimit && evidence.slotOf(pages[i]!) < 0
    reader.rule(isNew, 'page', 'a page is outside the memory, or there twice')
    const isCohort = cohorts[i]! < evidence.cohortSizes.length
    reader.rule(isCohort, 'cohort', 'a page has an invalid cohort')
    evidence.put(pages[i]!, places[i]! / MAX_PLACE, cohorts[i]!, sets[i]!)
  }
  for (const scope of evidence.scopes) {
    const { bytes, most } = weightCode(scope)
    for (const column of [scope.touched, scope.expected]) {
      const codes = reader.column(count, bytes)
      for (let i = 0; i < count; i++) column[i] = (codes[i]! / most) ** 2 * MAX_WEIGHT
    }
  }
}
