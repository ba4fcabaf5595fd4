import { readFile, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { beforeAll, describe, expect, it } from 'vitest'
import { type RestoreRecord, readRestoreRecord } from '../../src/index.js'
import { checkBuild, recorded, run, script, serveWords } from '../support/cli-process.js'
import { evict } from '../support/page-cache.js'
import { scene } from '../support/scratch.js'
import { checkTrace } from '../support/trace-events.js'

beforeAll(checkBuild)

interface TraceFile {
  readonly traceEvents: readonly { readonly name: string; readonly ph: string }[]
  readonly reapTrace: RestoreRecord
}

describe('restore --trace', () => {
  it('writes what happened, for other programs and for report', async () => {
    const here = await scene({ pages: 256 })
    const workingSet = await recorded(here)
    const trace = join(here.folder, 'trace.json')
    // The working set has pages 3, 4, 5, 7 and 100.
    const command = await script(here, '7 3 90')
    const words = [...serveWords(here), '--working-set', workingSet, '--trace', trace]
    const { code, stderr } = await run(['restore', ...words, '--', command])
    expect(code, stderr).toBe(0)
    expect((await stat(trace)).mode & 0o777).toBe(0o600)
    const { traceEvents } = JSON.parse(await readFile(trace, 'utf8')) as TraceFile
    const names = new Set(traceEvents.map(({ name }) => name))
    for (const name of ['COMMAND', 'listen', 'handshake', 'serve', 'residual']) {
      expect(names).toContain(name)
    }
    const record = await checkTrace(trace)
    expect(record.snapshot).toEqual({
      memoryFile: here.memoryFile,
      memoryBytes: 256 * 4096,
      pageSize: 4096,
    })
    expect(record.timeline?.faults.map(({ offset }) => offset)).toContain(90 * 4096)
    const { times } = record
    expect(times.commandStarted).toBeGreaterThan(times.started)
    expect(times.connected).toBeGreaterThan(times.commandStarted as number)
    const report = join(here.folder, 'report.html')
    const drawn = await run(['report', trace, workingSet, '-o', report])
    expect(drawn.code, drawn.stderr).toBe(0)
    expect((await stat(report)).size).toBeGreaterThan(10_000)
  })

  it('replaces neither the working set nor the memory file', async () => {
    const here = await scene({ pages: 64 })
    const workingSet = await recorded(here, '7 3')
    for (const [path, what] of [
      [workingSet, 'the working set'],
      [here.memoryFile, 'the memory file'],
    ] as const) {
      const before = await readFile(path)
      const words = [...serveWords(here), '--working-set', workingSet, '--trace', path]
      const { code, stderr } = await run(['restore', ...words, '--', 'true'])
      expect(code).toBe(1)
      expect(stderr).toContain(`${path} cannot be written: it is ${what}`)
      expect((await readFile(path)).equals(before)).toBe(true)
    }
  })

  it('fails before anything is restored if the folder does not exist', async () => {
    const here = await scene({ pages: 64 })
    const marker = join(here.folder, 'ran')
    const command = ['sh', '-c', `touch ${marker}`]
    const words = [...serveWords(here), '--working-set', join(here.folder, 'none')]
    const trace = join(here.folder, 'nowhere/trace.json')
    const { code, stderr } = await run(['restore', ...words, '--trace', trace, '--', ...command])
    expect(code).toBe(1)
    expect(stderr).toContain('ERR_RECORD_IO')
    await expect(stat(marker)).rejects.toThrow()
  })

  it('writes the steps of a restore from the page cache, whose faults the kernel serves', async () => {
    const here = await scene({ pages: 256 })
    const workingSet = await recorded(here)
    await evict(here.memoryFile)
    const trace = join(here.folder, 'trace.json')
    const backend = ['--backend', 'page-cache', '--memory', here.memoryFile]
    const words = ['restore', ...backend, '--working-set', workingSet, '--trace', trace]
    const command = ['sh', '-c', 'echo > "$REAP_TRACE_READY"; sleep 0.01']
    const { code, stdout, stderr } = await run([...words, '--', ...command])
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' })
    expect(stdout).toMatch(/^ +[\d.]+ ms {2}COMMAND started$/m)
    expect(stdout).toMatch(/^ +[\d.]+ ms {2}ready\n(.*\n)* +[\d.]+ ms {2}COMMAND ended$/m)
    const record = await readRestoreRecord(trace)
    expect(record).toMatchObject({
      backend: 'page-cache',
      snapshot: { memoryFile: here.memoryFile, memoryBytes: 256 * 4096, pageSize: 4096 },
      workingSet: { path: workingSet, pageCount: 5 },
      prefetch: { pageCount: 5, complete: true },
    })
    expect(record).not.toHaveProperty('stats')
    const { started, firstFetch, prefetched, commandStarted, ready, commandEnded, closed } =
      record.times as Required<RestoreRecord['times']>
    const inOrder = (...times: (number | undefined)[]) =>
      expect(times).toEqual(times.toSorted((a, b) => a! - b!))
    inOrder(started, commandStarted, ready, commandEnded, closed)
    // Absent if the eviction of a file in the page cache had no effect here.
    if (firstFetch !== undefined) inOrder(started, firstFetch, prefetched, closed)
    const { traceEvents } = JSON.parse(await readFile(trace, 'utf8')) as TraceFile
    expect(traceEvents.map(({ name }) => name)).toContain('COMMAND')
    const drawn = await run(['report', trace, '-o', join(here.folder, 'report.html')])
    expect(drawn.code, drawn.stderr).toBe(0)
  })

  it('writes what happened until a command failed, with the page cache too', async () => {
    const here = await scene({ pages: 64 })
    const trace = join(here.folder, 'trace.json')
    const words = ['--backend', 'page-cache', '--memory', here.memoryFile]
    const set = ['--working-set', join(here.folder, 'none'), '--trace', trace]
    const { code, stderr } = await run(['restore', ...words, ...set, '--', 'false'])
    expect(code).toBe(1)
    expect(stderr).toContain('ERR_COMMAND_FAILED')
    const record = await readRestoreRecord(trace)
    expect(record.workingSet).toBeUndefined()
    expect(record.times.commandEnded).toBeGreaterThan(record.times.commandStarted as number)
  })
})
