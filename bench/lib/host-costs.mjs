import { readFile } from 'node:fs/promises'
import { measureHost, prepareRestore } from '../../dist/index.js'

/**
 * What `auto` goes by, in the file that REAP_TRACE_HOST_COSTS names: kept by an earlier run, or measured
 * where that cannot be believed.
 *
 * @param {{ memoryFile: string, workingSet: string, socketPath: string }} snapshot
 * @param {{ folder: string, progress: import('./progress.mjs').Progress, signal: AbortSignal }} run
 */
export async function knowHost(snapshot, { folder, progress, signal }) {
  const probe = await prepareRestore({ ...snapshot, backend: 'page-cache' })
  await probe.close()
  if (!probe.estimates) {
    const onProgress = ({ share }) => progress.say('measuring the host', share)
    await measureHost({ folder, signal, onProgress })
  }
  return JSON.parse(await readFile(process.env.REAP_TRACE_HOST_COSTS, 'utf8'))
}
