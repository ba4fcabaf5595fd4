import { mkdtempSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, expect } from 'vitest'
import { ReapTraceError } from '../../src/errors.js'
import { Trace, WorkingSet } from '../../src/working-set/working-set.js'
import { crc32cOf } from './second-reader.js'

export const PAGE = 4096

/** Removed when the test file is done. */
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

/** A disk image of this size, whose page `n` is full of a pattern of `n`. */
export function makeDisk(bytes: number): string {
  const content = Buffer.alloc(Math.ceil(bytes / PAGE) * PAGE)
  for (let at = 0; at < bytes; at += PAGE) content.fill(`disk ${at}, `, at, at + PAGE)
  const path = newPath('disk.img')
  writeFileSync(path, content.subarray(0, bytes))
  return path
}

/** A run's trace of a disk image of this size. */
export const diskTrace = (bytes: number, touches: readonly [page: number, timeUs: number][]) =>
  new Trace({
    pageSize: PAGE,
    memoryBytes: Math.ceil(bytes / PAGE) * PAGE,
    pages: Uint32Array.from(touches, ([page]) => page),
    timesUs: Uint32Array.from(touches, ([, timeUs]) => timeUs),
  })

export const setOf = (
  memoryFile: string,
  pages: readonly number[],
  pageSize = PAGE,
  disks: readonly Trace[] = [],
) =>
  WorkingSet.fromTraces(
    [
      new Trace({
        pageSize,
        memoryBytes: statSync(memoryFile).size,
        pages: Uint32Array.from(pages),
        timesUs: Uint32Array.from(pages, (_, i) => i * 7),
      }),
    ],
    { disks: disks.map((trace) => [trace]) },
  )

export async function write(memoryFile: string, pages: readonly number[], pageSize = PAGE) {
  const path = newPath('working-set')
  await setOf(memoryFile, pages, pageSize).write(path, { snapshot: { memoryFile } })
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

/** The bytes of a valid file with one edit, and with new checksums. */
export function edited(sound: Buffer, edit: (bytes: Buffer) => void): Buffer {
  const bytes = Buffer.from(sound)
  edit(bytes)
  const indexBytes = Number(bytes.readBigUInt64LE(48))
  const end = Math.min(PAGE + indexBytes, bytes.length)
  bytes.writeUInt32LE(crc32cOf(bytes.subarray(PAGE, end)), 120)
  bytes.writeUInt32LE(0, 124)
  bytes.writeUInt32LE(crc32cOf(bytes.subarray(0, PAGE)), 124)
  return bytes
}

/** Result of the second reader for a file. */
export function outcomeOf(work: () => unknown): string {
  try {
    work()
    return 'accepted'
  } catch (error) {
    if (error instanceof SyntaxError || (error as Error).message.startsWith('refused'))
      return 'refused'
    throw error
  }
}

/** Edits of a file. */
export const u32 = (offset: number, value: number) => (bytes: Buffer) => {
  bytes.writeUInt32LE(value, offset)
}
export const u64 = (offset: number, value: bigint) => (bytes: Buffer) => {
  bytes.writeBigUInt64LE(value, offset)
}

/** An edit, and the check that fails by it, at this offset. */
export type DamageCase = [
  what: string,
  check: string,
  offset: () => number,
  edit: () => (bytes: Buffer) => void,
]
