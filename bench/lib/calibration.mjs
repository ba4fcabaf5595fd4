import { calibrateHost, hostCalibration } from '../../dist/index.js'

/**
 * What `auto` goes by, in the file that REAP_TRACE_CALIBRATION names: kept by an earlier run, or measured
 * where that cannot be believed.
 *
 * @param {{ folder: string, progress: import('./progress.mjs').Progress, signal: AbortSignal }} run
 */
export async function calibrated({ folder, progress, signal }) {
  const known = await hostCalibration()
  if (known) return known
  const onProgress = ({ share }) => progress.say('calibrating the host', share)
  return calibrateHost({ folder, signal, onProgress })
}
