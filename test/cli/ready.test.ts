import { execFileSync } from 'node:child_process'
import { existsSync } from 'node:fs'
import { readdir, stat, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { beforeAll, describe, expect, it } from 'vitest'
import { ReadyMark, readyLine } from '../../src/cli/session/ready-mark.js'
import { monotonicMs } from '../../src/cli/terminal/clock.js'
import { Cli, checkBuild, cli, recorded, run, serveWords } from '../support/cli-process.js'
import { scene, scratchFolder } from '../support/scratch.js'
import { makeMemory } from '../support/working-sets.js'

beforeAll(checkBuild)

const echo = 'echo >"$REAP_TRACE_READY"'
const program = `"${process.execPath}" "${cli}" ready`

/** The event of a restore from the page cache, whose COMMAND is this line of a shell. */
async function readyOf(line: string): Promise<{ atMs: number } | undefined> {
  const words = ['--backend', 'page-cache', '--memory', makeMemory(16), '--json']
  const { code, stdout, stderr } = await run([
    'restore',
    ...[...words, '--working-set', '/nowhere', '--', 'sh', '-c', line],
  ])
  expect(code, stderr).toBe(0)
  const lines = stdout.trim().split('\n')
  const found = lines.map((line) => JSON.parse(line)).filter(({ type }) => type === 'ready')
  expect(found.length).toBeLessThanOrEqual(1)
  return found[0]
}

describe('the ready mark', () => {
  it.each([
    ['a line of a shell', echo],
    ['reap-trace ready', program],
    ['the first of several lines', `${echo}; ${echo}; ${program}`],
    ['a line of a background process', `(${echo}) & wait`],
  ])('is %s', async (_, line) => {
    const startedMs = monotonicMs()
    const { atMs } = (await readyOf(line))!
    expect(atMs).toBeGreaterThan(startedMs)
    expect(atMs).toBeLessThan(monotonicMs())
  })

  it('is optional', async () => {
    expect(await readyOf('true')).toBeUndefined()
    expect(await readyOf('printf "no line" >"$REAP_TRACE_READY"')).toBeUndefined()
  })

  it('is reported by a handler too, while the VM runs', async () => {
    const here = await scene({ pages: 64 })
    const workingSet = await recorded(here)
    const words = [...serveWords(here), '--working-set', workingSet]
    const restore = new Cli(['restore', ...words, '--', 'sh', '-c', `${echo}; exec sleep 100`])
    await restore.event('listening')
    await here.vmm.handshake(here.socketPath)
    // A VM that ends without a page, perhaps before its prefetch, is no restore.
    await here.vmm.read(7)
    const { atMs } = await restore.event<{ atMs: number }>('ready')
    expect(atMs).toBeLessThan(monotonicMs())
    await here.vmm.exit(0)
    const closed = await restore.event<{ times: { ready: number }; statsAtReady: object }>('closed')
    expect(closed.times.ready).toBeCloseTo(atMs, 3)
    expect(closed.statsAtReady).toHaveProperty('stalledMs')
    restore.kill('SIGINT')
    expect(await restore.ended).toMatchObject({ signal: 'SIGINT' })
  })

  it('is told as text, after the start of the command', async () => {
    const words = ['--backend', 'page-cache', '--memory', makeMemory(16)]
    const { stdout } = await run([
      'restore',
      ...[...words, '--working-set', '/nowhere', '--', 'sh', '-c', echo],
    ])
    expect(stdout).toMatch(/^ready [\d.]+ ms after the start of sh$/m)
  })

  it.each([
    ['uffd', 'SIGINT'],
    ['uffd', 'SIGTERM'],
    ['page-cache', 'SIGINT'],
  ] as const)('leaves no folder of %s behind at %s', async (backend, signal) => {
    const here = await scene({ pages: 64 })
    const folder = await scratchFolder()
    const words = [...serveWords(here), '--backend', backend, '--working-set', '/nowhere']
    const restore = new Cli(['restore', ...words, '--', 'sh', '-c', `${echo}; exec sleep 100`], {
      env: { TMPDIR: folder },
    })
    await restore.event('ready')
    const [name] = await readdir(folder)
    expect((await stat(join(folder, name!))).mode & 0o777).toBe(0o700)
    expect((await stat(join(folder, name!, 'ready'))).mode & 0o777).toBe(0o600)
    restore.kill(signal)
    expect(await restore.exited).toMatchObject({ signal })
    expect(await readdir(folder)).toEqual([])
  })

  it('is missing with a sentence where no folder can be made, and the restore goes on', async () => {
    const words = ['--backend', 'page-cache', '--memory', makeMemory(16), '--working-set', '/none']
    const command = ['--', 'sh', '-c', 'test -z "$REAP_TRACE_READY"']
    const { code, stderr } = await run(['restore', ...words, ...command], {
      env: { TMPDIR: '/nowhere' },
    })
    expect(code, stderr).toBe(0)
    expect(stderr).toMatch(/^REAP_TRACE_READY is not set: .*ENOENT/m)
  })
})

describe('a line with a time', () => {
  async function markOf(line: (nowMs: number) => string, startsAtOnce = false) {
    const openedMs = monotonicMs()
    let mark: ReadyMark | undefined
    const atMs = await new Promise<number>((resolve, reject) => {
      ReadyMark.open(resolve).then(async (opened) => {
        mark = opened
        const nowMs = monotonicMs()
        if (startsAtOnce) opened.startAt(monotonicMs())
        await writeFile(opened.path, line(nowMs))
      }, reject)
    })
    await mark!.close()
    expect(existsSync(mark!.path)).toBe(false)
    return { openedMs, atMs }
  }

  it('is the time of the mark', async () => {
    let writtenMs = 0
    const { atMs } = await markOf((nowMs) => {
      writtenMs = nowMs
      return readyLine(nowMs)
    })
    expect(atMs).toBe(writtenMs)
  })

  it.each([
    ['in the future', (nowMs: number) => readyLine(nowMs + 1e6)],
    ['before the command', (nowMs: number) => readyLine(nowMs - 1e6)],
    ['that is no number', () => '{"atMs":"now"}\n'],
    ['in no JSON', () => '{"atMs":\n'],
    ['of nothing', () => 'null\n'],
    ['too long', () => `${' '.repeat(60_000)}{"atMs":1}\n`],
  ])('counts as of its receipt %s', async (_, line) => {
    const { openedMs, atMs } = await markOf(line)
    expect(atMs).toBeGreaterThan(openedMs)
    expect(atMs).toBeLessThan(monotonicMs())
  })

  // Perhaps before the session, which would refuse it.
  it('counts as of its receipt between the opening and the start of the command', async () => {
    let writtenMs = 0
    const { atMs } = await markOf((nowMs) => {
      writtenMs = nowMs
      return readyLine(nowMs)
    }, true)
    expect(atMs).toBeGreaterThan(writtenMs)
  })
})

describe('reap-trace ready', () => {
  it.each([
    ['of no program', () => ({}), /REAP_TRACE_READY is not set/],
    ['in a file', (folder: string) => ({ REAP_TRACE_READY: folder }), /which is no FIFO/],
    [
      'of a program that has ended',
      (folder: string) => ({ REAP_TRACE_READY: `${folder}/gone` }),
      /nobody reads .*\(ENOENT\)/,
    ],
    [
      'that nobody reads',
      (folder: string) => {
        execFileSync('mkfifo', [`${folder}/fifo`])
        return { REAP_TRACE_READY: `${folder}/fifo` }
      },
      /nobody reads .*\(ENXIO\)/,
    ],
  ])('is refused as a mark %s', async (_, makeEnv, message) => {
    const env = { REAP_TRACE_READY: undefined, ...makeEnv(await scratchFolder()) }
    const { code, stdout, stderr } = await run(['ready'], { env })
    expect({ code, stdout }).toEqual({ code: 1, stdout: '' })
    expect(stderr).toMatch(/^error: nobody waits for this mark: .* \[ERR_NO_LISTENER\]\nhint: /)
    expect(stderr).toMatch(message)
  })
})
