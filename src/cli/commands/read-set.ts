import { ReapTraceError, Trace, WorkingSet } from '../../index.js'

/** Reads a working-set file, or a trace file as the set of its run. */
export async function readSet(path: string, options: { trust: boolean }): Promise<WorkingSet> {
  try {
    return await WorkingSet.read(path, options)
  } catch (error) {
    if (!(error instanceof ReapTraceError) || error.code !== 'ERR_WORKING_SET_INVALID') throw error
    const trace = await Trace.read(path, options).catch((reason: ReapTraceError) => {
      throw reason.check === 'magic' ? error : reason
    })
    return WorkingSet.fromTraces([trace])
  }
}
