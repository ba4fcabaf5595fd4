import { existsSync } from 'node:fs'
import { chmod, lstat, readFile, stat, symlink, writeFile } from 'node:fs/promises'
import { basename, join } from 'node:path'
import { beforeAll, describe, expect, it } from 'vitest'
import { drawGrowth, growthOf } from '../../src/cli/terminal/growth.js'
import { Trace, WorkingSet, writeRestoreRecord } from '../../src/index.js'
import { checkBuild, errorIn, events, run } from '../support/cli-process.js'
import { madeRecord } from '../support/restore-records.js'
import {
  diskTrace,
  folder,
  makeDisk,
  makeMemory,
  newPath,
  PAGE,
  setOf,
  write,
} from '../support/working-sets.js'

beforeAll(checkBuild)

const trace = (pages: readonly number[], timesUs: readonly number[], pageSize = PAGE) =>
  new Trace({
    pageSize,
    memoryBytes: 2 ** 22,
    pages: Uint32Array.from(pages),
    timesUs: Uint32Array.from(timesUs),
  })

/** A map's line of a text output, without its address. */
const mapLine = (stdout: string, address: string) =>
  stdout.split('\n').find((line) => line.startsWith(`  ${address} `))

describe('inspect', () => {
  it('reads trace files, which have no bytes to prove or to cache', async () => {
    const path = newPath('vm.trace')
    await trace([5, 6, 9], [10, 20, 30]).write(path)
    const { code, stdout, stderr } = await run(['inspect', path])
    expect(code, stderr).toBe(0)
    expect(stdout).toMatch(/^pages +3 \(12 KiB, /m)
    expect(stdout).toMatch(/^growth /m)
    expect(stdout).not.toMatch(/^(proof|cached|id) /m)
  })
})

describe('a command for working sets', () => {
  it.each([
    ['inspect', []],
    ['diff', ['{}']],
    ['verify', ['--memory', '{}']],
    ['merge', ['--memory', '{}', '-o', '{}.ws']],
  ])('names the one for the record of a restore: %s', async (name, words) => {
    const path = newPath('restore.json')
    await writeRestoreRecord(path, madeRecord())
    const more = words.map((word) => word.replace('{}', path))
    const { code, stderr } = await run([name, path, ...more])
    expect(code).toBe(1)
    expect(stderr).toMatch(/\[ERR_WORKING_SET_INVALID\]\nhint: .*"reap-trace report"/)
  })
})

describe('the growth of a working set', () => {
  it('is the number of pages by time', () => {
    const growth = growthOf(trace([5, 6, 7, 8], [4000, 1000, 2000, 2001]), 4)
    expect(growth).toEqual({ stepMs: 1, pageCounts: [1, 2, 3, 4] })
    expect(drawGrowth(growth!, 4)).toEqual(['   █', '  ▄█', '  ██', ' ███', '▄███', '████'])
  })

  it('counts 4 KiB pages of guests with larger ones', () => {
    expect(growthOf(trace([0, 1], [1, 2], 2 ** 21), 2)?.pageCounts).toEqual([512, 1024])
  })

  it('ends early where a few pages follow much later', () => {
    const times = [...Array.from({ length: 99 }, (_, i) => 10 * i), 1_000_000]
    const { stepMs, pageCounts } = growthOf(
      trace(
        times.map((_, i) => i),
        times,
      ),
      10,
    )!
    expect(10 * stepMs).toBeLessThan(2)
    expect(pageCounts.at(-1)).toBe(99)
  })

  it('is not known without times', () => {
    expect(growthOf(trace([1, 2], [0, 0]), 4)).toBeUndefined()
    expect(growthOf(trace([], []), 4)).toBeUndefined()
  })
})

describe('inspect', () => {
  it('shows the growth and what reading the set takes, to people and to programs', async () => {
    const memoryFile = makeMemory(64)
    const path = await write(memoryFile, [5, 6, 7, 20])
    const { code, stdout } = await run(['inspect', path, '--memory', memoryFile])
    expect(code).toBe(0)
    expect(stdout).toMatch(/^cached +this file +all of 16 KiB$/m)
    expect(stdout).toMatch(/^ +memory file all of 16 KiB$/m)
    expect(stdout).toMatch(
      /^growth +pages touched by then\n +4 │.*█\n( +│.*█\n){5} +0 ms +0\.0 ms$/m,
    )
    const [facts] = events((await run(['inspect', path, '--json'])).stdout)
    expect(facts.growth.stepMs).toBeGreaterThan(0)
    expect(facts.growth.pageCounts.at(-1)).toBe(4)
    const cost = { bytes: 4 * PAGE, cachedBytes: 4 * PAGE, readCount: 0, readBytes: 0 }
    expect(facts.readCost).toEqual({ workingSet: { ...cost, estimatedMs: 0 }, memoryFile: null })
  })

  it('says that a set without times has no growth', async () => {
    const [memoryFile, path] = [makeMemory(1024), newPath('no-times.ws')]
    const set = WorkingSet.fromTraces([trace([1, 2, 3], [0, 0, 0])])
    await set.write(path, { snapshot: { memoryFile } })
    expect((await run(['inspect', path])).stdout).toMatch(/^growth +unknown: .* no times$/m)
    expect(events((await run(['inspect', path, '--json'])).stdout)[0].growth).toBeNull()
  })

  it('refuses the memory file of another snapshot', async () => {
    const path = await write(makeMemory(64), [5])
    const { code, stderr } = await run(['inspect', path, '--memory', makeMemory(32)])
    expect(code).toBe(1)
    expect(stderr).toMatch(/\[ERR_SNAPSHOT_MISMATCH\]/)
  })
})

describe('diff', () => {
  it('shows what two sets share, and where they differ', async () => {
    const memoryFile = makeMemory(64, (page) => page === 20)
    const a = await write(memoryFile, [5, 6, 7, 20])
    const b = await write(memoryFile, [6, 5, 21, 22, 23])
    const { code, stdout, stderr } = await run(['diff', a, b, '--first', '1ms'])
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' })
    expect(stdout).toContain(`A  ${a}: 4 pages (16 KiB), 1 run\nB  ${b}: 5 pages`)
    expect(stdout).toMatch(/^ +only in A +in both +only in B +Jaccard$/m)
    expect(stdout).toMatch(/^all pages +2 \(8 KiB\) +2 \(8 KiB\) +3 \(12 KiB\) +28\.6 %$/m)
    expect(stdout).toMatch(/^first half +0 \(0 B\) +2 \(8 KiB\) +1 \(4 KiB\) +66\.7 %$/m)
    expect(stdout).toMatch(/^first 1\.0 ms +2 /m)
    expect(stdout).toMatch(/^zero pages +1 \(4 KiB\) +0 \(0 B\) +0 \(0 B\) +0\.0 %$/m)
    expect(stdout).toMatch(/^order +rank correlation -1\.00 of the pages in both/m)
    expect(mapLine(stdout, '0x00000')).toMatch(/^ {2}0x00000 │ {5}==< {12}<>>> +│$/)
    const ascii = await run(['diff', a, b], { env: { LC_ALL: 'C' } })
    expect(ascii.stdout).toMatch(/^[\0-\x7f]*$/)
  })

  it('marks cells with pages of both kinds', async () => {
    const memoryFile = makeMemory(2048)
    const [a, b] = [await write(memoryFile, [0, 9]), await write(memoryFile, [1, 9])]
    const { stdout } = await run(['diff', a, b])
    expect(mapLine(stdout, '0x000000')).toMatch(/│× {3}= /)
  })

  it('gives the same to programs, and reads trace files', async () => {
    const memoryFile = makeMemory(64)
    const [a, b] = [await write(memoryFile, [5, 6]), newPath('b.trace')]
    await setOf(memoryFile, [6, 7, 8]).order.write(b)
    const { code, stdout } = await run(['diff', a, b, '--json'])
    expect(code).toBe(0)
    const [found, ...more] = events(stdout)
    expect(more).toEqual([])
    expect(found).toEqual({
      a: { path: a, pageCount: 2, bytes: 2 * PAGE, runCount: 1 },
      b: { path: b, pageCount: 3, bytes: 3 * PAGE, runCount: 1 },
      pageSize: PAGE,
      memoryBytes: 64 * PAGE,
      all: {
        onlyInACount: 1,
        onlyInBCount: 2,
        inBothCount: 1,
        jaccard: 1 / 4,
        onlyInABytes: PAGE,
        onlyInBBytes: 2 * PAGE,
        inBothBytes: PAGE,
      },
      firstHalf: expect.objectContaining({ onlyInACount: 1, onlyInBCount: 2, inBothCount: 0 }),
      first: null,
      zeroPages: null,
      rankCorrelation: null,
      map: {
        cellBytes: PAGE,
        onlyInA: expect.any(Array),
        onlyInB: expect.any(Array),
        inBoth: expect.any(Array),
      },
    })
    expect(found.map.inBoth.indexOf(1)).toBe(6)
  })

  it('refuses sets of different guests, and what is neither set nor trace', async () => {
    const [a, b] = [await write(makeMemory(64), [5]), await write(makeMemory(32), [5])]
    const refused = await run(['diff', a, b, '--json'])
    expect(refused.code).toBe(1)
    expect(errorIn(refused.stdout)).toMatchObject({ code: 'ERR_SNAPSHOT_MISMATCH', check: 'size' })
    const other = newPath('text')
    await writeFile(other, 'x'.repeat(9000))
    expect((await run(['diff', a, other])).stderr).toMatch(/text is not a valid working-set file/)
    const damaged = newPath('damaged.trace')
    await setOf(makeMemory(64), [6]).order.write(damaged)
    await writeFile(damaged, (await readFile(damaged)).subarray(0, 70))
    expect((await run(['diff', a, damaged])).stderr).toMatch(/\[ERR_TRACE_INVALID\]/)
  })
})

describe('merge', () => {
  const merge = (...words: string[]) => run(['merge', ...words])

  it('writes the pages of enough files, with the bytes of the memory file', async () => {
    const memoryFile = makeMemory(64)
    const [a, b, output] = [await write(memoryFile, [5, 6]), newPath('b.trace'), newPath('out.ws')]
    await setOf(memoryFile, [6, 7, 8]).order.write(b)
    const words = [a, b, '--memory', memoryFile, '-o', output]
    const { code, stdout, stderr } = await merge(...words, '--label', 'both')
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' })
    expect(stdout).toMatch(
      /^merged 2 files: 1 page in 1 extent \(4 KiB, 1\.6 % of the memory\) in /,
    )
    expect((await stat(output)).mode & 0o777).toBe(0o600)
    expect((await WorkingSet.read(output)).manifest).toMatchObject({ label: 'both' })

    const any = await merge(...words, '--min-sets', '1', '--json')
    expect(events(any.stdout)).toEqual([
      {
        path: output,
        files: [
          { path: a, pageCount: 2 },
          { path: b, pageCount: 3 },
        ],
        minSets: 1,
        runCount: 2,
        pageCount: 4,
        extentCount: 1,
        bytes: 4 * PAGE,
      },
    ])
    const back = await WorkingSet.read(output)
    expect(await back.verify({ memoryFile })).toMatchObject({ identical: true, pageCount: 4 })
  })

  it('replaces one of its files, and the file that a link leads to', async () => {
    const memoryFile = makeMemory(64)
    const [a, b] = [await write(memoryFile, [5, 6]), await write(memoryFile, [6])]
    const link = newPath('link.ws')
    await symlink(basename(a), link)
    const { code } = await merge(a, b, '--memory', memoryFile, '--output', link)
    expect(code).toBe(0)
    expect((await lstat(link)).isSymbolicLink()).toBe(true)
    expect((await WorkingSet.read(a)).pageCount).toBe(1)
  })

  it('needs the disk images of its files', async () => {
    const [memoryFile, image] = [makeMemory(64), makeDisk(8 * PAGE)]
    const [a, output] = [newPath('a.ws'), newPath('out.ws')]
    const set = setOf(memoryFile, [1], PAGE, [diskTrace(8 * PAGE, [[3, 5]])])
    await set.write(a, { snapshot: { memoryFile, diskImages: [image] } })
    const words = [a, '--memory', memoryFile, '-o', output]
    const refused = await merge(...words)
    expect(refused.code).toBe(1)
    expect(refused.stderr).toMatch(/have 1 disk image, and 0 are given .*\nhint: .*--disk/)
    expect((await merge(...words, '--disk', image)).code).toBe(0)
    expect((await WorkingSet.read(output)).disks).toMatchObject([{ pageCount: 1 }])
  })

  it.each([
    ['no page in common', [5], [6], [], 'ERR_NOTHING_RECORDED'],
    ['the memory file as output', [5], [5], ['memory'], 'ERR_WORKING_SET_IO'],
  ])('refuses %s, and leaves what is there', async (_, first, second, to, code) => {
    const memoryFile = makeMemory(64)
    const before = await readFile(memoryFile)
    const [a, b] = [await write(memoryFile, first), await write(memoryFile, second)]
    const output = to.length > 0 ? memoryFile : join(folder, 'nothing.ws')
    const { code: status, stdout } = await merge(
      ...[a, b, '--memory', memoryFile, '-o', output, '--json'],
    )
    expect(status).toBe(1)
    expect(errorIn(stdout)).toMatchObject({ code })
    expect(existsSync(join(folder, 'nothing.ws'))).toBe(false)
    expect(await readFile(memoryFile)).toEqual(before)
  })

  it('refuses a file that other users may write to, unless it is told to trust it', async () => {
    const memoryFile = makeMemory(64)
    const a = await write(memoryFile, [5])
    await chmod(a, 0o666)
    const words = [a, '--memory', memoryFile, '-o', newPath('out.ws')]
    expect((await merge(...words)).stderr).toMatch(/\[ERR_UNTRUSTED_FILE\]/)
    expect((await merge(...words, '--trust-working-set')).code).toBe(0)
  })
})
