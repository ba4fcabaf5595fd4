import { mkdtempSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, expect } from 'vitest'
import { ReapTraceError } from '../src/errors.js'
import { Trace, WorkingSet } from '../src/working-set.js'

export const PAGE = 4096

/** Gone when the test file is done. */
export const folder = mkdtempSync(join(tmpdir(), 'working-set-'))
afterAll(() => rmSync(folder, { recursive: true }))

let serial = 0
export const newPath = (name: string) => join(folder, `${serial++}-${name}`)

/** A memory file whose page `n` is full of a pattern of `n`, or zero where `zero(n)`. */
export function makeMemory(pages: number, zero: (page: number) => boolean = () => false): string {
  const bytes = Buffer.alloc(pages * PAGE)
  for (let page = 0; page < pages; page++) {
    if (!zero(page)) bytes.fill(`page ${page}, `, page * PAGE, (page + 1) * PAGE)
  }
  const path = newPath('memory')
  writeFileSync(path, bytes)
  return path
}

export const setOf = (memoryFile: string, pages: readonly number[], pageSize = PAGE) =>
  WorkingSet.fromTraces([
    new Trace({
      pageSize,
      memoryBytes: statSync(memoryFile).size,
      pages: Uint32Array.from(pages),
      timesUs: Uint32Array.from(pages, (_, i) => i * 7),
    }),
  ])

export async function write(memoryFile: string, pages: readonly number[], pageSize = PAGE) {
  const path = newPath('working-set')
  await setOf(memoryFile, pages, pageSize).write(path, { memoryFile })
  return path
}

/** The error that the work is expected to fail with. */
export const failureOf = async (work: Promise<unknown>): Promise<ReapTraceError> => {
  const error = await work.then(
    () => 'nothing failed',
    (reason: unknown) => reason,
  )
  expect(error).toBeInstanceOf(ReapTraceError)
  return error as ReapTraceError
}

export const pageIn = (memory: Buffer, page: number) =>
  memory.subarray(page * PAGE, (page + 1) * PAGE)
