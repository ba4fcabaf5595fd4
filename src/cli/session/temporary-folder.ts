import { mkdtemp } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { CliError } from '../terminal/failure.js'

/** Maximum length, in bytes, that leaves room for the names of sockets: 107 bytes in all. */
const MAX_PARENT = 64

/**
 * Creates a folder for sockets.
 *
 * @throws CliError `ERR_MACHINE_UNFIT` if `parent` is not writable, or its path too long.
 */
export async function temporaryFolder(prefix: string, parent = tmpdir()): Promise<string> {
  const unfit = (why: string, hint: string) =>
    new CliError('ERR_MACHINE_UNFIT', `the temporary folder cannot be used: ${why}`, hint)
  if (Buffer.byteLength(parent) > MAX_PARENT) {
    const why = `the path ${parent} is too long for a socket`
    throw unfit(why, `Set TMPDIR to a folder whose path has at most ${MAX_PARENT} bytes.`)
  }
  return mkdtemp(join(parent, prefix)).catch((error: Error) => {
    throw unfit(error.message, 'Set TMPDIR to a folder that exists and that you can write to.')
  })
}
