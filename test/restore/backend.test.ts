import { chmodSync } from 'node:fs'
import { describe, expect, test } from 'vitest'
import { hostCalibration, planRestore } from '../../src/index.js'
import {
  type ChoiceInputs,
  chooseBackend,
  measuredChoice,
  type ResponseTimes,
  trialOf,
  warmthOf,
} from '../../src/restore/backend.js'
import { calibrated, calibration, uncalibrated } from '../support/calibration.js'
import { readPages } from '../support/page-cache.js'
import { range, recordedSet, scene } from '../support/scratch.js'

uncalibrated()

const cached = { pageCount: 4000, missingPageCount: 0, isVisible: true }
const warm: ChoiceInputs = {
  named: undefined,
  record: false,
  pageSize: 4096,
  isMappable: true,
  workingSet: 'file',
  residency: cached,
  writtenShare: undefined,
  vcpus: 'kvm',
  calibration,
}
const missing = (missingPageCount: number) => ({
  residency: { ...cached, missingPageCount },
})
const cold = { ...warm, ...missing(4000) }

describe('the backend', () => {
  test.each([
    ['is the one that was named', { named: 'page-cache', record: true }, 'page-cache', /asked for/],
    ['is a handler to record', { record: true }, 'uffd', /records each page/],
    ['is a handler for 2 MiB pages', { pageSize: 2 ** 21 }, 'uffd', /2 MiB pages/],
    [
      'is a handler where nothing can share the page cache',
      { isMappable: false, workingSet: 'none' },
      'uffd',
      /no mappings that share/,
    ],
    ['is the page cache without a set', { workingSet: 'none' }, 'page-cache', /^without a working/],
    [
      'is the page cache without a good set',
      { workingSet: 'refused' },
      'page-cache',
      /cannot be used/,
    ],
    [
      'is the page cache for a set in no file',
      { workingSet: 'unwritten' },
      'page-cache',
      /without a file/,
    ],
  ] as const)('%s, whatever a page costs and whatever is missing', (_, more, backend, reason) => {
    for (const inputs of [warm, cold, { ...cold, calibration: undefined }]) {
      const choice = chooseBackend({ ...inputs, ...more })
      expect(choice).toEqual({ backend, reason: expect.stringMatching(reason) })
    }
  })

  test.each([
    [0, 'page-cache'],
    [200, 'page-cache'],
    [201, 'uffd'],
    [4000, 'uffd'],
  ])('with %i of 4000 pages missing on a host without a calibration is %s', (count, backend) => {
    const choice = chooseBackend({ ...warm, ...missing(count), calibration: undefined })
    expect(choice.backend).toBe(backend)
  })

  test.each([
    ['kvm', undefined, 'uffd'],
    ['kvm', 1, 'uffd'],
    ['kvm', 0.05, 'uffd'],
    ['kvm', 0.04, 'page-cache'],
    ['kvm', 0, 'page-cache'],
    ['threads', undefined, 'page-cache'],
    ['threads', 1, 'page-cache'],
  ] as const)(
    'for a guest of %s that changes a share of %s of its pages is %s',
    (vcpus, writtenShare, backend) => {
      expect(chooseBackend({ ...warm, vcpus, writtenShare }).backend).toBe(backend)
      // Missing pages count before that.
      expect(chooseBackend({ ...cold, vcpus, writtenShare }).backend).toBe('uffd')
    },
  )

  test('is the page cache where an installed page is hardly cheaper', () => {
    const kvm = { ...calibration.guests.kvm!, writes: { mappedUs: 3, installedUs: 2.8 } }
    const near = { ...calibration, guests: { kvm } }
    expect(chooseBackend({ ...warm, calibration: near }).backend).toBe('page-cache')
  })

  test('is the page cache where no guest of its kind could be measured', () => {
    const threads = calibration.guests.threads!
    const choice = chooseBackend({ ...warm, calibration: { ...calibration, guests: { threads } } })
    expect(choice.backend).toBe('page-cache')
    expect(choice.reason).toContain('no guest of KVM could be measured')
  })

  test('comes with a sentence that has the figures', () => {
    expect(chooseBackend(warm).reason).toBe(
      '100 % of 16 MiB of working set in the page cache; for a guest that writes, a mapped page takes 5.5 us on this host, an installed one 2.8 us',
    )
    expect(chooseBackend({ ...warm, ...missing(3000) }).reason).toBe(
      '25 % of 16 MiB of working set in the page cache: a fault handler reads the rest faster',
    )
    expect(chooseBackend({ ...warm, calibration: undefined }).reason).toBe(
      '100 % of 16 MiB of working set in the page cache; this host is not calibrated (reap-trace advise, calibrateHost())',
    )
    const none = { pageCount: 0, missingPageCount: 0, isVisible: true }
    expect(chooseBackend({ ...warm, residency: none, writtenShare: 0 }).reason).toBe(
      '100 % of 0.0 MiB of working set in the page cache; for a guest that only reads, a mapped page takes 0.4 us on this host, an installed one 2.8 us',
    )
  })
})

