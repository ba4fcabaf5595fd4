import { calibrateHost, hostCalibration } from '../../dist/index.js'

/**
 * Calibration for `auto`, in the file named by REAP_TRACE_CALIBRATION: that of an earlier run, or a
 * new one if that is invalid.
 *
 * @param {{ folder: string, progress: import('./progress.mjs').Progress, signal: AbortSignal }} run
 */
export async function calibrated({ folder, progress, signal }) {
  const known = await hostCalibration()
  if (known) return known
  const onProgress = ({ share }) => progress.say('calibrating the host', share)
  return calibrateHost({ folder, signal, onProgress })
}
