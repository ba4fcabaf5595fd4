import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { beforeAll, describe, expect, it } from 'vitest'
import { readReportInput, readRestoreRecord, renderReport } from '../../src/index.js'
import { drawnShares, missingBrowser, useBrowser } from '../support/chromium.js'
import { checkBuild, run } from '../support/cli-process.js'
import { madeRecord } from '../support/restore-records.js'
import { scratchFolder } from '../support/scratch.js'
import { withField } from '../support/with-field.js'
import { failureOf } from '../support/working-sets.js'

beforeAll(checkBuild)

const record = madeRecord()

/** A file with this text, or with a record as `restore --trace` writes it. */
async function fileOf(content: string | object): Promise<string> {
  const path = join(await scratchFolder(), 'restore.json')
  const whole = { traceEvents: [], displayTimeUnit: 'ms', reapTrace: content }
  await writeFile(path, typeof content === 'string' ? content : JSON.stringify(whole))
  return path
}

describe('a record of a restore', () => {
  it('is read as it was written', async () => {
    const path = await fileOf(record)
    expect(await readRestoreRecord(path)).toEqual(record)
    expect(await readReportInput(path)).toEqual({ name: path, restore: record })
  })

  it('may have only what a restore without a handler knows', async () => {
    const { times, stats, statsAtReady, timeline, prefetch, state, verdict, ...rest } = record
    const bare = { ...rest, backend: 'page-cache', times: { started: times.started } }
    expect(await readRestoreRecord(await fileOf(bare))).toEqual(bare)
  })

  it('may have fields of a later version', async () => {
    const path = await fileOf(withField(record, 'times.resumed', 17))
    expect(await readRestoreRecord(path)).toMatchObject({ times: { resumed: 17 } })
  })

  it.each([
    ['version', 2],
    ['date', 'yesterday'],
    ['backend', 'nbd'],
    ['snapshot', []],
    ['snapshot.memoryBytes', -1],
    ['snapshot.pageSize', 8192],
    ['workingSet.path', 7],
    ['times.started', undefined],
    ['times.ready', '12'],
    ['prefetch.complete', 1],
    ['stats.residualFaults', 0.5],
    ['stats.waits.late', null],
    ['stats.waits.late.buckets', [[1.024]]],
    ['stats.slowest', {}],
    ['timeline.fetches', [{}]],
    ['timeline.faults', [{ from: 2, to: 1, class: 'late', offset: 0 }]],
    ['timeline.faults', [{ from: 1, to: 2, class: 'early', offset: 0 }]],
    ['timeline.missing', null],
    ['state', 'gone'],
    ['verdict.sentence', undefined],
  ])('is refused for %s, with the name of the field', async (field, value) => {
    const path = await fileOf(withField(record, field, value))
    const error = await failureOf(readRestoreRecord(path))
    expect(error).toMatchObject({ code: 'ERR_RECORD_INVALID', path, hint: expect.any(String) })
    expect(error.check).toMatch(new RegExp(`^reapTrace\\.${field}`))
    expect(error.message).toContain(error.check)
  })

  it.each([
    ['text that is not JSON', '{"reapTrace": ', 'json'],
    ['a trace of another program', '{"traceEvents": []}', 'reapTrace'],
    ['a list', '[]', 'reapTrace'],
    ['null', 'null', 'reapTrace'],
  ])('is not %s', async (_, text, check) => {
    const error = await failureOf(readRestoreRecord(await fileOf(text)))
    expect(error).toMatchObject({ code: 'ERR_RECORD_INVALID', check })
  })

  it('is not in a folder, a device or a file that is missing', async () => {
    const folder = await scratchFolder()
    expect(await failureOf(readRestoreRecord('/dev/zero'))).toMatchObject({ check: 'size' })
    expect(await failureOf(readRestoreRecord(folder))).toMatchObject({ check: 'size' })
    const missing = await failureOf(readRestoreRecord(join(folder, 'none')))
    expect(missing).toMatchObject({ code: 'ERR_RECORD_IO', syscall: 'open' })
  })

  it('is checked before it is drawn', () => {
    const restore = withField(record, 'timeline.faults', 'none') as typeof record
    expect(() => renderReport([{ name: 'a', restore }])).toThrow(TypeError)
  })
})

describe('reap-trace report', () => {
  it('names the file and the field of a bad record', async () => {
    const path = await fileOf(withField(record, 'times.started', 'now'))
    const { code, stderr } = await run(['report', path, '-o', `${path}.html`])
    expect(code).toBe(1)
    expect(stderr).toContain(path)
    expect(stderr).toContain('"reapTrace.times.started" should be a non-negative number')
  })
})

