import { randomBytes } from 'node:crypto'
import { open, readlink, realpath, stat, unlink } from 'node:fs/promises'
import { dirname, join, resolve } from 'node:path'
import { ReapTraceError } from '../../index.js'

/** Path of the file that `path` leads to, which need not exist. */
async function endOfLinks(path: string, count = 0): Promise<string> {
  const link = await readlink(path).catch(() => undefined)
  if (link === undefined || count === 40) return path
  const folder = await realpath(dirname(path))
  return endOfLinks(resolve(folder, link), count + 1)
}

/** Fails early if the output could not be written at the end. */
export async function checkOutput(
  output: string,
  memory: string,
  disks: readonly string[],
): Promise<void> {
  const folder = dirname(await endOfLinks(resolve(output)))
  const refuse = (why: string, hint: string) =>
    new ReapTraceError('ERR_WORKING_SET_IO', `${output} cannot be written: ${why}`, {
      path: output,
      hint,
    })
  // Not access(), which lets root write to /proc, or to a folder that chattr made immutable.
  const probe = join(folder, `reap-trace-${randomBytes(6).toString('hex')}.tmp`)
  try {
    await (await open(probe, 'wx', 0o600)).close()
    await unlink(probe)
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException
    const isThere = await stat(folder).catch(() => undefined)
    if (!isThere) throw refuse(`the folder ${folder} does not exist`, 'Create it first.')
    throw refuse(`${folder} is not writable (${code})`, 'Choose another folder for --output.')
  }
  const there = await stat(output, { bigint: true }).catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') return undefined
    throw refuse(error.message, 'Choose a different --output.')
  })
  if (!there) return
  if (!there.isFile()) throw refuse('it is not a file', 'Choose a different --output.')
  for (const path of [memory, ...disks]) {
    const source = await stat(path, { bigint: true }).catch(() => undefined)
    if (source?.dev !== there.dev || source.ino !== there.ino) continue
    const what = path === memory ? 'the memory file' : 'a disk image'
    throw refuse(`it is ${what}`, 'Choose a different --output.')
  }
}