describe('what earlier restores took', () => {
  /** Milliseconds by a handler and from the page cache, with a warm and a cold page cache. */
  const took = (warm: [number, number], cold: [number, number], weight = 3): ResponseTimes => ({
    uffd: { warm: { ms: warm[0], weight }, cold: { ms: cold[0], weight } },
    'page-cache': { warm: { ms: warm[1], weight }, cold: { ms: cold[1], weight } },
  })
  const quarter = { ...warm, ...missing(1000) }
  const more = { ...warm, ...missing(1001) }

  test('decides at the warmth of now, whatever a page costs and however much is missing', () => {
    const responses = took([40, 30], [30, 40])
    for (const calibrated of [calibration, undefined]) {
      const choose = (inputs: ChoiceInputs) =>
        chooseBackend({ ...inputs, responses, calibration: calibrated }).backend
      expect([warm, quarter, more, cold].map(choose)).toEqual([
        'page-cache',
        'page-cache',
        'uffd',
        'uffd',
      ])
    }
    const turned = took([30, 40], [40, 30])
    const choose = (inputs: ChoiceInputs) => chooseBackend({ ...inputs, responses: turned })
    expect(choose({ ...warm, calibration: undefined }).backend).toBe('uffd')
    expect(choose(cold).backend).toBe('page-cache')
    expect([warm, quarter, more, cold].map(({ residency }) => warmthOf(residency!))).toEqual([
      'warm',
      'warm',
      'cold',
      'cold',
    ])
  })

  test('comes with a sentence that has the figures', () => {
    expect(chooseBackend({ ...quarter, responses: took([9.96, 30.4], [1, 1]) })).toEqual({
      backend: 'uffd',
      reason:
        '75 % of 16 MiB of working set in the page cache; with a warm page cache, restores of this snapshot took 10.0 ms by a fault handler and 30 ms from the page cache on this host',
    })
  })

  test.each([
    ['a difference of less than 5 %', took([40, 38.1], [38.1, 40])],
    ['a weight below 3', took([40, 10], [10, 40], 2.9)],
  ])('does not count with %s', (_, responses) => {
    for (const inputs of [warm, quarter, more, cold]) {
      expect(chooseBackend({ ...inputs, responses })).toEqual(chooseBackend(inputs))
    }
  })

  test('counts from a difference of 5 % on', () => {
    expect(chooseBackend({ ...warm, responses: took([40, 38], [1, 1]) }).backend).toBe('page-cache')
  })

  test.each([
    { named: 'uffd' },
    { record: true },
    { pageSize: 2 ** 21 },
    { isMappable: false },
    { workingSet: 'none', residency: undefined },
    { workingSet: 'refused', residency: undefined },
    { workingSet: 'unwritten', residency: undefined },
  ] as const)('changes nothing with %o, and there is no trial', (more) => {
    const inputs = { ...warm, ...more }
    const responses = took([40, 30], [40, 30])
    expect(chooseBackend({ ...inputs, responses })).toEqual(chooseBackend(inputs))
    expect(trialOf({ ...inputs, responses })).toBeUndefined()
  })

  test('is a measurement for the choice that is reported, whatever was named', () => {
    const inputs = { ...warm, calibration: undefined, named: 'page-cache' } as const
    expect(measuredChoice(inputs)).toBeUndefined()
    const responses = took([30, 40], [1, 1])
    expect(measuredChoice({ ...inputs, responses })).toMatchObject({ backend: 'uffd' })
  })

  test('is completed by a trial of the other backend', () => {
    for (const inputs of [warm, cold, { ...warm, responses: took([40, 30], [1, 1]) }]) {
      const choice = chooseBackend(inputs)
      const trial = trialOf(inputs)
      expect(trial?.backend).not.toBe(choice.backend)
      expect(trial?.reason).toMatch(/^a trial of .* would be chosen: \d+ % of 16 MiB /)
      expect(trial?.reason).toContain(choice.reason)
    }
  })
})

describe('a calibration', () => {
  const kvm = calibration.guests.kvm!
  test('is believed as it was kept', async () => {
    calibrated()
    expect(await hostCalibration()).toEqual(calibration)
  })

  test.each([
    ['no JSON', '{'],
    ['nothing', 'null'],
    ['something else', '[]'],
    ['that of another kernel', { ...calibration, kernel: '5.10.0' }],
    ['that of other processors', { ...calibration, cpu: '64 × another' }],
    [
      'a page that costs nothing',
      {
        ...calibration,
        guests: { kvm: { ...kvm, reads: { mappedUs: 0, installedUs: 1 } } },
      },
    ],
    ['half of a guest', { ...calibration, guests: { kvm: { reads: kvm.reads } } }],
    ['a word for a cost', JSON.stringify(calibration).replace('5.5', '"dear"')],
  ])('is none where its file has %s', async (_, what) => {
    calibrated(what)
    expect(await hostCalibration()).toBeUndefined()
  })

  test('is refused where another user may have written it, unless it is trusted', async () => {
    const path = calibrated()
    chmodSync(path, 0o622)
    const error = { code: 'ERR_UNTRUSTED_FILE', check: 'mode', path }
    await expect(hostCalibration()).rejects.toMatchObject(error)
    await expect(hostCalibration({ trust: 'yes' as never })).rejects.toThrow(TypeError)
    const trusted = await hostCalibration({ trust: true })
    expect(trusted).toEqual(calibration)
    const s = await scene({ pages: 64, holes: false })
    const snapshot = { memoryFile: s.memoryFile }
    const workingSet = await recordedSet(s, range(0, 64))
    readPages(s.memoryFile, range(0, 64))
    const reasonOf = async (options = {}) =>
      (await planRestore({ snapshot, workingSet, ...options })).reason
    expect(await reasonOf()).toMatch('other users may write to the calibration')
    expect(await reasonOf({ calibration: trusted })).toMatch(/a mapped page takes/)
    await expect(reasonOf({ calibration: {} })).rejects.toThrow(TypeError)
  })
})
