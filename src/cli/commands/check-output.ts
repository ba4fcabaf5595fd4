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

interface Inputs {
  readonly memory?: string
  readonly disks?: readonly string[]
  readonly workingSet?: string
  /** Other files that are read. */
  readonly files?: readonly string[]
}

interface Output {
  readonly option: string
  readonly code: ReapTraceErrorCode
}

/** Fails early if the output could not be written at the end. */
export async function checkOutput(
  output: string,
  inputs: Inputs,
  { option, code }: Output = { option: '--output', code: 'ERR_WORKING_SET_IO' },
): Promise<void> {
  const folder = dirname(await endOfLinks(resolve(output)))
  const refuse = (why: string, hint: string) => refusal(output, code, why, hint)
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
  await checkIsNoInput(output, inputs, { option, code })
}

/** Fails if writing the output would destroy a file that is read. */
export async function checkIsNoInput(
  output: string,
  { memory, disks = [], workingSet, files = [] }: Inputs,
  { option, code }: Output,
): Promise<void> {
  const there = await stat(output, { bigint: true }).catch(() => undefined)
  const named = [
    ['the memory file', memory],
    ...disks.map((path) => ['a disk image', path] as const),
    ['the working set', workingSet],
    ...files.map((path) => ['one of the files to read', path] as const),
  ] as const
  for (const [what, path] of named) {
    if (!there || path === undefined) continue
    const source = await stat(path, { bigint: true }).catch(() => undefined)
    if (source?.dev !== there.dev || source.ino !== there.ino) continue
    throw refusal(output, code, `it is ${what}`, `Choose a different ${option}.`)
  }
}

/** Failure of an output. */
export const refusal = (path: string, code: ReapTraceErrorCode, why: string, hint: string) =>
  new ReapTraceError(code, `${path} cannot be written: ${why}`, { path, hint })
