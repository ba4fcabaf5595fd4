import { existsSync, mkdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { beforeAll, describe, expect, it } from 'vitest'
import { kvmMissing, writeKvmTrace } from '../../native/guest/driver/kvm-guest.mjs'
import { WorkingSet } from '../../src/index.js'
import { calibrated, calibration, uncalibrated } from '../support/calibration.js'
import { Cli, checkBuild, errorIn, events, guest, run, shellVmm } from '../support/cli-process.js'
import {
  evict,
  residentPages,
  threadGuest,
  unmappableFile,
  unmappableSet,
} from '../support/page-cache.js'
import { scratchFolder } from '../support/scratch.js'
import { diskTrace, makeDisk, makeMemory, newPath, PAGE, setOf } from '../support/working-sets.js'

beforeAll(checkBuild)
uncalibrated()

/** Option of tests of --for, which may expire before a command gets a core on a busy machine. */
const again = { retry: 2 }
const needsX64 = process.arch !== 'x64'
const range = (first: number, count: number) => Array.from({ length: count }, (_, i) => first + i)
const order = range(0, 300).map((i) => (i * 797) % 4096)
const byNumber = (pages: Iterable<number>) => [...pages].sort((a, b) => a - b)

async function snapshot() {
  const folder = await scratchFolder()
  const memoryFile = makeMemory(4096)
  return {
    folder,
    memoryFile,
    image: makeDisk(300 * PAGE + 17),
    output: join(folder, 'vm.ws'),
    words: ['--backend', 'page-cache', '--memory', memoryFile],
  }
}

/** A snapshot with a working set; nothing of it is in the page cache. */
async function recorded({ disk = true } = {}) {
  const s = await snapshot()
  const bytes = statSync(s.image).size
  const disks = disk
    ? [
        diskTrace(bytes, [
          [7, 1],
          [300, 2],
        ]),
      ]
    : []
  const set = setOf(s.memoryFile, order, PAGE, disks)
  const diskImages = disk ? [s.image] : []
  await set.write(s.output, { snapshot: { memoryFile: s.memoryFile, diskImages } })
  await evict(s.memoryFile, s.image, s.output)
  return { ...s, workingSet: ['--working-set', s.output] }
}

/** A command that keeps its environment in a file, and does this. */
const shell = (folder: string, work: string) => {
  mkdirSync(folder, { recursive: true })
  return ['--', 'sh', '-c', `env | grep ^REAP_TRACE_ > ${join(folder, 'env')}; ${work}`]
}

const environment = (folder: string) =>
  Object.fromEntries(
    readFileSync(join(folder, 'env'), 'utf8')
      .split('\n')
      .filter((line) => line !== '')
      .map((line) => line.split('=')),
  )

describe('record --backend page-cache', () => {
  it('records what a command reads, and of disk images too', async () => {
    const s = await snapshot()
    const read = (path: string, page: number) =>
      `dd status=none bs=${PAGE} skip=${page} count=1 of=/dev/null if=${path}`
    const work = `${read('$REAP_TRACE_BACKEND_PATH', 1500)}; ${read(s.image, 300)}`
    const { code, stdout, stderr } = await run([
      ...['record', ...s.words, '--disk', s.image, '--output', s.output, '--json'],
      ...['--label', 'v7', '--snapshot-id', 'vm-7'],
      ...shell(s.folder, work),
    ])
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' })
    const set = await WorkingSet.read(s.output)
    // Writing the file has read more of it.
    expect(residentPages(s.memoryFile)).toEqual(expect.arrayContaining([...set.order.pages]))
    expect([...set.order.pages]).toContain(1500)
    expect(set.manifest).toMatchObject({ label: 'v7', snapshotId: 'vm-7' })
    const [disk] = set.disks
    expect(disk).toMatchObject({ bytes: 300 * PAGE + 17 })
    expect(disk!.extents.at(-1)).toMatchObject({ firstPage: expect.any(Number) })
    const onDisk = disk!.extents.flatMap(({ firstPage, pageCount }) => range(firstPage, pageCount))
    expect(byNumber(onDisk)).toEqual(residentPages(s.image))
    expect(onDisk).toContain(300)
    expect(events(stdout)).toEqual([
      { type: 'recording', memoryFile: s.memoryFile, diskImages: [s.image] },
      {
        type: 'recorded',
        path: s.output,
        pageCount: set.pageCount,
        extentCount: set.extents.length,
        bytes: set.bytes,
        diskPageCount: disk!.pageCount,
        trimmedPageCount: 0,
        mapper: null,
      },
    ])
    expect(environment(s.folder)).toMatchObject({
      REAP_TRACE_BACKEND_TYPE: 'File',
      REAP_TRACE_BACKEND_PATH: s.memoryFile,
      REAP_TRACE_MEMORY: s.memoryFile,
    })
    expect(environment(s.folder)).not.toHaveProperty('REAP_TRACE_SOCKET')
  })

  it.skipIf(needsX64)('records a VM that a command brings, and says so to people', async () => {
    const s = await snapshot()
    const trace = join(s.folder, 'trace')
    writeKvmTrace(trace, s.memoryFile, order)
    const vm = `${guest} kvm --threads --memory $REAP_TRACE_BACKEND_PATH --trace ${trace} --verify`
    const words = ['record', ...s.words, '--output', s.output]
    const { code, stdout, stderr } = await run([...words, ...shell(s.folder, vm)])
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' })
    expect(stdout).toMatch(/^recording: 1 file evicted from the page cache$/m)
    expect(stdout).toMatch(/^recorded [\d,]+ pages in [\d,]+ extents? \(.*\) in .*vm\.ws$/m)
    // Whether it was seen depends on how long it lived.
    expect(stdout).toMatch(/^(pid \d+ mapped the memory|no readable page table)/m)
    expect((await WorkingSet.read(s.output)).pageCount).toBeGreaterThan(0)
  })

  it.skipIf(needsX64)('writes what a VM has mapped at Ctrl-C', async () => {
    const s = await snapshot()
    const touches = order.map((page) => ({ page, write: true }))
    const vm = threadGuest(s.memoryFile, touches, { pause: ['ready', 'done'] })
    await vm.event('ready')
    const record = new Cli(['record', ...s.words, '--output', s.output, '--json'])
    await record.event('recording')
    vm.go()
    await vm.event('done')
    record.kill('SIGINT')
    expect(await record.ended).toMatchObject({ code: 0, signal: null, stderr: '' })
    const event = await record.event('recorded')
    expect(event).toMatchObject({ pageCount: 300, mapper: vm.pid })
    expect(event.trimmedPageCount).toBeGreaterThan(0)
    const set = await WorkingSet.read(s.output)
    expect(byNumber(set.order.pages)).toEqual(byNumber(order))
    // The VM is none of ours.
    vm.go()
    expect(await vm.exited).toEqual({ code: 0, signal: null })
  })

  const reads = (s: { memoryFile: string; folder: string }, then: string) =>
    shell(s.folder, `cat ${s.memoryFile} > /dev/null; touch ${join(s.folder, 'read')}; ${then}`)

  it('writes nothing at SIGTERM, and ends its command', async () => {
    const s = await snapshot()
    const pid = join(s.folder, 'pid')
    const command = reads(s, `echo $$ > ${pid}.new; mv ${pid}.new ${pid}; exec sleep 60`)
    const record = new Cli(['record', ...s.words, '--output', s.output, ...command])
    await expect.poll(() => existsSync(pid)).toBe(true)
    record.kill('SIGTERM')
    const { signal, stderr } = await record.ended
    expect(signal).toBe('SIGTERM')
    expect(stderr).toBe('ended by SIGTERM: the recording is not written\n')
    expect(existsSync(s.output)).toBe(false)
    await expect.poll(() => existsSync(`/proc/${readFileSync(pid, 'utf8').trim()}`)).toBe(false)
  })

  it.each([
    ['--for', ['--for', '2s']],
    ['Ctrl-C', []],
  ])('writes at %s, and ends its command then', again, async (name, words) => {
    const s = await snapshot()
    const command = reads(s, 'exec sleep 60')
    const record = new Cli(['record', ...s.words, ...words, '--output', s.output, ...command])
    await expect.poll(() => existsSync(join(s.folder, 'read'))).toBe(true)
    if (name === 'Ctrl-C') record.kill('SIGINT')
    expect(await record.ended).toMatchObject({ code: 0, signal: null })
    expect((await WorkingSet.read(s.output)).pageCount).toBe(4096)
  })

  it('needs no command with --for', again, async () => {
    const s = await snapshot()
    const words = ['record', ...s.words, '--for', '2s', '--output', s.output, '--json']
    const record = new Cli(words)
    await record.event('recording')
    readFileSync(s.memoryFile)
    expect(await record.ended).toMatchObject({ code: 0, signal: null, stderr: '' })
    expect((await WorkingSet.read(s.output)).pageCount).toBe(4096)
  })

  it('writes nothing when its command fails, or reads nothing', async () => {
    const s = await snapshot()
    const words = ['record', ...s.words, '--output', s.output]
    const failed = await run([...words, ...reads(s, 'exit 3')])
    expect(failed.code).toBe(1)
    expect(failed.stderr).toMatch(
      /^error: sh exited with status 3: the recording is not written \[ERR_COMMAND_FAILED\]\nhint: /,
    )
    const nothing = await run([...words, '--', 'true'])
    expect(nothing.code).toBe(1)
    expect(nothing.stderr).toMatch(/^error: no page of .* \[ERR_NOTHING_RECORDED\]\nhint: /)
    const gone = await run([...words, '--', './nowhere.sh'])
    expect(gone.code).toBe(1)
    expect(gone.stderr).toMatch(/^error: .*cannot be started.* \[ERR_COMMAND_FAILED\]/)
    expect(existsSync(s.output)).toBe(false)
  })

  it.skipIf(needsX64)('is refused while a VM maps the memory file', async () => {
    const s = await snapshot()
    const vm = threadGuest(s.memoryFile, order, { pause: ['done'] })
    await vm.event('done')
    const { code, stdout, stderr } = await run(['record', ...s.words, '--output', s.output])
    expect({ code, stdout }).toEqual({ code: 1, stdout: '' })
    expect(stderr).toMatch(
      new RegExp(`^error: .*process ${vm.pid} maps it \\[ERR_PAGE_CACHE\\]\nhint: End the VMs`),
    )
  })

  it('says which disk image is missing', async () => {
    const s = await snapshot()
    const disk = join(s.folder, 'nowhere.img')
    const words = ['record', ...s.words, '--disk', disk, '--output', s.output]
    const { code, stderr } = await run([...words, '--', 'true'])
    expect(code).toBe(1)
    expect(stderr).toMatch(
      /^error: cannot read the disk image .*nowhere\.img.* \[ERR_SOURCE_READ\]/,
    )
  })

  it('is wrong usage without a socket elsewhere, and for --disk there', async () => {
    const s = await snapshot()
    const words = ['record', '--memory', s.memoryFile, '--output', s.output]
    for (const wrong of [words, [...words, '--socket', 's', '--disk', s.image]]) {
      const { code, stdout, stderr } = await run(wrong)
      expect({ code, stdout }).toEqual({ code: 2, stdout: '' })
      expect(stderr).toMatch(/^error: .*\nhint: see "reap-trace record --help"/)
    }
  })
})

describe('restore --backend page-cache', () => {
  it('brings the working set in, with its disk images, and ends', async () => {
    const s = await recorded()
    const words = ['restore', ...s.words, ...s.workingSet, '--disk', s.image]
    const { code, stdout, stderr } = await run([...words, '--json'])
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' })
    const [restoring, prefetched, closed, ...more] = events(stdout)
    expect(more).toEqual([])
    expect(closed).toMatchObject({ type: 'closed', times: { started: expect.any(Number) } })
    expect(restoring).toEqual({
      type: 'restoring',
      memBackend: { backend_type: 'File', backend_path: s.memoryFile },
    })
    expect(prefetched).toEqual({
      type: 'prefetched',
      pageCount: 302,
      residentPageCount: expect.any(Number),
      bytes: (302 - prefetched.residentPageCount) * PAGE,
      extentCount: expect.any(Number),
      startedAtMs: expect.any(Number),
      submittedMs: expect.any(Number),
      completedMs: expect.any(Number),
      complete: true,
    })
    expect(residentPages(s.memoryFile)).toEqual(expect.arrayContaining(order))
    expect(residentPages(s.image)).toEqual([7, 300])

    // A host that reclaims memory proactively may drop pages between two runs.
    await expect
      .poll(() => run(words), { timeout: 20_000 })
      .toMatchObject({
        code: 0,
        stdout: 'nothing to prefetch: 302 pages of the working set are in the page cache\n',
        stderr: '',
      })
  })

  it.skipIf(needsX64)('runs a command, whose VM finds its memory right', async () => {
    const s = await recorded()
    const trace = join(s.folder, 'trace')
    writeKvmTrace(trace, s.memoryFile, order)
    await evict(s.memoryFile)
    const vm = `${guest} kvm --threads --memory $REAP_TRACE_BACKEND_PATH --trace ${trace} --verify`
    const words = ['restore', ...s.words, ...s.workingSet]
    const { code, stdout, stderr } = await run([...words, ...shell(s.folder, vm)])
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' })
    expect(stdout).toMatch(
      /^prefetched .* in \d+ extents? in .*; \d+ of 300 pages were already cached$/m,
    )
    expect(stdout).toContain('"event":"verified"')
    expect(environment(s.folder)).toMatchObject({
      REAP_TRACE_BACKEND_TYPE: 'File',
      REAP_TRACE_BACKEND_PATH: s.memoryFile,
    })
  })

  it('fails with its command, and ends it at Ctrl-C', async () => {
    const s = await recorded()
    const words = ['restore', ...s.words, ...s.workingSet]
    const failed = await run([...words, '--', 'sh', '-c', 'exit 3'])
    expect(failed.code).toBe(1)
    expect(failed.stderr).toMatch(/^error: sh exited with status 3: .* \[ERR_COMMAND_FAILED\]/)

    const pid = join(s.folder, 'pid')
    const work = `echo $$ > ${pid}.new; mv ${pid}.new ${pid}; exec sleep 60`
    const restore = new Cli([...words, ...shell(s.folder, work)])
    await expect.poll(() => existsSync(pid)).toBe(true)
    restore.kill('SIGINT')
    expect(await restore.ended).toMatchObject({ signal: 'SIGINT', stderr: 'ended by SIGINT\n' })
    await expect.poll(() => existsSync(`/proc/${readFileSync(pid, 'utf8').trim()}`)).toBe(false)
  })

  it('goes on with a warning, or not at all, when the working set is damaged', async () => {
    const s = await recorded()
    writeFileSync(s.output, 'x'.repeat(10_000))
    const words = ['restore', ...s.words, ...s.workingSet, '--json']
    const warned = await run(words)
    expect(warned.code).toBe(0)
    expect(warned.stderr).toMatch(/^warning: .* \[ERR_WORKING_SET_INVALID\]\nhint: /)
    expect(events(warned.stdout).find(({ type }) => type === 'warning')).toMatchObject({
      error: { code: 'ERR_WORKING_SET_INVALID' },
    })
    const refused = await run([...words, '--on-bad-working-set', 'fail'])
    expect(refused.code).toBe(1)
    expect(errorIn(refused.stdout).code).toBe('ERR_WORKING_SET_INVALID')
    expect(refused.stderr).toMatch(/^error: .* \[ERR_WORKING_SET_INVALID\]\nhint: /)
  })

  it('runs its command, with a warning, when there is no working set yet', async () => {
    const s = await snapshot()
    const words = ['restore', ...s.words, '--working-set', s.output, '--json']
    const { code, stdout, stderr } = await run([...words, ...shell(s.folder, 'true')])
    expect(code).toBe(0)
    expect(stderr).toMatch(/^warning: .* does not exist; nothing is prefetched/)
    expect(events(stdout)).toMatchObject([
      { type: 'warning', error: { code: 'ERR_WORKING_SET_IO', path: s.output } },
      { type: 'restoring' },
      { type: 'prefetched', pageCount: 0, bytes: 0, complete: true },
      { type: 'closed' },
    ])
    expect(environment(s.folder)).toMatchObject({ REAP_TRACE_BACKEND_TYPE: 'File' })
  })

  it('says which disk image the working set has nothing of', async () => {
    const s = await recorded({ disk: false })
    const words = ['restore', ...s.words, ...s.workingSet, '--disk', s.image]
    const { code, stderr } = await run(words)
    expect(code).toBe(0)
    expect(stderr).toBe(`${s.image} is not prefetched: the working set was recorded without it\n`)
    expect(residentPages(s.image)).toEqual([])
  })
})

describe('the verdict on a restore from the page cache', () => {
  const verdict = async (work: string) => {
    const s = await recorded()
    const words = ['restore', ...s.words, ...s.workingSet, '--json', ...shell(s.folder, work)]
    const { code, stdout } = await run(words)
    return { code, verdict: events(stdout).find(({ type }) => type === 'closed').verdict }
  }

  it('is part of its end', async () => {
    expect(await verdict('sleep 0.5')).toMatchObject({
      code: 0,
      verdict: { kind: 'application', sentence: expect.stringContaining('the prefetch took') },
    })
  })

  it('is not given on a restore that failed', async () => {
    expect(await verdict('exit 3')).toEqual({ code: 1, verdict: undefined })
  })
})

describe('restore with a socket', () => {
  const socket = (folder: string) => ['--socket', join(folder, 's')]

  it('tells its command the backend that --backend auto has chosen', async () => {
    const s = await recorded()
    const env = { REAP_TRACE_CALIBRATION: calibrated() }
    const auto = ['restore', '--backend', 'auto', '--vcpus', 'threads', '--memory', s.memoryFile]
    const words = [...auto, ...s.workingSet, ...socket(s.folder), '--disk', s.image, '--json']
    const vmm = shellVmm(4096, 'echo read 5')
    const work = `if [ $REAP_TRACE_BACKEND_TYPE = Uffd ]; then ${vmm}; fi`

    const cold = await run([...words, ...shell(join(s.folder, 'cold'), work)], { env })
    expect(cold.code, cold.stderr).toBe(0)
    const [planned] = events(cold.stdout)
    const reason = expect.stringContaining('a fault handler reads the rest faster')
    expect(planned).toEqual({ type: 'planned', backend: 'uffd', reason })
    expect(environment(join(s.folder, 'cold'))).toMatchObject({
      REAP_TRACE_BACKEND_TYPE: 'Uffd',
      REAP_TRACE_BACKEND_PATH: join(s.folder, 's'),
      REAP_TRACE_SOCKET: join(s.folder, 's'),
    })
    expect(events(cold.stdout).at(-1)).toMatchObject({ type: 'closed', state: 'vm-exited' })

    readFileSync(s.memoryFile)
    const warm = await run([...words, ...shell(join(s.folder, 'warm'), work)], { env })
    expect({ code: warm.code, stderr: warm.stderr }).toEqual({ code: 0, stderr: '' })
    expect(events(warm.stdout).map(({ type }) => type)).toEqual([
      'planned',
      'restoring',
      'prefetched',
      'closed',
    ])
    expect(events(warm.stdout)[0]).toMatchObject({ backend: 'page-cache' })
    expect(environment(join(s.folder, 'warm'))).toMatchObject({
      REAP_TRACE_BACKEND_TYPE: 'File',
      REAP_TRACE_BACKEND_PATH: s.memoryFile,
    })
  })

  it('brings disk images in beside a handler, or says why not', async () => {
    const s = await recorded()
    const words = ['restore', '--memory', s.memoryFile, ...s.workingSet, ...socket(s.folder)]
    const vmm = `${shellVmm(4096, 'echo read 5')} > /dev/null`
    const there = `until [ -e ${s.folder}/there ] || [ ! -d ${s.folder} ]; do sleep 0.02; done`
    const command = ['--', 'sh', '-c', `${there}; ${vmm}`]
    const restore = new Cli([...words, '--disk', s.image, '--json', ...command])
    await restore.event('listening')
    await expect.poll(() => residentPages(s.image)).toEqual([7, 300])
    writeFileSync(join(s.folder, 'there'), '')
    expect(await restore.ended).toMatchObject({ code: 0, stderr: '' })

    const other = makeDisk(PAGE)
    rmSync(join(s.folder, 'there'))
    const warned = new Cli([...words, '--disk', other, '--disk', s.image, ...command])
    await expect
      .poll(() => warned.stderr)
      .toMatch(/^warning: .* \[ERR_SNAPSHOT_MISMATCH\]\nhint: /m)
    expect(warned.stderr).toContain(`${s.image} is not prefetched: the working set was recorded`)
    writeFileSync(join(s.folder, 'there'), '')
    expect((await warned.ended).code).toBe(0)
  })
})

describe('advise', () => {
  it('says the backend and the figures to people', async () => {
    const s = await recorded()
    const env = { REAP_TRACE_CALIBRATION: calibrated() }
    const words = ['advise', s.output, '--memory', s.memoryFile, '--vcpus', 'threads']
    const cold = await run(words, { env })
    expect(cold).toMatchObject({ code: 0, stderr: '' })
    expect(cold.stdout).toMatch(/^uffd: .* of working set in the page cache: a fault handler reads/)
    expect(cold.stdout).toMatch(/^memory file +\d+ pages? of 300 pages in the page cache$/m)
    expect(cold.stdout).toMatch(
      /^kvm, writes +5\.5 us per mapped page, 2\.8 us per installed page$/m,
    )
    expect(cold.stdout).toContain(calibration.calibratedAt)
    // A host that is short of memory may drop pages before the command looks.
    const warm = async () => {
      readFileSync(s.memoryFile)
      return (await run(words, { env })).stdout
    }
    await expect
      .poll(warm, { timeout: 40_000 })
      .toMatch(/^memory file +300 pages of 300 pages in the page cache$/m)
    expect(await warm()).toMatch(/^page-cache: \d+ % of 1\.2 MiB of working set/)
  })

  it.skipIf(!existsSync(unmappableFile))(
    'and restore know a memory file that cannot be mapped (needs transparent huge pages)',
    async () => {
      const output = await unmappableSet()
      const env = { REAP_TRACE_CALIBRATION: calibrated() }
      const advice = await run(['advise', output, '--memory', unmappableFile], { env })
      expect(advice).toMatchObject({ code: 0, stderr: '' })
      expect(advice.stdout).toMatch(/^uffd: the file system of the memory file has no mappings/)
      const words = [
        'restore',
        '--memory',
        unmappableFile,
        '--working-set',
        output,
        '--backend',
        'auto',
      ]
      const socket = ['--socket', newPath('s'), '--connect-timeout', '1ms']
      const restored = await run([...words, ...socket])
      expect(restored.code).toBe(1)
      expect(restored.stderr).not.toContain('does not exist')
    },
  )

  it('says all of it to programs', async () => {
    const s = await recorded()
    const env = { REAP_TRACE_CALIBRATION: calibrated() }
    const words = ['advise', s.output, '--memory', s.memoryFile, '--json']
    const { code, stdout, stderr } = await run(words, { env })
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' })
    expect(events(stdout)).toEqual([
      {
        backend: 'uffd',
        reason: expect.stringContaining('a fault handler reads the rest faster'),
        residency: { pageCount: 300, missingPageCount: expect.any(Number), isVisible: true },
        vcpus: 'kvm',
        calibration,
        decidedMs: expect.any(Number),
      },
    ])
  })

  it('calibrates no host with --no-calibrate', async () => {
    const s = await recorded()
    const path = join(s.folder, 'calibration.json')
    const env = { REAP_TRACE_CALIBRATION: path }
    readFileSync(s.memoryFile)
    const words = ['advise', s.output, '--memory', s.memoryFile, '--no-calibrate']
    const { code, stdout, stderr } = await run(words, { env })
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' })
    expect(stdout).toMatch(/^page-cache: .*; this host is not calibrated/)
    expect(stdout).not.toContain('us per mapped page')
    const [facts] = events((await run([...words, '--json'], { env })).stdout)
    expect(facts).toMatchObject({ backend: 'page-cache', calibration: null })
    expect(existsSync(path)).toBe(false)
  })

  it.skipIf(needsX64)('calibrates a host of which nothing is known, once', async () => {
    const s = await recorded()
    const path = join(s.folder, 'calibration.json')
    const env = { REAP_TRACE_CALIBRATION: path }
    const words = ['advise', s.output, '--memory', s.memoryFile, '--json']
    const [first] = events((await run(words, { env })).stdout)
    expect(first.calibration).toEqual(JSON.parse(readFileSync(path, 'utf8')))
    const kinds = kvmMissing() ? ['threads'] : ['threads', 'kvm']
    expect(Object.keys(first.calibration.guests)).toEqual(kinds)
    const [second] = events((await run(words, { env })).stdout)
    expect(second.calibration).toEqual(first.calibration)
  })

  it('refuses a working set that is missing, damaged, or of a memory of another size', async () => {
    const s = await recorded()
    const other = makeMemory(4097)
    const advise = (file: string, memory: string) =>
      run(['advise', file, '--memory', memory, '--no-calibrate'])
    for (const [outcome, code] of [
      [advise(join(s.folder, 'nowhere'), s.memoryFile), 'ERR_WORKING_SET_IO'],
      [advise(s.memoryFile, s.memoryFile), 'ERR_WORKING_SET_INVALID'],
      [advise(s.output, other), 'ERR_SNAPSHOT_MISMATCH'],
    ] as const) {
      const { code: status, stdout, stderr } = await outcome
      expect({ status, stdout }).toEqual({ status: 1, stdout: '' })
      expect(stderr).toMatch(new RegExp(`^error: .* \\[${code}\\]`))
    }
  })
})
