import { writeFileSync } from 'node:fs'
import { cpus, release } from 'node:os'
import { beforeEach, onTestFinished } from 'vitest'
import type { HostCalibration } from '../../src/index.js'
import { newPath } from './working-sets.js'

/** A host on which a guest of KVM that writes is better served by a handler, and no other is. */
export const calibration: HostCalibration = {
  calibratedAt: '2026-11-25T12:00:00.000Z',
  kernel: release(),
  cpu: `${cpus().length} × ${cpus()[0]?.model.trim()}`,
  guests: {
    threads: {
      reads: { mappedUs: 0.1, installedUs: 1.5 },
      writes: { mappedUs: 1.1, installedUs: 1.6 },
    },
    kvm: {
      reads: { mappedUs: 0.4, installedUs: 2.75 },
      writes: { mappedUs: 5.5, installedUs: 2.84 },
    },
  },
}

/** Writes a calibration where this test's process looks for it, and says where. */
export function calibrated(what: unknown = calibration): string {
  const path = newPath('calibration.json')
  writeFileSync(path, typeof what === 'string' ? what : JSON.stringify(what))
  process.env.REAP_TRACE_CALIBRATION = path
  return path
}

/** Keeps the tests of a file from the user's own calibration: each begins on a host without one. */
export function uncalibrated(): void {
  beforeEach(() => {
    const before = process.env.REAP_TRACE_CALIBRATION
    process.env.REAP_TRACE_CALIBRATION = newPath('no-calibration.json')
    onTestFinished(() => {
      if (before === undefined) delete process.env.REAP_TRACE_CALIBRATION
      else process.env.REAP_TRACE_CALIBRATION = before
    })
  })
}
