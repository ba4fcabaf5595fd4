import { readFile } from 'node:fs/promises'
import { createRequire } from 'node:module'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import { describe, expect, it } from 'vitest'
import { writeRestoreRecord } from '../../src/index.js'
import { missingBrowser, useChromium } from '../support/chromium.js'
import { madeRecord } from '../support/restore-records.js'
import { scratchFolder } from '../support/scratch.js'

// speedscope reads the spans of a trace and the names of its rows. The parser of ui.perfetto.dev,
// which reads the rest, is a binary that its package downloads when it runs: marks and pairs are
// compared with the documentation of the format instead, in chrome-trace.test.ts.

const { resolve } = createRequire(import.meta.url)
const program = join(resolve('speedscope/package.json'), '../dist/release/index.html')

/** What speedscope exports of a file that it has imported. */
interface Exported {
  readonly shared: { readonly frames: readonly { readonly name: string }[] }
  readonly profiles: readonly {
    readonly name: string
    readonly unit: string
    readonly events: readonly { type: 'O' | 'C'; frame: number; at: number }[]
  }[]
}

describe.skipIf(missingBrowser)('speedscope', () => {
  const open = useChromium()

  it('reads the rows of a trace and their spans, in microseconds', async () => {
    const record = madeRecord()
    const path = join(await scratchFolder(), 'restore.json')
    await writeRestoreRecord(path, record)
    const page = await open()
    const complaints: string[] = []
    page.on('console', (message) => {
      const isAboutUs = !message.text().startsWith('[.WebGL')
      if (isAboutUs && ['warning', 'error'].includes(message.type())) {
        complaints.push(message.text())
      }
    })
    page.on('pageerror', ({ message }) => complaints.push(message))
    await page.goto(pathToFileURL(program).href)
    await page.locator('input[type=file]').setInputFiles(path)
    await page.getByText('COMMAND (tid 1) (1/4)').waitFor()
    const saved = page.waitForEvent('download')
    await page.keyboard.press('Control+s')
    const text = await readFile(await (await saved).path(), 'utf8')
    expect(complaints).toEqual([])

    const { profiles, shared } = JSON.parse(text) as Exported
    for (const { unit } of profiles) expect(unit).toBe('microseconds')
    const rows = profiles.map(({ name, events }) => {
      const [, row] = /^reap-trace restore \(pid 1\), (.*) \(tid \d+\)$/.exec(name)!
      // No span contains another one here: each is an opening and the closing after it.
      const starts = events.filter(({ type }) => type === 'O')
      const ends = events.filter(({ type }) => type === 'C')
      const spans = starts.map(({ frame, at }, i) => {
        const [what] = shared.frames[frame]!.name.split(' ')
        return [what, Number((ends[i]!.at - at).toFixed(3))]
      })
      return [row, spans]
    })
    const { times, timeline } = record
    const { started, listening, accepted, connected, closed } = times as Required<typeof times>
    const us = (from = 0, to = 0) => Number(((to - from) * 1000).toFixed(3))
    const spansOf = (thread: number) => [
      ...timeline!.fetches
        .filter((fetch) => fetch.thread === thread)
        .map(({ from, to }) => ['fetch', us(from, to)]),
      ...timeline!.installs
        .filter((install) => install.thread === thread)
        .map(({ from, to }) => ['install', us(from, to)]),
    ]
    expect(rows).toEqual([
      ['COMMAND', [['COMMAND', us(times.commandStarted, times.commandEnded)]]],
      [
        'session',
        [
          ['open', us(started, listening)],
          ['listen', us(listening, accepted)],
          ['handshake', us(accepted, connected)],
          ['serve', us(connected, closed)],
        ],
      ],
      ['prefetch 0', spansOf(0)],
      ['prefetch 1', spansOf(1)],
    ])
  })
})
