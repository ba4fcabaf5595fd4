import { existsSync } from 'node:fs'
import { readdir, readFile, writeFile } from 'node:fs/promises'
import { basename, join } from 'node:path'
import { beforeAll, describe, expect, it } from 'vitest'
import type { FaultStats } from '../../src/index.js'
import {
  Cli,
  checkBuild,
  errorIn,
  events,
  recorded,
  run,
  script,
  serveWords,
} from '../support/cli-process.js'
import { expectServed, scene, scratchFolder } from '../support/scratch.js'
import { diskTrace, makeDisk, makeMemory, newPath, setOf } from '../support/working-sets.js'

beforeAll(checkBuild)

describe('restore', () => {
  it('brings what record wrote, event by event', async () => {
    const here = await scene({ pages: 256, holes: false })
    const workingSet = await recorded(here)
    const restore = new Cli(['restore', ...serveWords(here), '--working-set', workingSet])
    await restore.event('listening')
    await here.vmm.handshake(here.socketPath)
    const prefetched = await restore.event('prefetched')
    expect(prefetched).toEqual({
      type: 'prefetched',
      atMs: expect.any(Number),
      pageCount: 5,
      extentCount: 3,
      bytes: expect.any(Number),
      fetchMs: expect.any(Number),
      diskMs: expect.any(Number),
      diskBytes: expect.any(Number),
      installMs: expect.any(Number),
      installCpuMs: expect.any(Number),
      sinceConnectMs: expect.any(Number),
      source: 'working-set',
      provenBy: 'written',
      complete: true,
    })
    expect(await here.vmm.verify(here.memoryFile)).toMatchObject({ wrongCount: 0, pages: 256 })
    await here.vmm.exit(0)
    const { code, stdout, stderr } = await restore.ended
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' })
    const all = events(stdout)
    expect(all.map(({ type }) => type)).toEqual(['listening', 'connected', 'prefetched', 'closed'])
    const { state, stats } = all.at(-1) as { state: string; stats: FaultStats }
    expect({ state, stats }).toMatchObject({
      state: 'vm-exited',
      stats: { lateFaults: 0, residualFaults: stats.faults, prefetched: 5 },
    })
    expectServed(stats, 251)
  })

  it('runs a command that loads the snapshot', async () => {
    const here = await scene({ pages: 256 })
    const workingSet = await recorded(here)
    const words = ['--memory', here.memoryFile, '--socket', here.socketPath]
    const command = await script(here, '7 3 9')
    const { code, stdout } = await run([
      'restore',
      ...[...words, '--working-set', workingSet, '--', command],
    ])
    expect(code).toBe(0)
    expect(stdout).toMatch(/^listening on /)
    // This VM may be gone before its prefetch is over.
    expect(stdout).toMatch(/^connected: pid \d+, 1 MiB in 1 region/m)
    expect(stdout).toMatch(/^the VM exited \(.*\)$/m)
    const steps = [...stdout.matchAll(/^ +[\d.]+ m?s {2}(.*)$/gm)].map(([, name]) => name)
    expect(steps).toEqual(
      expect.arrayContaining(['listening', 'VMM connected', 'handshake complete', 'first fault']),
    )
    expect(steps[0]).toBe('listening')
    expect(steps.at(-1)).toBe('end')
    expect(stdout).toMatch(/^ {2}the guest waited for pages for [\d.]+ m?s$/m)
  })

  it('detaches at Ctrl-C', async () => {
    const here = await scene({ pages: 256 })
    const workingSet = await recorded(here)
    const restore = new Cli(['restore', ...serveWords(here), '--working-set', workingSet])
    await restore.event('listening')
    await here.vmm.handshake(here.socketPath)
    await restore.event('prefetched')
    restore.kill('SIGINT')
    const { code, stdout } = await restore.ended
    expect(code).toBe(0)
    expect(events(stdout).at(-1)).toMatchObject({ type: 'closed', state: 'detached' })
    expect(await here.vmm.verify(here.memoryFile)).toMatchObject({ wrongCount: 0, pages: 256 })
  })

  it('goes on demand with a warning, or not at all, when the working set is damaged', async () => {
    const here = await scene({ pages: 256 })
    const workingSet = await recorded(here)
    await writeFile(workingSet, (await readFile(workingSet)).subarray(0, 5000))
    const restore = new Cli(['restore', ...serveWords(here), '--working-set', workingSet])
    await restore.event('listening')
    const { error } = await restore.event<{ error: object }>('warning')
    expect(error).toMatchObject({ code: 'ERR_WORKING_SET_INVALID', check: 'truncated' })
    await here.vmm.handshake(here.socketPath)
    expect(await here.vmm.verify(here.memoryFile)).toMatchObject({ wrongCount: 0 })
    await here.vmm.exit(0)
    const { code, stderr } = await restore.ended
    expect(code).toBe(0)
    expect(stderr).toMatch(/^warning: .* \[ERR_WORKING_SET_INVALID\]\nhint: /)

    const words = [...serveWords(here), '--working-set', workingSet]
    const refused = await run(['restore', ...words, '--on-bad-working-set', 'fail'])
    expect(refused.code).toBe(1)
    const invalid = {
      code: 'ERR_WORKING_SET_INVALID',
      check: 'truncated',
      hint: expect.any(String),
    }
    expect(events(refused.stdout)).toEqual([
      { type: 'error', error: expect.objectContaining(invalid) },
    ])
    expect(refused.stderr).toMatch(/^error: .* \[ERR_WORKING_SET_INVALID\]\nhint: /)
  })
})

