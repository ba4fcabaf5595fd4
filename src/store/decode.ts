import { ReapTraceError } from '../errors.js'
import { invalidFile } from './invalid.js'
import { Learner, type LearnerOptions } from './learner/learner.js'

type Decode = (path: string, bytes: Uint8Array, options: LearnerOptions) => Learner

const decoder =
  (invalid: (path: string, why: string) => ReapTraceError): Decode =>
  (path, bytes, options) => {
    try {
      return Learner.decode(bytes, options)
    } catch (error) {
      throw invalid(path, (error as Error).message)
    }
  }

/** @throws ReapTraceError `ERR_STORE_INVALID`. */
export const decodeEvidence = decoder((path, why) => invalidFile(path, 'evidence', why))

/**
 * Decodes a file of `export()`.
 *
 * @throws ReapTraceError `ERR_STORE_INVALID`.
 */
export const decodeExport = decoder(
  (path, why) =>
    new ReapTraceError('ERR_STORE_INVALID', `${path} cannot be imported: ${why}`, {
      path,
      check: 'evidence',
      hint: 'Is it a file of "reap-trace store export"? If so, export it again.',
    }),
)
