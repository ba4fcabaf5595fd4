import { ReapTraceError } from '../errors.js'

/** Error for a file of a store that fails a check. */
export const invalidFile = (path: string, check: string, why: string): ReapTraceError =>
  new ReapTraceError('ERR_STORE_INVALID', `the store file ${path} is damaged: ${why}`, {
    path,
    check,
    hint: 'Forget the snapshot ("reap-trace store forget"); its next restore records it again.',
  })

export const isDamage = (error: unknown): error is ReapTraceError =>
  error instanceof ReapTraceError && error.code === 'ERR_STORE_INVALID'