describe('restore without a working set yet', () => {
  it('goes on demand, with a warning that names the file', async () => {
    const here = await scene({ pages: 256 })
    const words = [...serveWords(here), '--working-set', join(here.folder, 'vm.ws')]
    const restore = new Cli(['restore', ...words])
    await restore.event('listening')
    await here.vmm.handshake(here.socketPath)
    expect(await here.vmm.verify(here.memoryFile)).toMatchObject({ wrongCount: 0, pages: 256 })
    await here.vmm.exit(0)
    const { code, stdout, stderr } = await restore.ended
    expect(code).toBe(0)
    expect(stderr).toMatch(
      /^warning: the working-set file .*vm\.ws does not exist; nothing is prefetched \[ERR_WORKING_SET_IO\]\nhint: /,
    )
    const [warning, ...more] = events(stdout)
    const error = { code: 'ERR_WORKING_SET_IO', path: join(here.folder, 'vm.ws') }
    expect(warning).toMatchObject({ type: 'warning', error })
    expect(more.map(({ type }) => type)).toEqual(['listening', 'connected', 'closed'])
  })

  it('is refused with --on-bad-working-set fail', async () => {
    const here = await scene({ pages: 256 })
    const words = [...serveWords(here), '--working-set', join(here.folder, 'vm.ws')]
    const { code, stdout, stderr } = await run([
      'restore',
      ...words,
      '--on-bad-working-set',
      'fail',
    ])
    expect(code).toBe(1)
    expect(errorIn(stdout)).toMatchObject({ code: 'ERR_WORKING_SET_IO', syscall: 'open' })
    expect(stderr).toMatch(/^error: .*vm\.ws.* \[ERR_WORKING_SET_IO\]/)
  })
})