describe.skipIf(missingBrowser)('a report of restores in Chromium', () => {
  const open = useBrowser()
  const titlesIn = (page: Awaited<ReturnType<typeof open>>['page']) =>
    page.locator('h2').allTextContents()

  it('draws steps, faults, waits and places, and prints the verdict', async () => {
    const { page, complaints } = await open(renderReport([{ name: 'slow', restore: record }]))
    expect(await titlesIn(page)).toEqual([
      'Restore',
      'Waterfall',
      'Waits of faults',
      'Pages of the faults',
    ])
    // Nine lanes, a plot of each class of faults, and the map.
    const shares = await drawnShares(page)
    expect(shares).toHaveLength(12)
    for (const share of shares) expect(share).toBeGreaterThan(0.0005)
    const text = await page.locator('main').innerText()
    expect(text).toContain(record.verdict!.sentence)
    expect(text).toContain(record.verdict!.remedy)
    expect(text).toMatch(/of these, residual\s+35/)
    for (const name of ['connected', 'first fault', 'prefetched', 'ready']) {
      expect(await page.locator('.mark', { hasText: name }).count()).toBe(1)
    }
    expect(complaints).toEqual([])
  })

  it('goes from event to event with the keyboard', async () => {
    const { page } = await open(renderReport([{ name: 'slow', restore: record }]))
    await drawnShares(page)
    const waterfall = page.locator('section', { hasText: 'Waterfall' }).locator('figure')
    await waterfall.locator('.stage').focus()
    const said = async () => (await waterfall.locator('output').textContent())!
    await page.keyboard.press('ArrowRight')
    expect(await said()).toMatch(/^0 ms: open the files/)
    for (let i = 0; i < 12; i++) await page.keyboard.press('Shift+ArrowRight')
    expect(await said()).toMatch(/late at 0x[0-9a-f]+, .* waited/)
    await page.keyboard.press('End')
    expect(await said()).toContain('60 faults so far, 0 waiting')
  })

  it('compares two restores on one time axis, with ratios', async () => {
    const inputs = [
      { name: 'with a set', restore: record },
      { name: 'on demand', restore: madeRecord(2, false) },
    ]
    const { page, complaints } = await open(renderReport(inputs))
    await drawnShares(page)
    const ticks = page.locator('.ticks')
    expect(await ticks.count()).toBe(2)
    expect(await ticks.first().innerText()).toBe(await ticks.last().innerText())
    const figures = await page.locator('section').first().innerText()
    expect(figures).toMatch(/faults\t60\t900 \(×\s15\)/)
    expect(complaints).toEqual([])
  })

  it('says that single faults are not known without a timeline', async () => {
    const { timeline, ...restore } = record
    const { page, complaints } = await open(renderReport([{ name: 'a', restore }]))
    expect(await titlesIn(page)).not.toContain('Pages of the faults')
    expect(await page.locator('main').innerText()).toContain('Without a timeline')
    expect(complaints).toEqual([])
  })

  it('draws the steps of a restore from the page cache, and says who serves its faults', async () => {
    const { version, date, snapshot, workingSet } = record
    const restore = {
      ...{ version, date, snapshot, workingSet, backend: 'page-cache' as const },
      times: {
        ...{ started: 500, firstFetch: 501, prefetched: 512, commandStarted: 502, ready: 530 },
        ...{ commandEnded: 540, closed: 541 },
      },
      prefetch: {
        ...{ pageCount: 1036, residentPageCount: 36, bytes: 4_096_000, extentCount: 80 },
        ...{ startedAtMs: 501, submittedMs: 4, completedMs: 11, complete: true },
      },
    }
    const { page, complaints } = await open(renderReport([{ name: 'a', restore }]))
    expect(await titlesIn(page)).toEqual(['Restore', 'Waterfall'])
    // The lanes of the files, the command and the fetch.
    expect(await drawnShares(page)).toHaveLength(3)
    const text = await page.locator('main').innerText()
    expect(text).toContain('The kernel serves the faults')
    expect(text).toMatch(/in the page cache before\s+36/)
    const marks = await page.locator('.mark').allInnerTexts()
    expect(marks).toEqual(['prefetched 12 ms', 'ready 30 ms'])
    expect(complaints).toEqual([])
  })

  it('draws a restore that knows hardly anything', async () => {
    const { version, date, backend, snapshot } = record
    const restore = { version, date, backend, snapshot, times: { started: 5 } }
    const { page, complaints } = await open(renderReport([{ name: 'a', restore }]))
    expect(await titlesIn(page)).toEqual(['Restore', 'Waterfall'])
    expect(complaints).toEqual([])
  })
})
