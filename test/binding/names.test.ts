import { expect, test } from 'vitest'
import { type NativeEvent, native } from '../../src/binding/addon.js'
import type { NativeErrorCode } from '../../src/binding/failure.js'
import type { FaultStats, ServeResult, SessionTimes } from '../../src/index.js'
import { FAULT_CLASSES, SPAN_KINDS } from '../../src/uffd/measurements.js'

// The compiler refuses a table that lacks a name of its type or has another.
const errors: Record<NativeErrorCode, true> = {
  ERR_NATIVE_UNAVAILABLE: true,
  ERR_LIMIT: true,
  ERR_SOCKET: true,
  ERR_HANDSHAKE_TIMEOUT: true,
  ERR_VMM_EXITED: true,
  ERR_HANDSHAKE_INVALID: true,
  ERR_PEER_REFUSED: true,
  ERR_VMM_UNSUPPORTED: true,
  ERR_SOURCE_READ: true,
  ERR_WORKING_SET_INVALID: true,
  ERR_WORKING_SET_IO: true,
  ERR_UNTRUSTED_FILE: true,
  ERR_STORE_IO: true,
  ERR_FAULT_UNRESOLVED: true,
  ERR_PAGE_CACHE: true,
}
const events: Record<NativeEvent['kind'], true> = {
  connected: true,
  prefetched: true,
  'detach-failed': true,
  'read-hangs': true,
  ended: true,
}
const ends: Record<ServeResult['state'], true> = {
  closed: true,
  'vm-exited': true,
  'vm-killed': true,
  'vm-left': true,
  detached: true,
}
const counters: Record<
  Exclude<keyof FaultStats, 'prefetch' | 'stalledMs' | 'waits' | 'slowest'>,
  true
> = {
  faults: true,
  lateFaults: true,
  residualFaults: true,
  installed: true,
  zero: true,
  prefetched: true,
  installedAhead: true,
  present: true,
  deferred: true,
  discarded: true,
  removed: true,
  bytesRead: true,
}

const steps: Record<keyof SessionTimes, true> = {
  listening: true,
  accepted: true,
  connected: true,
  firstFetch: true,
  firstInstall: true,
  firstFault: true,
  prefetched: true,
  ready: true,
  closed: true,
}

test('classes of faults and kinds of spans have the order of the engine', () => {
  expect(native().names().faultClasses).toEqual([...FAULT_CLASSES])
  expect(native().names().spans).toEqual([...SPAN_KINDS])
})

test.each(Object.entries({ errors, events, ends, counters, steps }))(
  'the names of the %s in the engine are those of their TypeScript type',
  (list, table) => {
    const names = native().names()[list as 'errors']
    expect(names.filter((name) => name !== '').sort()).toEqual(Object.keys(table).sort())
  },
)
