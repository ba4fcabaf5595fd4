import { afterEach, beforeEach, describe, expect, it, onTestFinished, vi } from 'vitest'
import { parse } from '../../src/cli/arguments/program.js'
import { isKernelAtLeast, isNodeSupported } from '../../src/cli/commands/doctor-checks.js'
import { summarizeOrder } from '../../src/cli/commands/inspect.js'
import { monotonicMs } from '../../src/cli/terminal/clock.js'
import { CliError, describeError } from '../../src/cli/terminal/failure.js'
import { forLocale } from '../../src/cli/terminal/locale.js'
import { digit, drawMap, mapMemory, shade } from '../../src/cli/terminal/memory-map.js'
import { type Sink, Terminal } from '../../src/cli/terminal/terminal.js'
import {
  formatBytes,
  formatCount,
  formatMs,
  formatPlural,
  parseDuration,
  parseSize,
} from '../../src/cli/terminal/units.js'
import { ReapTraceError, Trace, WorkingSet } from '../../src/index.js'

describe('numbers on the command line', () => {
  it.each([
    ['500ms', 500],
    ['2s', 2000],
    ['1.5s', 1500],
    ['1m', 60_000],
    ['1h', 3_600_000],
    ['0s', 0],
  ])('reads the duration %s', (text, ms) => {
    expect(parseDuration(text)).toBe(ms)
  })

  it.each(['', '2', 's', '-1s', '2 s', '2S', '1e3ms', '1000h'])(
    'refuses the duration "%s"',
    (text) => {
      expect(parseDuration(text)).toBeUndefined()
    },
  )

  it.each([
    ['256M', 2 ** 28],
    ['1GiB', 2 ** 30],
    ['1.5G', 1.5 * 2 ** 30],
    ['4096', 4096],
    ['512K', 2 ** 19],
    ['1T', 2 ** 40],
  ])('reads the size %s', (text, bytes) => {
    expect(parseSize(text)).toBe(bytes)
  })

  it.each(['', 'M', '256MB', '-1M', '256 M', '256m', '0.3', '9999999T'])(
    'refuses the size "%s"',
    (text) => {
      expect(parseSize(text)).toBeUndefined()
    },
  )

  it('prints counts, bytes and times for people', () => {
    expect(formatCount(1_234_567)).toBe('1,234,567')
    expect(formatPlural(1, 'page')).toBe('1 page')
    expect(formatPlural(0, 'page')).toBe('0 pages')
    expect([0, 4096, 1_572_864, 2 ** 30, 2 ** 41].map(formatBytes)).toEqual([
      '0 B',
      '4 KiB',
      '1.5 MiB',
      '1 GiB',
      '2 TiB',
    ])
    expect([0.123, 99.9, 640, 1500, 250_000].map(formatMs)).toEqual([
      '0.1 ms',
      '99.9 ms',
      '640 ms',
      '1.50 s',
      '250 s',
    ])
  })
})

