import { writeFileSync } from 'node:fs'
import { cpus, release } from 'node:os'
import { beforeEach, onTestFinished } from 'vitest'
import type { HostCalibration } from '../../src/index.js'
import { newPath } from './working-sets.js'

/** Calibration of a host where only a KVM guest that writes is faster with a handler. */
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

/** Writes a calibration to the path where this process looks for it; returns the path. */
export function calibrated(what: unknown = calibration): string {
  const path = newPath('calibration.json')
  writeFileSync(path, typeof what === 'string' ? what : JSON.stringify(what))
  process.env.REAP_TRACE_CALIBRATION = path
  return path
}

/** Hides the user's calibration from the tests of a file: each starts on a host without one. */
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
