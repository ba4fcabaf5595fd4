import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { beforeAll, describe, expect, it } from 'vitest'
import { type Comparison, readComparison, readReportInput, renderReport } from '../../src/index.js'
import { drawnShares, missingBrowser, useBrowser } from '../support/chromium.js'
import { checkBuild, run } from '../support/cli-process.js'
import { madeComparison } from '../support/comparisons.js'
import { scratchFolder } from '../support/scratch.js'
import { withField } from '../support/with-field.js'
import { failureOf } from '../support/working-sets.js'

beforeAll(checkBuild)

/** As in a file: without undefined fields. */
const comparison: Comparison = JSON.parse(JSON.stringify(madeComparison()))

async function fileOf(content: string | object): Promise<string> {
  const path = join(await scratchFolder(), 'comparison.json')
  await writeFile(path, typeof content === 'string' ? content : JSON.stringify(content))
  return path
}

describe('a comparison', () => {
  it('is read from the output of compare --json, beside its warnings', async () => {
    const warning = { type: 'warning', error: { code: 'ERR_COMMAND_FAILED' }, formatVersion: 1 }
    const lines = [warning, { ...comparison, formatVersion: 1 }, { type: 'error' }]
    const path = await fileOf(`${lines.map((line) => JSON.stringify(line)).join('\n')}\n`)
    expect(await readComparison(path)).toEqual({ ...comparison, formatVersion: 1 })
    expect(await readReportInput(path)).toMatchObject({ name: path, comparison })
  })

  it('is read from JSON over many lines, and as the last of several', async () => {
    expect(await readComparison(await fileOf(JSON.stringify(comparison, null, 2)))).toEqual(
      comparison,
    )
    const lines = [1, 2, 3].map((seed) => JSON.stringify(withField(comparison, 'seed', seed)))
    expect(await readComparison(await fileOf(lines.join('\n')))).toMatchObject({ seed: 3 })
  })

  it.each([
    ['formatVersion', 2],
    ['date', 'today'],
    ['rounds', -1],
    ['base', 7],
    ['cold', {}],
    ['warm.1.ms', null],
    ['warm.1.ratio.p75', 'much'],
    ['warm.1.residualFaults', undefined],
    ['conclusions.warm', 'none'],
    ['runs.0.cache', 'tepid'],
    ['runs.0.isOutlier', 1],
    ['runs.0.sample.ms', '12'],
    ['runs.1.sample.stats.stalledMs', null],
    ['cpus', 1.5],
  ])('is refused for %s, with the name of the field', async (field, value) => {
    const path = await fileOf(withField(comparison, field, value))
    const error = await failureOf(readReportInput(path))
    const check = field.replace(/\.(\d+)/g, '[$1]')
    expect(error).toMatchObject({ code: 'ERR_RECORD_INVALID', path, check })
    expect(error.message).toContain(`is not a comparison: "${check}" should be`)
    expect(error.hint).toContain('compare')
  })

  it.each([
    ['a line that was cut off', '{"type":"warning"}\n{"type":"compar', 'json'],
    ['an object of another kind', '{"type":"recorded"}', 'kind'],
    ['the trace of another program', '{"traceEvents":[]}', 'kind'],
  ])('is not %s', async (_, text, check) => {
    const error = await failureOf(readReportInput(await fileOf(text)))
    expect(error).toMatchObject({ code: 'ERR_RECORD_INVALID', check, hint: expect.any(String) })
  })

  it('is found by its type', async () => {
    const error = await failureOf(readComparison(await fileOf('{"reapTrace":{}}')))
    expect(error).toMatchObject({ code: 'ERR_RECORD_INVALID', check: 'type' })
    const missing = await failureOf(readComparison(join(await scratchFolder(), 'none')))
    expect(missing).toMatchObject({ code: 'ERR_RECORD_IO', syscall: 'open' })
  })

  it('is checked before it is drawn', () => {
    const wrong = withField(comparison, 'runs', 'none') as Comparison
    expect(() => renderReport([{ name: 'a', comparison: wrong }])).toThrow(TypeError)
  })

  it('is refused by reap-trace report, with the name of the wrong field', async () => {
    const path = await fileOf(withField(comparison, 'warm.0.ms.median', 'fast'))
    const { code, stderr } = await run(['report', path, '-o', `${path}.html`])
    expect(code).toBe(1)
    expect(stderr).toContain(`${path} is not a comparison: "warm[0].ms.median" should be`)
  })
})

