import { execFileSync } from 'node:child_process'
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { chmod, copyFile, readdir, readFile, stat, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it, onTestFinished } from 'vitest'
import { type Comparison, readComparison } from '../../src/index.js'
import { uncalibrated } from '../support/calibration.js'
import { Cli, checkBuild, events, guest, run } from '../support/cli-process.js'
import { scratchFolder } from '../support/scratch.js'

const MEMORY_BYTES = 2 ** 27
const folder = mkdtempSync(join(tmpdir(), 'reap test ')) // a space, as users have
const memory = join(folder, 'memory')
const workingSet = join(folder, 'set')
const words = ['compare', '--memory', memory, '--working-set', workingSet]

uncalibrated()

/** A script that invokes the embedded guest by the backend of its environment. */
async function script({
  before = '',
  ready = 'echo >"$REAP_TRACE_READY"',
  after = '',
}: {
  before?: string
  ready?: string
  after?: string
} = {}): Promise<string> {
  const path = join(await scratchFolder(), 'invoke.sh')
  const lines = [
    '#!/bin/sh',
    before,
    'case $REAP_TRACE_BACKEND_TYPE in',
    '  File) backend="file $(dirname "$0")/memory" ;;',
    `  Uffd) backend="uffd $REAP_TRACE_BACKEND_PATH ${MEMORY_BYTES}" ;;`,
    'esac',
    // The guest reads no path with a space.
    'ln -sf "$REAP_TRACE_BACKEND_PATH" "$(dirname "$0")/memory"',
    `echo "invoke $backend request" | ${guest} vmm | while read -r line; do`,
    `  case $line in *'"response"'*) ${ready} ;; esac`,
    'done',
    after,
  ]
  await writeFile(path, lines.join('\n'))
  await chmod(path, 0o755)
  return path
}

beforeAll(async () => {
  await checkBuild()
  execFileSync(guest, ['build', '--memory-size', String(MEMORY_BYTES), '--snapshot', memory])
  const recording = ['--memory', memory, '--socket', join(folder, 'sock'), '--output', workingSet]
  const path = join(folder, 'record.sh')
  const request = `echo "invoke uffd $REAP_TRACE_BACKEND_PATH ${MEMORY_BYTES} request" | ${guest} vmm`
  await writeFile(
    path,
    `#!/bin/sh\ncd "$(dirname "$0")"\n${request.replace('$REAP_TRACE_BACKEND_PATH', 'sock')}\n`,
  )
  await chmod(path, 0o755)
  const { status, stderr } = await recordBy(recording, path)
  expect(status, stderr).toBe(0)
})
afterAll(() => rmSync(folder, { recursive: true, force: true }))

async function recordBy(recording: readonly string[], path: string) {
  const cli = join(import.meta.dirname, '../../dist/cli.js')
  try {
    execFileSync(process.execPath, [cli, 'record', ...recording, '--', path], { stdio: 'pipe' })
    return { status: 0, stderr: '' }
  } catch (error) {
    const { status, stderr } = error as { status: number; stderr: Buffer }
    return { status, stderr: String(stderr) }
  }
}

/** The report of a comparison, and the warnings before it. */
async function compare(more: readonly string[], command: string) {
  const { code, stdout, stderr } = await run([...words, ...more, '--json', '--', command])
  const all = events(stdout)
  const report = all.find(({ type }) => type === 'comparison') as Comparison | undefined
  return { code, stderr, report: report!, all }
}

