import { readFileSync } from 'node:fs'
import { link, readFile, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { beforeAll, describe, expect, it } from 'vitest'
import { renderReport, Trace, WorkingSet } from '../../src/index.js'
import { drawnShares, missingBrowser, useBrowser } from '../support/chromium.js'
import { checkBuild, run } from '../support/cli-process.js'
import { scratchFolder } from '../support/scratch.js'
import { makeMemory, write } from '../support/working-sets.js'

beforeAll(checkBuild)

const MEMORY = 64 * 2 ** 20

/** A set with runs of 1 to 8 pages all over the memory, one touch each 10 µs. */
function madeSet(seed: number, stepUs = 10): WorkingSet {
  const pages: number[] = []
  for (let run = 0; run < 400; run++) {
    const first = (run * 7919 + seed * 13) % (MEMORY / 4096 - 8)
    for (let i = 0; i <= run % 8; i++) pages.push(first + i)
  }
  const unique = [...new Set(pages)]
  const timesUs = Uint32Array.from(unique, (_, i) => i * stepUs)
  const fields = { pageSize: 4096, memoryBytes: MEMORY, timesUs }
  return WorkingSet.fromTraces([new Trace({ ...fields, pages: Uint32Array.from(unique) })])
}

const set = madeSet(0)
const page = (...sets: readonly WorkingSet[]) =>
  renderReport(sets.map((workingSet, i) => ({ name: `set-${i}.ws`, workingSet })))

describe('the page of a report', () => {
  it('has less than 400 KB beside its data, and the license of the chart library', () => {
    const html = readFileSync('dist/report.html', 'utf8')
    expect(html.length).toBeLessThan(400_000)
    const licenses = html.slice(0, html.indexOf('<style>'))
    expect(licenses).toMatch(/uplot 1[.\d]+\s+The MIT License.*\s+Copyright \(c\) \d+ Leon Sorokin/)
    expect(page(set).length - html.length).toBeLessThan(4 * 1024 * set.pageCount)
  })

  it('does not let a name end its script', () => {
    const name = '</script><script>alert(1)</script>'
    const html = renderReport([{ name, workingSet: set }])
    expect(html).not.toContain('alert(1)')
  })

  it.each([
    ['no inputs', []],
    ['27 inputs', Array.from({ length: 27 }, () => ({ name: 'a', workingSet: set }))],
    ['the path of a file', 'vm.ws'],
    ['a set without a name', [{ workingSet: set }]],
    ['the path of a set in place of the set', [{ name: 'a', workingSet: 'vm.ws' }]],
  ])('is not made of %s', (_, inputs) => {
    expect(() => renderReport(inputs as never)).toThrow(TypeError)
  })
})

describe('reap-trace report', () => {
  it('writes a page of one or several working-set files', async () => {
    const memoryFile = makeMemory(64)
    const [first, second] = [await write(memoryFile, [1, 2, 3]), await write(memoryFile, [2, 9])]
    const output = join(await scratchFolder(), 'report.html')
    expect(await run(['report', first, '-o', output])).toMatchObject({ code: 0, stderr: '' })
    const { size } = await stat(output)
    const { code, stdout } = await run(['report', first, second, '-o', output, '--json'])
    expect(code).toBe(0)
    const { size: bytes } = await stat(output)
    expect(JSON.parse(stdout)).toMatchObject({ type: 'report', path: output, bytes })
    expect(bytes).toBeGreaterThan(size)
  })

  it('says why a file cannot be read or written', async () => {
    const memoryFile = makeMemory(64)
    const workingSet = await write(memoryFile, [1])
    const output = join(await scratchFolder(), 'none/report.html')
    const unwritten = await run(['report', workingSet, '-o', output])
    expect(unwritten.code).toBe(1)
    expect(unwritten.stderr).toMatch(
      /cannot write the report .* \[ERR_REPORT_IO\]\nhint: The folder/,
    )
    const unread = await run(['report', memoryFile, '-o', output])
    expect(unread.code).toBe(1)
    expect(unread.stderr).toContain(memoryFile)
    expect((await run(['report', workingSet])).code).toBe(2)
  })

  it('does not write over a file that it reads', async () => {
    const workingSet = await write(makeMemory(64), [1])
    const other = join(await scratchFolder(), 'link.html')
    await link(workingSet, other)
    const bytes = await readFile(workingSet)
    for (const output of [workingSet, other]) {
      const { code, stderr } = await run(['report', workingSet, '-o', output])
      expect(code).toBe(1)
      expect(stderr).toMatch(/cannot be written: it is one of the files to read \[ERR_REPORT_IO\]/)
      expect((await readFile(workingSet)).equals(bytes)).toBe(true)
    }
  })
})

describe.skipIf(missingBrowser)('a report in Chromium', () => {
  const open = useBrowser()

  it('draws every picture, without a request or an error', async () => {
    const { page: shown, complaints } = await open(page(set))
    const shares = await drawnShares(shown)
    expect(shares).toHaveLength(3)
    for (const share of shares) expect(share).toBeGreaterThan(0.005)
    const titles = await shown.locator('h2').allTextContents()
    expect(titles).toEqual(['Working set', 'Page map', 'Growth', 'Run lengths'])
    expect(complaints).toEqual([])
  })

  it('prints the figures of the set', async () => {
    const { page: shown } = await open(page(set))
    const text = await shown.locator('section').first().innerText()
    expect(text).toMatch(/memory\s+64 MiB/)
    expect(text).toContain(`pages of 4 KiB\t${set.pageCount.toLocaleString('en-US')}`)
  })

  it('compares two sets side by side, and counts what they have in common', async () => {
    const other = madeSet(1)
    const { page: shown, complaints } = await open(page(set, other))
    const pages = [set, other].map(({ order }) => new Set(order.pages))
    const both = [...pages[0]!].filter((number) => pages[1]!.has(number)).length
    const difference = shown.locator('section', { hasText: 'only in A' }).first()
    await expect
      .poll(() => difference.innerText())
      .toContain(`in both\t${both.toLocaleString('en-US')}`)
    expect(await drawnShares(shown)).toHaveLength(6)
    expect(complaints).toEqual([])
  })

  it('can be read with the keyboard', async () => {
    const { page: shown } = await open(page(set))
    await drawnShares(shown)
    const figures = shown.locator('figure')
    for (const [i, said] of [
      [0, /0x[0-9a-f]+, .*touched as number/],
      [1, /by .*pages? \(/],
      [2, /runs of .* pages: .* extents/],
    ] as const) {
      const figure = figures.nth(i)
      await figure.locator('.stage').focus()
      await shown.keyboard.press(i === 0 ? 'Shift+ArrowRight' : 'ArrowRight')
      await shown.keyboard.press(i === 0 ? 'Shift+ArrowRight' : 'ArrowRight')
      await expect.poll(() => figure.locator('output').textContent()).toMatch(said)
    }
    const before = await figures.first().locator('output').textContent()
    await figures.first().locator('.stage').focus()
    await shown.keyboard.press('Shift+ArrowRight')
    expect(await figures.first().locator('output').textContent()).not.toBe(before)
  })

  it('follows the color scheme, also while it is open', async () => {
    const { page: shown, complaints } = await open(page(set), { colorScheme: 'light' })
    await drawnShares(shown)
    const light = await shown.screenshot()
    await shown.emulateMedia({ colorScheme: 'dark' })
    const background = 'getComputedStyle(document.body).backgroundColor'
    expect(await shown.evaluate(background)).toBe('rgb(18, 18, 17)')
    expect((await shown.screenshot()).equals(light)).toBe(false)
    expect(complaints).toEqual([])
  })

  it('fits a narrow window', async () => {
    const { page: shown } = await open(page(set, madeSet(1)), {
      viewport: { width: 360, height: 800 },
    })
    await drawnShares(shown)
    expect(await shown.evaluate('document.documentElement.scrollWidth')).toBeLessThanOrEqual(360)
  })

  it('says that a set has no times, instead of an empty plot', async () => {
    const { page: shown } = await open(page(madeSet(0, 0)))
    expect(await drawnShares(shown)).toHaveLength(2)
    const growth = shown.locator('section', { has: shown.locator('h2', { hasText: 'Growth' }) })
    expect(await growth.innerText()).toContain('has no times')
  })
})
