import { existsSync } from 'node:fs'
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import { type Browser, type BrowserContextOptions, chromium, type Page } from 'playwright-core'
import { afterAll, beforeAll, onTestFinished } from 'vitest'
import { scratchFolder } from './scratch.js'

const executablePath = [
  process.env.CHROMIUM,
  '/usr/bin/chromium',
  '/usr/bin/chromium-browser',
  '/usr/bin/google-chrome',
].find((path) => path !== undefined && existsSync(path))

/** What is missing for a test with a browser; `undefined` for nothing. */
export const missingBrowser = executablePath
  ? undefined
  : 'Chromium (apt-get install chromium, or CHROMIUM=/path)'
if (missingBrowser) console.log(`skipped: needs ${missingBrowser}`)

/** A page in the browser, and what it did that a report must not do. */
export interface OpenPage {
  readonly page: Page
  /** Messages on the console, exceptions, and requests other than for the page itself. */
  readonly complaints: readonly string[]
}

/** Starts one browser for a test file, with empty pages that are closed when their test ends. */
export function useChromium(): (options?: BrowserContextOptions) => Promise<Page> {
  let browser: Browser
  beforeAll(async () => {
    // Root has no sandbox, nor does a container.
    browser = await chromium.launch({ executablePath: executablePath!, args: ['--no-sandbox'] })
  })
  afterAll(() => browser.close())
  return async (options = {}) => {
    const context = await browser.newContext(options)
    onTestFinished(() => context.close())
    return context.newPage()
  }
}

/** The same, for pages of a report. */
export function useBrowser(): (html: string, options?: BrowserContextOptions) => Promise<OpenPage> {
  const open = useChromium()
  return async (html, options) => {
    const file = join(await scratchFolder(), 'report.html')
    await writeFile(file, html)
    const url = pathToFileURL(file).href
    const page = await open(options)
    const complaints: string[] = []
    page.on('console', (message) => complaints.push(message.text()))
    page.on('pageerror', (error) => complaints.push(error.message))
    page.on('request', (request) => {
      if (request.url() !== url) complaints.push(`request of ${request.url()}`)
    })
    await page.goto(url)
    await page.locator('main section').first().waitFor()
    return { page, complaints }
  }
}

/**
 * Share of each canvas whose pixels differ from its most frequent color. Waits until the canvases
 * are drawn.
 */
export async function drawnShares(page: Page): Promise<number[]> {
  const script = `[...document.querySelectorAll('canvas')].map((canvas) => {
    const { width, height } = canvas
    const { data } = canvas.getContext('2d').getImageData(0, 0, width, height)
    const counts = new Map()
    for (const pixel of new Uint32Array(data.buffer)) counts.set(pixel, (counts.get(pixel) ?? 0) + 1)
    return 1 - Math.max(...counts.values()) / (width * height)
  })`
  await page.waitForFunction(
    `document.querySelectorAll('.stage').length <= document.querySelectorAll('canvas').length`,
  )
  return page.evaluate<number[]>(script)
}
