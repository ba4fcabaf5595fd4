import { writeFileSync } from 'node:fs'
import { cpus, release } from 'node:os'
import { beforeEach, onTestFinished } from 'vitest'
import type { HostCosts } from '../../src/index.js'
import { newPath } from './working-sets.js'

/** What a host might cost on which reads at many places are dear, and installing pages is too. */
export const costs: HostCosts = {
  measuredAt: '2026-11-25T12:00:00.000Z',
  kernel: release(),
  cpu: `${cpus().length} × ${cpus()[0]?.model.trim()}`,
  indexUs: 0.5,
  smallLookNs: 50,
  guests: {
    threads: {
      mapped: {
        large: { fixedMs: 0.5, pageUs: 0.25, runUs: 0 },
        small: { fixedMs: 1, pageUs: 1, runUs: 0.5 },
      },
      installed: { fixedMs: 2, pageUs: 5, runUs: 1 },
    },
    kvm: {
      mapped: {
        large: { fixedMs: 1, pageUs: 1.5, runUs: 0 },
        small: { fixedMs: 2, pageUs: 2, runUs: 0 },
      },
      installed: { fixedMs: 3, pageUs: 6, runUs: 2 },
    },
  },
  disk: { bytesPerMs: 1e6, cachedBytesPerMs: 8e5, extentUs: 100 },
  disks: {},
}

/** Writes costs where this test's process looks for them, and says where. */
export function hostCosts(what: unknown = costs): string {
  const path = newPath('host-costs.json')
  writeFileSync(path, typeof what === 'string' ? what : JSON.stringify(what))
  process.env.REAP_TRACE_HOST_COSTS = path
  return path
}

/** Keeps the tests of a file from the user's own costs: each begins on a host that was not measured. */
export function withoutHostCosts(): void {
  beforeEach(() => {
    const before = process.env.REAP_TRACE_HOST_COSTS
    process.env.REAP_TRACE_HOST_COSTS = newPath('no-host-costs.json')
    onTestFinished(() => {
      if (before === undefined) delete process.env.REAP_TRACE_HOST_COSTS
      else process.env.REAP_TRACE_HOST_COSTS = before
    })
  })
}