describe('inspect and verify', () => {
  it('shows a file to people, without colours in a pipe', async () => {
    const here = await scene({ pages: 256 })
    const workingSet = await recorded(here)
    const { code, stdout } = await run(['inspect', workingSet])
    expect(code).toBe(0)
    expect(stdout).toMatch(/^pages +5 \(20 KiB, 2\.0 % of the memory\)/m)
    expect(stdout).toMatch(/^extents +3, 1\.7 pages each/m)
    expect(stdout).toMatch(/^id +[0-9a-f]{32}$/m)
    expect(stdout).toMatch(/^made +\d{4}-.* by reap-trace on /m)
    expect(stdout).toMatch(/^ +2–3 +1 +3 /m)
    expect(stdout).toMatch(/^ {2}0x000000 │ {3}███ █/m)
    expect(stdout).not.toContain('\x1b')
  })

  it('shows it in colours, or in ASCII, where the environment says so', async () => {
    const workingSet = await recorded(await scene({ pages: 256 }))
    const colored = await run(['inspect', workingSet], { env: { FORCE_COLOR: '1' } })
    expect(colored.stdout).toContain('\x1b[31m█')
    const ascii = await run(['inspect', workingSet], { env: { LC_ALL: 'C' } })
    expect(ascii.stdout).toMatch(/^ {2}0x000000 \| {3}### #/m)
    expect(ascii.stdout).toMatch(/^[\0-\x7f]*$/)
  })

  it('shows a file to programs', async () => {
    const here = await scene({ pages: 256 })
    const workingSet = await recorded(here)
    const { stdout, stderr } = await run(['inspect', workingSet, '--json'])
    expect(stderr).toBe('')
    const [facts, ...more] = events(stdout)
    expect(more).toEqual([])
    expect(facts).toMatchObject({
      pageSize: 4096,
      memoryBytes: 256 * 4096,
      pageCount: 5,
      bytes: 5 * 4096,
      extentCount: 3,
      share: 5 / 256,
      runLengths: [
        { fromPages: 1, toPages: 1, extentCount: 2, pageCount: 2 },
        { fromPages: 2, toPages: 3, extentCount: 1, pageCount: 3 },
      ],
      order: { sequentialShare: 0.5, backwardShare: 0.25 },
      file: {
        path: workingSet,
        id: expect.stringMatching(/^[0-9a-f]{32}$/),
        manifest: { memoryFile: 'memory' },
      },
    })
    expect(facts.map.pages.reduce((sum: number, pages: number) => sum + pages, 0)).toBe(5)
  })

  it('shows the disk images that were read, each by its name', async () => {
    const [memoryFile, path, image] = [makeMemory(16), newPath('vm.ws'), makeDisk(2 ** 20)]
    const trace = diskTrace(2 ** 20, [
      [3, 5],
      [4, 5],
      [9, 7],
    ])
    const diskImages = [image, makeDisk(4097)]
    const set = setOf(memoryFile, [1], 4096, [trace, diskTrace(4097, [[1, 6]])])
    await set.write(path, { snapshot: { memoryFile, diskImages } })
    const { stdout } = await run(['inspect', path])
    const lines = stdout.split('\n').filter((line) => line.startsWith('disk'))
    const [name, other] = diskImages.map((path) => basename(path))
    expect(lines).toEqual([
      `disk      ${name}, 1 MiB: 3 pages (12 KiB) in 2 extents`,
      `disk      ${other}, 4.0 KiB: 1 page (4 KiB) in 1 extent`,
    ])
    const [facts] = events((await run(['inspect', path, '--json'])).stdout)
    expect(facts.disks).toEqual([
      { name, bytes: 2 ** 20, pageCount: 3, extentCount: 2 },
      { name: other, bytes: 4097, pageCount: 1, extentCount: 1 },
    ])
  })

  it('shows the control characters of a file, and does not print them', async () => {
    const [memoryFile, path] = [makeMemory(16), newPath('vm.ws')]
    const label = '\x1b]0;title\x07\n\u202elast'
    await setOf(memoryFile, [1]).write(path, { snapshot: { memoryFile }, label })
    const { stdout } = await run(['inspect', path])
    expect(stdout).toContain('label     \\x1b]0;title\\x07\\x0a\\u202elast\n')
    const { stderr } = await run(['inspect', '/nowhere/\x1b[31m'])
    expect(stderr).toContain('/nowhere/\\x1b[31m')
  })

  it('refuses what is no working set', async () => {
    const folder = await scratchFolder()
    const path = join(folder, 'text')
    await writeFile(path, 'x'.repeat(10_000))
    const { code, stderr } = await run(['inspect', path])
    expect(code).toBe(1)
    expect(stderr).toMatch(/^error: .* \[ERR_WORKING_SET_INVALID\]\nhint: /)
  })

  it('finds the page that differs from the snapshot', async () => {
    const here = await scene({ pages: 256, holes: false })
    const workingSet = await recorded(here)
    const same = await run(['verify', workingSet, '--memory', here.memoryFile])
    const stdout = 'identical: all of 5 pages; restores on this host install its bytes\n'
    expect(same).toMatchObject({ code: 0, stdout, stderr: '' })
    const env = { REAP_TRACE_PROOFS: join(here.memoryFile, 'no folder') }
    const forgotten = await run(['verify', workingSet, '--memory', here.memoryFile], { env })
    expect(forgotten).toMatchObject({
      code: 0,
      stdout:
        'identical: all of 5 pages; this host cannot remember it, so restores take the bytes from the memory file\n',
    })

    const memory = await readFile(here.memoryFile)
    memory[4 * 4096 + 17]! ^= 1
    await writeFile(here.memoryFile, memory)
    const other = await run(['verify', workingSet, '--memory', here.memoryFile])
    expect(other.code).toBe(1)
    expect(other.stdout).toBe('differs: page 4, at 0x4000 of the memory file\n')
    expect(other.stderr).toMatch(/^error: 1 of 5 pages .* \[ERR_SNAPSHOT_MISMATCH\]\nhint: /)

    const json = await run(['verify', workingSet, '--memory', here.memoryFile, '--json'])
    expect(json.code).toBe(1)
    expect(events(json.stdout)).toEqual([
      {
        path: workingSet,
        memory: here.memoryFile,
        pageCount: 5,
        identical: false,
        mismatchedPageCount: 1,
        mismatches: [{ page: 4, offset: 4 * 4096 }],
        remembered: true,
      },
      {
        type: 'error',
        error: expect.objectContaining({ code: 'ERR_SNAPSHOT_MISMATCH', hint: expect.any(String) }),
      },
    ])
  })
})

describe('doctor', () => {
  it('looks at everything, and serves a tiny VM', async () => {
    const folder = await scratchFolder()
    const { code, stdout, stderr } = await run(['doctor', '--json'], { cwd: folder })
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' })
    const [report] = events(stdout)
    expect(report).toMatchObject({ ok: true, arch: process.arch, node: process.versions.node })
    const { checks } = report as { checks: { name: string; status: string; remedy?: string }[] }
    expect(checks.map(({ name }) => name)).toEqual(
      expect.arrayContaining(['addon', 'kernel', 'uffd, VMM', 'kvm', 'huge pages', 'O_DIRECT']),
    )
    for (const check of checks) {
      expect(['ok', 'warn']).toContain(check.status)
      if (check.status !== 'ok') expect(check.remedy).toBeTruthy()
    }
    expect(checks.find(({ name }) => name === 'end to end')).toMatchObject({ status: 'ok' })
    expect(await readdir(folder)).toEqual([])
  })

  it.each([
    ['addon', '--no-addons', 'end to end'],
    [
      'platform',
      "--import=data:text/javascript,Object.defineProperty(process,'platform',{value:'darwin'})",
      'addon',
    ],
  ])('names a failed %s once, and skips what needs it', async (name, flag, dependent) => {
    const { code, stdout } = await run(['doctor', '--json'], { env: { NODE_OPTIONS: flag } })
    expect(code).toBe(1)
    const { checks } = events(stdout)[0] as { checks: { name: string; status: string }[] }
    const failed = checks.filter(({ status }) => status === 'fail')
    expect(failed.map((check) => check.name)).toEqual([name])
    expect(checks.find((check) => check.name === dependent)).toMatchObject({
      status: 'skip',
      detail: `needs the check "${name}" to pass`,
    })
  })
})

it.each([
  ['that does not exist', '/nowhere'],
  ['whose path is too long for a socket', `/tmp/${'d'.repeat(90)}`],
])('the doctor names a temporary folder %s', async (_, TMPDIR) => {
  const { code, stdout } = await run(['doctor', '--json'], { env: { TMPDIR } })
  expect(code).toBe(1)
  const { checks } = events(stdout)[0] as { checks: { status: string; remedy?: string }[] }
  for (const { status, remedy } of checks) if (status === 'fail') expect(remedy).toMatch(/TMPDIR/)
})

describe('demo', () => {
  const smallest = ['--memory-size', '128M', '--rounds', '1']

  it('compares the three ways and finds them identical', { timeout: 120_000 }, async () => {
    const folder = await scratchFolder()
    const { code, stdout, stderr } = await run(['demo', '--json', ...smallest], {
      env: { TMPDIR: folder },
    })
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' })
    const [report, ...more] = events(stdout)
    expect(more).toEqual([])
    expect(report).toMatchObject({ memoryBytes: 2 ** 27, identical: true, rounds: 1 })
    const { pages, extents, bytes } = report.workingSet
    expect(pages).toBeGreaterThanOrEqual(2000)
    expect(extents).toBeGreaterThan(pages / 20)
    expect(bytes).toBe(pages * 4096)
    for (const arm of ['kernel-file', 'on-demand', 'working-set']) {
      // A folder in memory cannot be cold.
      for (const result of [report.arms[arm].cold, report.arms[arm].warm].filter(Boolean)) {
        expect(result.responseMs).toBeGreaterThan(0)
        expect(result.faults).toBeGreaterThanOrEqual(0)
      }
    }
    expect(report.arms['on-demand'].warm.faults).toBe(pages)
    expect(report.arms['working-set'].warm.residualFaults).toBeLessThanOrEqual(pages / 100)
    const [onDemand, workingSet] = [report.arms['on-demand'].warm, report.arms['working-set'].warm]
    expect(report.speedup.warm).toBeCloseTo(onDemand.responseMs / workingSet.responseMs, 1)
    expect(report.otherInput).toMatchObject({ identical: true })
    expect(await readdir(folder)).toEqual([])
  })

  it('keeps what it made in the given folder', { timeout: 120_000 }, async () => {
    const folder = await scratchFolder()
    const keep = join(folder, 'kept')
    const { code, stdout } = await run(['demo', '--keep', keep, ...smallest])
    expect(code).toBe(0)
    expect(stdout).toMatch(/^working-set +\S+/m)
    expect(stdout).toMatch(/^identical: /m)
    expect((await readdir(keep)).sort()).toEqual(['guest.mem', 'guest.ws'])
    const words = [join(keep, 'guest.ws'), '--memory', join(keep, 'guest.mem')]
    expect(await run(['verify', ...words])).toMatchObject({ code: 0 })
  })

  it('leaves nothing behind at Ctrl-C', { timeout: 120_000 }, async () => {
    const folder = await scratchFolder()
    const demo = new Cli(['demo', '--rounds', '50'], { env: { TMPDIR: folder } })
    const made = async () => {
      const [scratch] = await readdir(folder)
      return scratch !== undefined && existsSync(join(folder, scratch, 'guest.ws'))
    }
    await expect.poll(made, { timeout: 60_000 }).toBe(true)
    demo.kill('SIGINT')
    expect(await demo.ended).toMatchObject({ signal: 'SIGINT', stderr: 'nothing is left behind\n' })
    expect(await readdir(folder)).toEqual([])
  })
})