describe.skipIf(missingBrowser)('a report of comparisons in Chromium', () => {
  const open = useBrowser()

  it('draws the arms of each state of the page cache, without an error', async () => {
    const { page, complaints } = await open(renderReport([{ name: 'mine', comparison }]))
    const titles = await page.locator('h2').allTextContents()
    expect(titles).toEqual(['Comparison', 'Cold page cache', 'Warm page cache'])
    const captions = await page.locator('section').nth(1).locator('figcaption').allTextContents()
    expect(captions).toEqual([
      'Time',
      expect.stringMatching(/^Time, divided by that of kernel-file in the same round/),
      'Stalled time',
      'Residual faults',
    ])
    // Of each state: a legend, and the strips of four arms, of three and twice of two.
    const shares = await drawnShares(page)
    expect(shares).toHaveLength(2 * (4 + 4 + 3 + 2 + 2))
    for (const share of shares) expect(share).toBeGreaterThan(0.0005)
    expect(complaints).toEqual([])
  })

  it('prints figures, conclusions, warnings, machine and date', async () => {
    const { page } = await open(renderReport([{ name: 'mine', comparison }]))
    const [facts, cold] = await page.locator('section').allInnerTexts()
    expect(facts).toContain(`Linux ${comparison.kernel}`)
    expect(facts).toContain(comparison.date.slice(0, 10))
    expect(facts).toMatch(/Warning: 2 outliers among the times/)
    expect(cold).toContain('With a cold page cache, working-set is fastest')
    const [kernelFile, , withSet] = comparison.cold
    expect(cold).toMatch(new RegExp(`kernel-file\\t${Math.round(kernelFile!.ms.median)} ms\\t`))
    expect(cold).toMatch(new RegExp(`\\t${withSet!.residualFaults}\\t3\\.60 ms\\t9 of 10\\t0`))
  })

  it('goes between arms and runs with the keyboard, and says what each run is', async () => {
    const { page } = await open(renderReport([{ name: 'mine', comparison }]))
    await drawnShares(page)
    const figure = page.locator('section').nth(1).locator('figure').first()
    await figure.locator('.stage').focus()
    const said = async (key: string) => {
      await page.keyboard.press(key)
      return figure.locator('output').textContent()
    }
    expect(await said('ArrowRight')).toMatch(/^kernel-file, round \d+: 5\d\d ms$/)
    expect(await said('End')).toBe('kernel-file, round 10: 9.00 s, an outlier')
    expect(await said('ArrowRight')).toMatch(/^kernel-file, round 10/)
    expect(await said('ArrowDown')).toMatch(
      /^on-demand, round 10: .* of kernel-file, itself an outlier, 15 residual faults, stalled for/,
    )
    for (let i = 0; i < 9; i++) await said('ArrowLeft')
    await said('ArrowDown')
    expect(await said('ArrowDown')).toMatch(/^auto, round \d+: .*, by page-cache$/)
    expect(await said('Home')).toMatch(/^auto/)
  })

  it('shows the run under the pointer', async () => {
    const { page } = await open(renderReport([{ name: 'mine', comparison }]))
    await drawnShares(page)
    const figure = page.locator('section').nth(1).locator('figure').first()
    await figure.locator('canvas').nth(1).hover()
    await expect.poll(() => figure.locator('output').textContent()).toMatch(/^on-demand, round/)
    await page.locator('h1').hover()
    await expect.poll(() => figure.locator('output').textContent()).toMatch(/^Arrow keys/)
  })

  it('has all numbers in tables, with marks for outliers and runs that do not count', async () => {
    const { page } = await open(renderReport([{ name: 'mine', comparison }]))
    const figure = page.locator('section').nth(1).locator('figure').first()
    await figure.locator('summary').click()
    const text = await figure.locator('table').innerText()
    expect(text).toMatch(/^\tkernel-file\ton-demand\tworking-set\tauto\n/)
    expect(text).toMatch(/round 10\t9\.00 s ▲\t/)
    expect(text).toMatch(/round 3\t.*\t[\d.]+ ms ×\t/)
    expect(text).toMatch(/round 4\t[\d.]+ ms\t–\t/)
  })

  it('puts two comparisons on one scale', async () => {
    const inputs = [
      { name: 'monday', comparison },
      { name: 'friday', comparison: madeComparison(2, ['warm']) },
    ]
    const { page, complaints } = await open(renderReport(inputs))
    await drawnShares(page)
    const warm = page.locator('section').nth(2)
    expect(await warm.locator('h3').allTextContents()).toEqual(['A monday', 'B friday'])
    const ticks = await warm
      .locator('figure', { hasText: /^Time/ })
      .locator('.ticks')
      .allInnerTexts()
    expect(ticks[0]).toBe(ticks[2])
    expect(ticks[1]).toBe(ticks[3])
    expect(complaints).toEqual([])
  })

  it('draws one round of one arm', async () => {
    const runs = comparison.runs.filter(({ arm, cache, round }) => {
      return arm === 'kernel-file' && cache === 'warm' && round === 1
    })
    const only = { ...comparison, cold: [], warm: comparison.warm.slice(0, 1), runs }
    const { page, complaints } = await open(renderReport([{ name: 'a', comparison: only }]))
    expect(await page.locator('figcaption').allTextContents()).toEqual(['Time'])
    expect(await drawnShares(page)).toHaveLength(5)
    expect(complaints).toEqual([])
  })

  it('follows the color scheme and fits a narrow window', async () => {
    const viewport = { width: 360, height: 800 }
    const { page } = await open(renderReport([{ name: 'a', comparison }]), { viewport })
    await drawnShares(page)
    expect(await page.evaluate('document.documentElement.scrollWidth')).toBeLessThanOrEqual(360)
    const strip = page.locator('.lane canvas').first()
    const light = await strip.screenshot()
    await page.emulateMedia({ colorScheme: 'dark' })
    expect((await strip.screenshot()).equals(light)).toBe(false)
  })
})
