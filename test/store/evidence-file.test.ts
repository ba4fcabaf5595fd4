import { describe, expect, test } from 'vitest'
import { EvidenceError, Learner } from '../../src/store/learner/learner.js'

const facts = { pageSize: 4096, memoryBytes: 2 ** 28 }
const range = (from: number, to: number) => Array.from({ length: to - from }, (_, i) => from + i)

function taught(pages = 200): Learner {
  const learner = Learner.fresh(facts)
  for (const [i, variant] of ['a', 'b', 'ü'.repeat(600), undefined].entries()) {
    const touched = range(10 * i, pages + 10 * i)
    learner.observe([
      {
        variant,
        pages: Uint32Array.from(touched),
        timesUs: Uint32Array.from(touched, (page) => 10 * page),
        prefetched: undefined,
        heldOut: new Uint32Array(),
        ...{ faultUs: 47, installUs: 1.1, responseMs: 80, stalledMs: 9 },
      },
    ])
  }
  const [set] = learner.dueSets(() => 0)
  learner.written(undefined, set!.pages)
  return learner
}

describe('an evidence file', () => {
  test('has all that a learner knows', () => {
    const learner = taught()
    const read = Learner.decode(learner.encode())
    expect(read.describe()).toEqual(learner.describe())
    expect(read.facts).toEqual(facts)
    expect(read.variants).toEqual(learner.variants)
    expect(read.encode()).toEqual(learner.encode())
    const random = () => 0.999
    expect(read.heldOut('a', random)).toEqual(learner.heldOut('a', random))
    const fresh = Learner.fresh(facts)
    expect(Learner.decode(fresh.encode()).describe()).toEqual(fresh.describe())
  })

  test('has at most 24 bytes for each page with three variants', () => {
    const bytes = (pages: number) => taught(pages).encode().length
    expect((bytes(20_000) - bytes(10_000)) / 10_000).toBeLessThanOrEqual(24)
  })

  test('is rejected with any one byte changed', () => {
    const bytes = taught(8).encode()
    for (let offset = 0; offset < bytes.length; offset++) {
      for (const change of [1, 0x80, 0xff]) {
        const damaged = Uint8Array.from(bytes)
        damaged[offset]! ^= change
        expect(() => Learner.decode(damaged), `byte ${offset}`).toThrow(EvidenceError)
      }
    }
  })

  test('is rejected at any other length', () => {
    const bytes = taught(8).encode()
    for (let length = 0; length < bytes.length; length++) {
      expect(() => Learner.decode(bytes.subarray(0, length)), `${length} bytes`).toThrow(
        EvidenceError,
      )
    }
    expect(() => Learner.decode(Buffer.concat([bytes, Buffer.alloc(1)]))).toThrow(EvidenceError)
  })

  test('of another kind or version is named', () => {
    expect(() => Learner.decode(Buffer.from('not an evidence file'))).toThrow('REAPEVID')
    const later = Buffer.from(taught(8).encode())
    later.writeUInt32LE(2, 8)
    expect(() => Learner.decode(later)).toThrow('its version is 2')
  })
})
