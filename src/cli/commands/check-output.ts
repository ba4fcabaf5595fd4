import { randomBytes } from 'node:crypto'
import { open, readlink, realpath, stat, unlink } from 'node:fs/promises'
import { dirname, join, resolve } from 'node:path'
import { ReapTraceError, type ReapTraceErrorCode } from '../../index.js'

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
  inputs: {
    readonly memory: string
    readonly disks: readonly string[]
    readonly workingSet?: string
  },
  { option, code }: { option: string; code: ReapTraceErrorCode } = {
    option: '--output',
    code: 'ERR_WORKING_SET_IO',
  },
): Promise<void> {
  const folder = dirname(await endOfLinks(resolve(output)))
  const refuse = (why: string, hint: string) =>
    new ReapTraceError(code, `${output} cannot be written: ${why}`, {
      path: output,
      hint,
    })
  // Not access(), which lets root write to /proc, or to a folder that chattr made immutable.
  const probe = join(folder, `reap-trace-${randomBytes(6).toString('hex')}.tmp`)
  try {
    await (await open(probe, 'wx', 0o600)).close()
    await unlink(probe)
  } catch (error) {
    const { code: errno } = error as NodeJS.ErrnoException
    const isThere = await stat(folder).catch(() => undefined)
    if (!isThere) throw refuse(`the folder ${folder} does not exist`, 'Create it first.')
    throw refuse(`${folder} is not writable (${errno})`, `Choose another folder for ${option}.`)
  }
  const there = await stat(output, { bigint: true }).catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') return undefined
    throw refuse(error.message, `Choose a different ${option}.`)
  })
  if (!there) return
  if (!there.isFile()) throw refuse('it is not a file', `Choose a different ${option}.`)
  const { memory, disks, workingSet } = inputs
  const named = [
    ['the memory file', memory],
    ...disks.map((path) => ['a disk image', path] as const),
    ...(workingSet === undefined ? [] : [['the working set', workingSet] as const]),
  ] as const
  for (const [what, path] of named) {
    const source = await stat(path, { bigint: true }).catch(() => undefined)
    if (source?.dev !== there.dev || source.ino !== there.ino) continue
    throw refuse(`it is ${what}`, `Choose a different ${option}.`)
  }
}
