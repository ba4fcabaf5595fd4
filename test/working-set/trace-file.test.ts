import { execFileSync } from 'node:child_process'
import { readFileSync, statSync, truncateSync, writeFileSync } from 'node:fs'
import { Worker } from 'node:worker_threads'
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { Trace, WorkingSet } from '../../src/working-set/working-set.js'
import { crc32cOf } from '../support/second-reader.js'
import { failureOf, folder, newPath, PAGE } from '../support/working-sets.js'

const trace = (pages: readonly number[], writtenShare?: number) =>
  new Trace({
    pageSize: PAGE,
    memoryBytes: 64 * PAGE,
    pages: Uint32Array.from(pages),
    timesUs: Uint32Array.from(pages, (_, i) => 3 * i),
    writtenShare,
  })

describe('a trace file', () => {
  test('gives back the trace that was written, whatever it is', async () => {
    const pages = fc.uniqueArray(fc.nat(63), { maxLength: 64 })
    await fc.assert(
      fc.asyncProperty(pages, fc.boolean(), async (list, isLookedAt) => {
        const written = trace(list, isLookedAt && list.length > 0 ? 1 : undefined)
        const path = newPath('trace')
        await written.write(path)
        expect(await Trace.read(path)).toEqual(written)
      }),
      { numRuns: 40 },
    )
  })

  test('is what the specification says, to the byte', async () => {
    const path = newPath('trace')
    await trace([5, 2], 0.5).write(path)
    const bytes = readFileSync(path)
    expect(bytes.length).toBe(64 + 2 * 8)
    expect(bytes.toString('latin1', 0, 8)).toBe('REAPTRCE')
    expect([8, 12, 24, 28].map((at) => bytes.readUInt32LE(at))).toEqual([1, PAGE, 2, 2])
    expect(bytes.readBigUInt64LE(16)).toBe(BigInt(64 * PAGE))
    expect(bytes.readUInt32LE(32)).toBe(crc32cOf(bytes.subarray(64)))
    expect([64, 68, 72, 76].map((at) => bytes.readUInt32LE(at))).toEqual([5, 0, 2, 3])
    expect(statSync(path).mode & 0o777).toBe(0o600)
  })

  test('is refused with any bit flipped, and wherever it was cut', async () => {
    const path = newPath('trace')
    await trace([5, 2, 9]).write(path)
    const sound = readFileSync(path)
    for (let at = 0; at < sound.length; at++) {
      const flipped = Buffer.from(sound)
      flipped[at]! ^= 0x10
      for (const bytes of [flipped, sound.subarray(0, at)]) {
        writeFileSync(path, bytes)
        expect(await failureOf(Trace.read(path))).toMatchObject({ code: 'ERR_TRACE_INVALID', path })
      }
    }
  })

  test('is refused with a page outside the memory, or one that is there twice', async () => {
    for (const page of [64, 5]) {
      const path = newPath('trace')
      await trace([5, 2]).write(path)
      const bytes = readFileSync(path)
      bytes.writeUInt32LE(page, 72)
      bytes.writeUInt32LE(crc32cOf(bytes.subarray(64)), 32)
      bytes.writeUInt32LE(0, 36)
      bytes.writeUInt32LE(crc32cOf(bytes.subarray(0, 64)), 36)
      writeFileSync(path, bytes)
      expect(await failureOf(Trace.read(path))).toMatchObject({ check: 'touches' })
    }
  })

  test('is read as far as its header is sound, so that no file is too large to refuse', async () => {
    const path = newPath('trace')
    const huge = async () => {
      truncateSync(path, 2 ** 33)
      return failureOf(Trace.read(path))
    }
    writeFileSync(path, '')
    expect(await huge()).toMatchObject({ code: 'ERR_TRACE_INVALID', check: 'magic' })
    await trace([5, 2]).write(path)
    const bytes = readFileSync(path).subarray(0, 64)
    expect(await huge()).toMatchObject({ code: 'ERR_TRACE_INVALID', check: 'file-bytes' })
    bytes.writeUInt32LE(2 ** 30, 24)
    bytes.writeUInt32LE(0, 36)
    bytes.writeUInt32LE(crc32cOf(bytes), 36)
    writeFileSync(path, bytes)
    expect(await huge()).toMatchObject({ code: 'ERR_TRACE_INVALID', check: 'touches' })
  })

  test('is refused where it is no regular file, without waiting or reading', async () => {
    const pipe = newPath('trace')
    execFileSync('mkfifo', [pipe])
    for (const path of [pipe, folder, '/dev/zero']) {
      const error = { code: 'ERR_TRACE_INVALID', check: 'regular-file', path }
      expect(await failureOf(Trace.read(path, { trust: true }))).toMatchObject(error)
    }
  })

  test('that is missing or cannot be written is named in the error', async () => {
    const path = newPath('trace')
    expect(await failureOf(Trace.read(path))).toMatchObject({ code: 'ERR_TRACE_IO', path })
    const nowhere = `${folder}/none/trace`
    expect(await failureOf(trace([1]).write(nowhere))).toMatchObject({
      code: 'ERR_TRACE_IO',
      path: nowhere,
    })
  })
})

describe('a trace that was sent to another thread', () => {
  test('is merged like any other', async () => {
    const worker = new Worker(
      'const { parentPort, workerData } = require("node:worker_threads"); parentPort.postMessage(workerData)',
      { eval: true, workerData: trace([5, 2], 0.5) },
    )
    const back = await new Promise<Trace>((resolve, reject) => {
      worker.once('message', resolve)
      worker.once('error', reject)
    })
    expect(back).not.toBeInstanceOf(Trace)
    const set = WorkingSet.fromTraces([back, trace([2, 5])])
    expect(set.pageCount).toBe(2)
    expect(set.writtenShare).toBe(0.5)
  })
})