describe('parsing', () => {
  const serving = ['--memory', 'vm.mem', '--socket', 'vm.sock']

  it('reads every option of record, and the command after the dashes as it is', () => {
    const words = ['record', ...serving, '--output', 'vm.ws', '--for', '2s', '--label', 'v7']
    const more = [
      '--snapshot-id',
      'vm-7',
      '--interpose',
      '--connect-timeout',
      '1m',
      '--leave-vm',
      '--peer-uid',
      '1000',
      '--json',
    ]
    expect(parse([...words, ...more, '--', './run.sh', '--json', '--', '-x'])).toEqual({
      arguments: {
        name: 'record',
        backend: 'uffd',
        memory: 'vm.mem',
        socket: 'vm.sock',
        disks: [],
        output: 'vm.ws',
        forMs: 2000,
        label: 'v7',
        snapshotId: 'vm-7',
        connectTimeoutMs: 60_000,
        commandTimeoutMs: 0,
        readTimeoutMs: 30_000,
        onReadTimeout: 'warn',
        leaveVm: true,
        interpose: true,
        peerUid: 1000,
        json: true,
        command: ['./run.sh', '--json', '--', '-x'],
      },
    })
  })

  it('waits for ever and kills by default', () => {
    expect(parse(['record', ...serving, '--output', 'vm.ws'])).toMatchObject({
      arguments: { connectTimeoutMs: 0, leaveVm: false, json: false, command: [] },
    })
  })

  it('reads restore, inspect, verify, doctor and demo', () => {
    expect(parse(['restore', ...serving, '--working-set', 'vm.ws'])).toMatchObject({
      arguments: { name: 'restore', workingSet: 'vm.ws', onBadWorkingSet: 'on-demand' },
    })
    expect(parse(['restore', ...serving, '--working-set', 'vm.ws'])).toMatchObject({
      arguments: { backend: 'uffd', vcpus: 'kvm', disks: [] },
    })
    expect(parse(['inspect', 'vm.ws'])).toEqual({
      arguments: { name: 'inspect', file: 'vm.ws', json: false },
    })
    expect(parse(['inspect', 'vm.ws', '--memory', 'vm.mem'])).toMatchObject({
      arguments: { memory: 'vm.mem' },
    })
    expect(parse(['diff', 'a.ws', 'b.ws', '--first', '20ms', '--json'])).toEqual({
      arguments: { name: 'diff', a: 'a.ws', b: 'b.ws', firstMs: 20, json: true },
    })
    const merge = ['merge', 'a.ws', 'b.ws', '--memory', 'vm.mem', '-o', 'c.ws']
    expect(parse([...merge, '--min-sets', '1', '--disk', 'd.img', '--label', 'x'])).toEqual({
      arguments: {
        name: 'merge',
        files: ['a.ws', 'b.ws'],
        memory: 'vm.mem',
        disks: ['d.img'],
        output: 'c.ws',
        minSets: 1,
        label: 'x',
        trustWorkingSet: false,
        json: false,
      },
    })
    expect(parse(['verify', 'vm.ws', '--memory', 'vm.mem'])).toEqual({
      arguments: { name: 'verify', file: 'vm.ws', memory: 'vm.mem', json: false },
    })
    expect(parse(['doctor', '--json'])).toEqual({ arguments: { name: 'doctor', json: true } })
    expect(parse(['demo'])).toEqual({
      arguments: { name: 'demo', json: false, memoryBytes: 2 ** 28, rounds: 5 },
    })
    for (const [words, firecracker] of [
      [['--firecracker'], 'firecracker'],
      [['--firecracker', './fc'], './fc'],
    ] as const) {
      expect(parse(['demo', ...words])).toMatchObject({ arguments: { firecracker } })
    }
    expect(parse(['demo', '--memory-size', '1GiB', '--rounds', '3', '--keep', 'x'])).toMatchObject({
      arguments: { memoryBytes: 2 ** 30, rounds: 3, keep: 'x' },
    })
  })

  it('reads the options of the page cache, and advise', () => {
    const memory = ['--memory', 'vm.mem', '--disk', 'a.img', '--disk', 'b.img']
    const cached = ['--backend', 'page-cache', ...memory]
    expect(parse(['record', ...cached, '--output', 'vm.ws'])).toMatchObject({
      arguments: { backend: 'page-cache', socket: '', disks: ['a.img', 'b.img'] },
    })
    const restore = ['restore', ...cached, '--working-set', 'vm.ws', '--vcpus', 'threads']
    expect(parse(restore)).toMatchObject({
      arguments: { backend: 'page-cache', socket: '', vcpus: 'threads', disks: ['a.img', 'b.img'] },
    })
    const served = ['restore', ...serving, '--disk', 'a.img', '--working-set', 'vm.ws']
    expect(parse(served)).toMatchObject({ arguments: { backend: 'uffd', disks: ['a.img'] } })
    const advise = ['advise', 'vm.ws', '--memory', 'vm.mem']
    const asked = {
      name: 'advise',
      file: 'vm.ws',
      memory: 'vm.mem',
      trustWorkingSet: false,
      json: false,
    }
    expect(parse(advise)).toEqual({ arguments: { ...asked, vcpus: 'kvm', calibrate: true } })
    expect(parse([...advise, '--no-calibrate', '--vcpus', 'threads', '--json'])).toEqual({
      arguments: { ...asked, vcpus: 'threads', calibrate: false, json: true },
    })
  })

  it.each([
    [[], /^Usage: reap-trace COMMAND/],
    [['recrd'], /^error: unknown command 'recrd'\n\(Did you mean record\?\)\nhint: /],
    [['record'], /^error: required option '--memory <file>' not specified\nhint: .*record --help/],
    [['record', ...serving, '--output', 'x', '--for', '2'], /^error: .*2s, 500ms or 1m/],
    [['record', ...serving, '--output', 'x', '--for', '0s'], /^error: .*longer than 0/],
    [['record', ...serving, '--output', 'x', '--peer-uid', '-1'], /^error: .*integer/],
    [['record', ...serving, '--output', ''], /^error: .*must not be empty/],
    [['record', ...serving, '--output', 'x', '--'], /^error: a command is missing after --/],
    [
      ['record', './run.sh', ...serving, '--output', 'x'],
      /^error: .*\nhint: a command goes after --/,
    ],
    [
      ['record', '--memory', 'm', '--socket', 's'.repeat(108), '--output', 'x'],
      /^error: .*107 bytes/,
    ],
    [['restore', ...serving], /^error: required option '--working-set/],
    [
      ['record', '--memory', 'm', '--output', 'x'],
      /^error: required option '--socket <path>' not specified\nhint: .*record --help/,
    ],
    [
      ['restore', '--memory', 'm', '--backend', 'auto', '--working-set', 'x'],
      /^error: required option '--socket/,
    ],
    [
      ['record', ...serving, '--output', 'x', '--disk', 'd'],
      /^error: --disk needs --backend page-cache/,
    ],
    [
      [
        'record',
        '--backend',
        'page-cache',
        '--memory',
        'm',
        '--output',
        'x',
        '--interpose',
        '--',
        'y',
      ],
      /^error: --interpose is for a fault handler/,
    ],
    [['record', ...serving, '--output', 'x', '--backend', 'auto'], /^error: .*uffd, page-cache/],
    [['restore', ...serving, '--working-set', 'x', '--vcpus', 'tcg'], /^error: .*kvm, threads/],
    [
      ['restore', ...serving, '--working-set', 'x', ...Array(17).fill(['--disk', 'd']).flat()],
      /^error: .*It may be given at most 16 times/,
    ],
    [['restore', ...serving, '--working-set', 'x', '--disk', ''], /^error: .*must not be empty/],
    [
      ['record', ...serving, '--output', 'x', '--snapshot-id', ''],
      /^error: .*--snapshot-id.*must not be empty/,
    ],
    [
      ['record', ...serving, '--output', 'x', '--snapshot-id', 'x'.repeat(1025)],
      /^error: .*at most 1024 characters/,
    ],
    [['diff', 'x'], /^error: missing required argument 'b'/],
    [['merge', '--memory', 'm', '-o', 'x'], /^error: missing required argument 'files'/],
    [['merge', 'a', '--memory', 'm'], /^error: required option '-o, --output <file>'/],
    [['merge', 'a', '', '--memory', 'm', '-o', 'x'], /^error: .*must not be empty/],
    [
      ['merge', 'a', 'b', '--memory', 'm', '-o', 'x', '--min-sets', '3'],
      /^error: --min-sets is 3, and 2 files are given\nhint: .*merge --help/,
    ],
    [['merge', 'a', '--memory', 'm', '-o', 'x', '--min-sets', '0'], /^error: .*integer from 1/],
    [['advise', 'x'], /^error: required option '--memory/],
    [['advise', 'x', '--memory', 'm', '--', 'ls'], /^error: advise takes no command after --/],
    [
      ['restore', ...serving, '--working-set', 'x', '--on-bad-working-set', 'cry'],
      /^error: .*on-demand, fail/,
    ],
    [['inspect'], /^error: missing required argument 'file'/],
    [['inspect', 'a', 'b'], /^error: too many arguments.*\nhint: see "reap-trace inspect --help"/],
    [['inspect', 'a', '--', 'ls'], /^error: inspect takes no command after --/],
    [['verify', 'a', '--memroy', 'b'], /^error: /],
    [['demo', '--memory-size', '100M'], /^error: .*128M to 64G/],
    [['demo', '--memory-size', '256MB'], /^error: .*256M or 1GiB/],
    [['demo', '--rounds', '0'], /^error: .*1 to 1000/],
  ])('calls %j wrong usage', (words, message) => {
    const parsed = parse(words)
    expect(parsed).toMatchObject({ exitCode: 2, stdout: '' })
    expect('stderr' in parsed && parsed.stderr).toMatch(message)
  })

  it.each([
    [['--help'], /demo \[options\] +record and restore the embedded guest.*reap-trace doctor/s],
    [['help', 'record'], /--for <time>.*Ctrl-C.*REAP_TRACE_SOCKET.*\$ reap-trace record/s],
    [['--help'], /record {2}--backend page-cache.*reap-trace advise/s],
    [['record', '--help'], /Examples:/],
    [['restore', '--help'], /Examples:/],
    [
      ['record', '--help'],
      /REAP_TRACE_BACKEND_TYPE.*includes read-ahead.*\$ reap-trace record --backend page-cache.*--disk/s,
    ],
    [
      ['restore', '--help'],
      /REAP_TRACE_BACKEND_PATH.*--backend auto\nchooses.*--backend page-cache .*--disk.*--backend auto/s,
    ],
    [['advise', '--help'], /REAP_TRACE_CALIBRATION.*Examples:/s],
    [['inspect', '--help'], /Examples:/],
    [['verify', '--help'], /Example:/],
    [['doctor', '--help'], /Examples:/],
    [['demo', '--help'], /kernel-file.*Examples:/s],
    [['--version'], /^\d+\.\d+\.\d+\n$/],
  ])('prints help for %j', (words, text) => {
    const parsed = parse(words)
    expect(parsed).toMatchObject({ exitCode: 0, stderr: '' })
    expect('stdout' in parsed && parsed.stdout).toMatch(text)
  })

  it('keeps help within 100 columns', () => {
    for (const name of ['record', 'restore', 'advise', 'inspect', 'verify', 'doctor', 'demo']) {
      const parsed = parse([name, '--help'])
      const lines = 'stdout' in parsed ? parsed.stdout.split('\n') : []
      expect(lines.filter((line) => line.length > 100)).toEqual([])
    }
  })
})

describe('the terminal', () => {
  beforeEach(() => void vi.stubEnv('FORCE_COLOR', undefined).stubEnv('LC_ALL', 'C.UTF-8'))
  afterEach(() => void vi.unstubAllEnvs())

  function sink(isTTY: boolean, colors = false): Sink & { text: string } {
    return {
      text: '',
      isTTY,
      columns: 40,
      hasColors: () => colors,
      write(text: string) {
        this.text += text
      },
    }
  }

  it('prints results on stdout, and with --json only objects', () => {
    const [stdout, stderr] = [sink(false), sink(false)]
    const people = new Terminal({ json: false, stdout, stderr })
    people.print('pages 3')
    people.emit({ pages: 3 })
    expect(stdout.text).toBe('pages 3\n')
    stdout.text = ''
    const programs = new Terminal({ json: true, stdout, stderr })
    programs.print('pages 3')
    const atMs = monotonicMs()
    programs.emit({ pages: 3 }, atMs)
    const { time, ...rest } = JSON.parse(stdout.text)
    expect(rest).toEqual({ pages: 3, atMs, formatVersion: 1 })
    expect(time).toBe(new Date(time).toISOString())
    expect(Date.now() - Date.parse(time)).toBeCloseTo(monotonicMs() - atMs, -3)
  })

  it('says that stdout cannot be written, but not that its reader has gone', () => {
    vi.stubGlobal('process', Object.assign(Object.create(process), { exitCode: undefined }))
    onTestFinished(() => void vi.unstubAllGlobals())
    let fail = (_: Error) => {}
    const stderr = sink(false)
    const stdout = { ...sink(false), on: (_: string, listener: typeof fail) => (fail = listener) }
    new Terminal({ json: false, stdout, stderr })
    fail(Object.assign(new Error('write EPIPE'), { code: 'EPIPE' }))
    expect(stderr.text).toBe('')
    fail(Object.assign(new Error('write ENOSPC'), { code: 'ENOSPC' }))
    expect(stderr.text).toBe('the output cannot be written: write ENOSPC\n')
    expect(process.exitCode).toBe(1)
  })

  it('draws a live line only where somebody watches, and around what else is printed', () => {
    const [stdout, quiet, watched] = [sink(false), sink(false), sink(true)]
    const none = new Terminal({ json: false, stdout, stderr: quiet })
    none.note('Ctrl-C ends it')
    none.live(() => '12 faults').stop()
    expect(quiet.text).toBe('')

    const terminal = new Terminal({ json: false, stdout, stderr: watched })
    const live = terminal.live(() => 'x'.repeat(100))
    const clear = '\r\x1b[2K'
    const drawn = `${clear}${'x'.repeat(39)}`
    expect(watched.text).toBe(drawn)
    terminal.print('done')
    expect(watched.text).toBe(`${drawn}${clear}${drawn}`)
    live.stop()
    expect(watched.text).toBe(`${drawn}${clear}${drawn}${clear}`)
  })

  it('colours only what takes colours', () => {
    const text = (stdout: Sink) => new Terminal({ json: false, stdout }).style('red', 'late')
    expect(text(sink(false, true))).toBe('late')
    expect(text(sink(true, false))).toBe('late')
    expect(text(sink(true, true))).toBe('\x1b[31mlate\x1b[39m')
  })

  it.each([
    ['1', '\x1b[31mlate\x1b[39m', true],
    ['', '\x1b[31mlate\x1b[39m', true],
    ['0', 'late', false],
  ])('obeys FORCE_COLOR=%s, in a pipe and on a terminal', (value, text, hasColors) => {
    vi.stubEnv('FORCE_COLOR', value)
    for (const stdout of [sink(false), sink(true, !hasColors)]) {
      const terminal = new Terminal({ json: false, stdout, stderr: stdout })
      expect(terminal.hasColors).toBe(hasColors)
      expect(terminal.style('red', 'late')).toBe(text)
    }
  })

  it('takes a terminal of 0 columns for one of 80', () => {
    const stderr = { ...sink(true), columns: 0 }
    const terminal = new Terminal({ json: false, stdout: stderr, stderr })
    expect(terminal.columns).toBe(80)
    terminal.live(() => 'x'.repeat(100)).stop()
    expect(stderr.text).toContain('x'.repeat(79))
    expect(stderr.text).not.toContain('x'.repeat(80))
  })

  it('prints in ASCII where the locale has no UTF-8, and leaves JSON alone', () => {
    vi.stubEnv('LC_ALL', 'C')
    const stdout = sink(false)
    new Terminal({ json: false, stdout, stderr: stdout }).print('0x0 │·░▒▓█│ 2–3 1.5× … → ü')
    expect(stdout.text).toBe('0x0 |.:+%#| 2-3 1.5x ... > ü\n')
    new Terminal({ json: true, stdout, stderr: stdout }).emit({ label: '×' })
    expect(stdout.text).toContain('{"label":"×",')
  })

  it.each([
    [{}, '█'],
    [{ LANG: 'C.UTF-8' }, '█'],
    [{ LANG: 'de_DE.utf8' }, '█'],
    [{ LANG: 'POSIX' }, '#'],
    [{ LANG: 'C.UTF-8', LC_CTYPE: 'de_DE.ISO-8859-1' }, '#'],
    [{ LANG: 'C', LC_CTYPE: 'C', LC_ALL: 'en_US.UTF-8' }, '█'],
    [{ LANG: 'C.UTF-8', LC_ALL: '' }, '█'],
  ])('reads the encoding from %o', (env, text) => {
    expect(forLocale('█', env)).toBe(text)
  })

  it('says an error as a sentence, its code and a hint, and a bug with its stack', () => {
    const error = new ReapTraceError('ERR_SOCKET', 'cannot listen', { hint: 'Use another.' })
    expect(describeError('error', error)).toBe(
      'error: cannot listen [ERR_SOCKET]\nhint: Use another.',
    )
    expect(describeError('warning', new CliError('ERR_COMMAND_FAILED', 'it failed'), 'go on')).toBe(
      'warning: it failed; go on [ERR_COMMAND_FAILED]',
    )
    expect(describeError('error', new RangeError('oops'))).toMatch(
      /^error: RangeError: oops\n +at /,
    )
  })
})

describe('the map', () => {
  const set = (pages: number[], memoryPages: number) =>
    WorkingSet.fromTraces([
      new Trace({
        pageSize: 4096,
        memoryBytes: memoryPages * 4096,
        pages: Uint32Array.from(pages),
        timesUs: Uint32Array.from(pages, (_, i) => 1000 * (i + 1)),
      }),
    ])

  it('shows where pages are and when they are needed', () => {
    const map = mapMemory(set([1, 0, 5, 62], 64), 4)
    expect(map).toMatchObject({ columns: 4, cellBytes: 4096 })
    expect(drawMap(map, shade)[0]).toBe('  0x00000 │██  │')
    expect(drawMap(map, digit).slice(0, 2)).toEqual(['  0x00000 │30  │', '  0x04000 │ 6  │'])
    expect(drawMap(map, digit)[15]).toBe('  0x3c000 │  9 │')
  })

  it('puts many pages in a cell, and a short last row on its own', () => {
    const map = mapMemory(set([0, 1, 2, 3, 1000], 1025), 16)
    expect(map.cellBytes).toBe(8 * 4096)
    expect(map.cells).toHaveLength(129)
    expect(map.cells[0]).toMatchObject({ pages: 4, density: 0.5 })
    expect(drawMap(map, shade).at(-1)).toBe('  0x400000 │                │')
    expect(map.cells.reduce((sum, { pages }) => sum + pages, 0)).toBe(5)
  })

  it('sums up the first-touch order', () => {
    expect(summarizeOrder(set([4, 5, 6, 1], 64).order)).toEqual({
      halfMs: 2,
      mostMs: 4,
      lastMs: 4,
      sequentialShare: 2 / 3,
      backwardShare: 1 / 3,
    })
    expect(summarizeOrder(set([], 64).order)).toMatchObject({ lastMs: 0, sequentialShare: 0 })
  })
})

describe('the doctor', () => {
  it('knows which kernel is older', () => {
    expect(isKernelAtLeast('6.1.0-9-amd64', 5, 10)).toBe(true)
    expect(isKernelAtLeast('5.10.0', 5, 10)).toBe(true)
    expect(isKernelAtLeast('5.9.16', 5, 10)).toBe(false)
  })

  it('knows which Node is older', () => {
    const versions = ['20.18.3', '20.19.0', '21.7.3', '22.11.0', '22.12.0', '23.0.0', '24.1.0']
    expect(versions.filter(isNodeSupported)).toEqual(['20.19.0', '22.12.0', '23.0.0', '24.1.0'])
  })
})