describe('compare', () => {
  it('measures each arm in turns, and tells and exports what it found', async () => {
    const here = await scratchFolder()
    const [csv, markdown] = [join(here, 'runs.csv'), join(here, 'table.md')]
    const page = join(here, 'report.html')
    const exports = ['--export-csv', csv, '--export-markdown', markdown, '--report', page]
    const { code, stderr, report, all } = await compare(
      [...exports, '--rounds', '2', '--warm'],
      await script(),
    )
    expect(code, stderr).toBe(0)
    expect(report).toMatchObject({ complete: true, rounds: 2, base: 'kernel-file', cold: [] })
    expect(report.warm.map(({ arm, ms }) => [arm, ms.samples])).toEqual([
      ['kernel-file', 2],
      ['on-demand', 2],
      ['page-cache', 2],
      ['working-set', 2],
      ['auto', 2],
    ])
    const [kernelFile, onDemand, , withSet, auto] = report.warm
    expect(kernelFile).toMatchObject({ faults: null, residualFaults: null, ratio: null })
    expect(onDemand!.faults).toBeGreaterThan(100)
    expect(withSet).toMatchObject({ residualFaults: 0, ratio: { samples: 2 } })
    expect(auto!.chosen).toEqual({ 'page-cache': 2 })
    expect(report.runs).toHaveLength(10)
    for (const { sample } of report.runs) expect(sample).toMatchObject({ until: 'ready' })
    expect(report.warnings.join()).toContain('Use --rounds 10')

    const rows = readFileSync(csv, 'utf8').trim().split('\n')
    expect(rows[0]).toMatch(/^cache,round,arm,ms,until,backend,faults,/)
    expect(rows).toHaveLength(11)
    expect(readFileSync(markdown, 'utf8')).toMatch(
      /^\| warm page cache \| median .*\n.*\n\| `kernel-file` \|.*\n\| `on-demand` \|/,
    )

    expect((await stat(page)).mode & 0o777).toBe(0o600)
    const json = join(here, 'comparison.json')
    await writeFile(json, all.map((object) => `${JSON.stringify(object)}\n`).join(''))
    expect(await readComparison(json)).toMatchObject({ warm: report.warm, runs: report.runs })
    const drawn = await run(['report', json, '-o', page])
    expect(drawn.code, drawn.stderr).toBe(0)
  })

  it('prints a table, with a conclusion', async () => {
    const arms = ['--arms', 'working-set,kernel-file', '--rounds', '1', '--warm', '--seed', '7']
    const { code, stdout, stderr } = await run([...words, ...arms, '--', await script()])
    expect(code, stderr).toBe(0)
    expect(stdout).toMatch(/^warm +median +quartiles +÷ kernel-file +faults +residual +stalled$/m)
    expect(stdout).toMatch(/^kernel-file +[\d.]+ m?s +[\d.]+ m?s to /m)
    expect(stdout).toMatch(/^working-set .* \d\.\d\d \(\d\.\d\d to \d\.\d\d\)/m)
    expect(stdout).toMatch(/kernel-file is fastest|fastest: .* times as fast as kernel-file/)
    expect(stdout).toContain("to COMMAND's ready mark; seed 7")
    expect(stderr).toMatch(/^warning: .*Use --rounds 10 or more\.$/m)
  })

  it('restores in the same order with the same seed', async () => {
    const arms = ['--arms', 'kernel-file,page-cache', '--rounds', '6', '--warm']
    const order = async (seed: string) => {
      const { report } = await compare([...arms, '--seed', seed], '/bin/true')
      return report.runs.map(({ arm }) => arm)
    }
    const [first, second] = [await order('1'), await order('1')]
    expect(first).toEqual(second)
    expect(first).not.toEqual(await order('2'))
  })

  it('counts until the end of a command that makes no mark', async () => {
    const arms = ['--arms', 'kernel-file,working-set', '--rounds', '1', '--warm']
    const { report } = await compare(arms, await script({ ready: ':' }))
    expect(report.runs.map(({ sample }) => sample?.until)).toEqual(['end', 'end'])
    expect(report.warm[1]).toMatchObject({ arm: 'working-set', residualFaults: 0 })
  })

  it('does not count what a command does after its mark', async () => {
    const arms = ['--arms', 'kernel-file,working-set', '--rounds', '1', '--warm']
    const startedMs = performance.now()
    const { report } = await compare(arms, await script({ after: 'sleep 1' }))
    const countedMs = report.runs.reduce((sum, { sample }) => sum + sample!.ms, 0)
    // Two trials and two runs.
    expect(countedMs).toBeLessThan(performance.now() - startedMs - 4000)
  })

  it('leaves out an arm whose command fails, and shows its output', async () => {
    const before = 'test $REAP_TRACE_BACKEND_TYPE = File || { echo "no uffd here" >&2; exit 3; }'
    const arms = ['--arms', 'kernel-file,on-demand', '--rounds', '1', '--warm']
    const { code, stderr, report, all } = await compare(arms, await script({ before }))
    expect(code, stderr).toBe(0)
    expect(report.warm.map(({ arm }) => arm)).toEqual(['kernel-file'])
    expect(stderr).toMatch(
      /^warning: .*invoke\.sh exited with status 3; on-demand is left out \[ERR_COMMAND_FAILED\]\n {2}\| no uffd here$/m,
    )
    expect(all[0]).toMatchObject({ type: 'warning', arm: 'on-demand', output: ['no uffd here'] })
  })

  it('leaves out a run that fails, and its pair', async () => {
    const count = join(await scratchFolder(), 'count')
    // The second measured run of three arms, after a trial of each.
    const before = `echo >>${count}; test $(wc -l <${count}) != 5 || exit 3`
    const arms = ['--arms', 'kernel-file,page-cache', '--rounds', '3', '--warm']
    const { code, report } = await compare(arms, await script({ before }))
    expect(code).toBe(0)
    expect(report.runs.filter(({ leftOut }) => leftOut?.startsWith('failed: '))).toHaveLength(1)
    expect(report.warm[1]!.ratio).toMatchObject({ samples: 2 })
    expect(report.warm.map(({ leftOutCount }) => leftOutCount).sort()).toEqual([0, 1])
  })

  it('fails if the command never works', async () => {
    const { code, stderr, report } = await compare(['--rounds', '1'], '/bin/false')
    expect(code).toBe(1)
    expect(report).toBeUndefined()
    expect(stderr).toMatch(/^error: nothing was measured: .* \[ERR_COMMAND_FAILED\]\nhint: /m)
  })

  it('says that a command used another backend than it was given', async () => {
    const before = `export REAP_TRACE_BACKEND_TYPE=File REAP_TRACE_BACKEND_PATH='${memory}'`
    const arms = ['--arms', 'kernel-file,working-set', '--rounds', '1', '--warm']
    const { stderr, report } = await compare(arms, await script({ before }))
    expect(report.warm.map(({ arm }) => arm)).toEqual(['kernel-file'])
    expect(stderr).toMatch(/ended before a VM connected; working-set is left out .*\nhint: /)
  })

  it('stops a command that takes too long', async () => {
    const arms = ['--arms', 'kernel-file', '--rounds', '1', '--command-timeout', '100ms']
    const { code, stderr } = await compare(arms, await script({ ready: ':', after: 'sleep 100' }))
    expect(code).toBe(1)
    expect(stderr).toMatch(/had not ended after 100 ms \(--command-timeout\)/)
  })

  it('kills what a command leaves running', async () => {
    const pids = join(await scratchFolder(), 'pids')
    const after = `sleep 1000 & echo $! >>${pids}`
    const arms = ['--arms', 'kernel-file', '--rounds', '1', '--warm']
    const { code } = await compare(arms, await script({ after }))
    expect(code).toBe(0)
    const left = readFileSync(pids, 'utf8').trim().split('\n')
    expect(left).toHaveLength(2)
    for (const pid of left) await expect.poll(() => existsSync(`/proc/${pid}`)).toBe(false)
  })

  it('prints at Ctrl-C what it has measured, and leaves nothing behind', async () => {
    const temporary = await scratchFolder()
    const count = join(await scratchFolder(), 'count')
    const arms = ['--arms', 'kernel-file,page-cache', '--rounds', '1000', '--warm', '--json']
    const command = await script({ before: `echo >>${count}` })
    const comparing = new Cli([...words, ...arms, '--', command], { env: { TMPDIR: temporary } })
    const runs = () =>
      readFile(count, 'utf8').then(
        (text) => text.length,
        () => 0,
      )
    await expect.poll(runs, { timeout: 50_000 }).toBeGreaterThan(8)
    comparing.kill('SIGINT')
    const { signal, stdout, stderr } = await comparing.ended
    expect(signal).toBe('SIGINT')
    expect(stderr).toMatch(/^ended by SIGINT after \d+ runs$/m)
    const report = events(stdout).find(({ type }) => type === 'comparison') as Comparison
    expect(report.complete).toBe(false)
    expect(report.runs.length).toBeGreaterThanOrEqual(6)
    expect(report.warm[0]!.ms.median).toBeGreaterThan(0)
    expect(await readdir(temporary)).toEqual([])
  })

  it('measures nothing cold where the files stay in the page cache', async () => {
    const shm = mkdtempSync('/dev/shm/reap-test-')
    onTestFinished(() => rmSync(shm, { recursive: true, force: true }))
    await copyFile(workingSet, join(shm, 'set'))
    const here = ['compare', '--memory', memory, '--working-set', join(shm, 'set')]
    const arms = ['--arms', 'kernel-file', '--rounds', '1', '--json']
    const command = await script()
    const both = await run([...here, ...arms, '--', command])
    expect(both.code, both.stderr).toBe(0)
    expect(both.stderr).toMatch(
      /^warning: .*\/set cannot be evicted .*; no run with a cold page cache \[ERR_PAGE_CACHE\]\nhint: /m,
    )
    expect(events(both.stdout).at(-1)).toMatchObject({ cold: [], warm: [{ arm: 'kernel-file' }] })
    const cold = await run([...here, ...arms, '--cold', '--', command])
    expect(cold.code).toBe(1)
    expect(cold.stderr).toMatch(/^error: .*\/set cannot be evicted .* \[ERR_PAGE_CACHE\]\nhint: /m)
  })

  it('measures with a cold page cache', async () => {
    const arms = ['--arms', 'kernel-file,working-set', '--rounds', '1', '--cold']
    const { code, stderr, report } = await compare(arms, await script())
    if (stderr.includes('ERR_PAGE_CACHE')) {
      console.log(`skipped: ${folder} cannot be evicted from the page cache`)
      return
    }
    expect(code, stderr).toBe(0)
    expect(report.cold.map(({ arm }) => arm)).toEqual(['kernel-file', 'working-set'])
    expect(report.warm).toEqual([])
  })

  it('checks where the report goes before it starts anything', async () => {
    const marker = join(await scratchFolder(), 'ran')
    const command = ['--', 'sh', '-c', `touch ${marker}`]
    const page = join(folder, 'nowhere/report.html')
    const { code, stderr } = await run([...words, '--report', page, ...command])
    expect(code).toBe(1)
    expect(stderr).toMatch(/nowhere does not exist \[ERR_REPORT_IO\]/)
    const set = await run([...words, '--report', workingSet, ...command])
    expect(set.stderr).toContain('it is the working set')
    expect(existsSync(marker)).toBe(false)
  })

  it('writes no table over a file that it reads, or to no folder', async () => {
    const size = (await stat(memory)).size
    for (const [option, path, why] of [
      ['--export-csv', memory, 'it is the memory file'],
      ['--export-markdown', workingSet, 'it is the working set'],
      ['--export-csv', '/nowhere/runs.csv', 'ENOENT'],
    ] as const) {
      const { code, stderr } = await run([...words, option, path, '--', 'true'])
      expect(code).toBe(1)
      expect(stderr).toContain(why)
      expect(stderr).toContain(`Choose a different ${option}.`)
    }
    expect((await stat(memory)).size).toBe(size)
  })

  it('reports a missing working set before it starts anything', async () => {
    const missing = ['compare', '--memory', memory, '--working-set', '/nowhere']
    const { code, stderr } = await run([...missing, '--', '/bin/true'])
    expect(code).toBe(1)
    expect(stderr).toMatch(/^error: .*\/nowhere.* \[ERR_WORKING_SET_IO\]/)
  })

  it.each([
    [['--arms', 'kernel-file,mmap'], /must be a list of kernel-file, on-demand/],
    [['--rounds', '0'], /must be an integer from 1/],
  ])('refuses %s', async (more, message) => {
    const { code, stderr } = await run([...words, ...more, '--', '/bin/true'])
    expect(code).toBe(2)
    expect(stderr).toMatch(message)
  })

  it('needs a command', async () => {
    const { code, stderr } = await run(words)
    expect(code).toBe(2)
    expect(stderr).toMatch(/^error: a command is missing/)
  })
})
