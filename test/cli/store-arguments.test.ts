import { describe, expect, it } from 'vitest'
import { parse } from '../../src/cli/arguments/program.js'
import { describeDrift } from '../../src/cli/session/store-events.js'
import { formatAge } from '../../src/cli/terminal/units.js'

const serving = ['--memory', 'vm.mem', '--socket', 'vm.sock']
const key = '0123456789abcdef'

describe('the arguments for a store', () => {
  it('are read in place of those for a working set', () => {
    const words = ['--store', 'dir', '--variant', 'GET /', '--parent', key, '--snapshot-id', 'x']
    const common = { store: 'dir', variant: 'GET /', parent: key, snapshotId: 'x' }
    expect(parse(['restore', ...serving, ...words, '--trace', 't.json'])).toMatchObject({
      arguments: {
        ...{ name: 'restore from store', ...common, record: false, backend: 'uffd' },
        ...{ vcpus: 'kvm', trace: 't.json', memory: 'vm.mem', socket: 'vm.sock', command: [] },
      },
    })
    const cached = ['--memory', 'vm.mem', '--backend', 'page-cache', '--store', 'dir']
    expect(parse(['restore', ...cached])).toMatchObject({
      arguments: { backend: 'page-cache', socket: '', variant: undefined },
    })
    expect(parse(['record', ...serving, ...words, '--for', '2s'])).toMatchObject({
      arguments: { name: 'restore from store', ...common, record: true, forMs: 2000 },
    })
    const explicit = ['--backend', 'uffd', '--store', 'dir']
    expect(parse(['record', ...serving, ...explicit])).toMatchObject({
      arguments: { record: true },
    })
  })

  it('name a snapshot by its key or by its files', () => {
    expect(parse(['store', 'ls', 'dir', '--json'])).toEqual({
      arguments: { name: 'store ls', store: 'dir', json: true },
    })
    const files = ['--memory', 'vm.mem', '--snapshot-id', 'x']
    const snapshot = { memoryFile: 'vm.mem', id: 'x' }
    for (const name of ['show', 'forget']) {
      expect(parse(['store', name, 'dir', key])).toEqual({
        arguments: { name: `store ${name}`, store: 'dir', snapshot: key, json: false },
      })
      expect(parse(['store', name, 'dir', ...files])).toMatchObject({ arguments: { snapshot } })
    }
    expect(parse(['store', 'export', 'dir', key, '-o', 'f'])).toEqual({
      arguments: { name: 'store export', store: 'dir', snapshot: key, output: 'f', json: false },
    })
    expect(parse(['store', 'import', 'dir', 'f', ...files])).toEqual({
      arguments: { name: 'store import', store: 'dir', file: 'f', snapshot, json: false },
    })
  })

  it.each([
    [['restore', ...serving], /^error: .*'--working-set <file>' or '--store <dir>' not specified/],
    [['record', ...serving], /^error: .*'-o, --output <file>' or '--store <dir>' not specified/],
    [
      ['restore', ...serving, '--store', 'd', '--working-set', 'x'],
      /^error: option '--store <dir>' cannot be used with option '--working-set <file>'/,
    ],
    [
      ['restore', ...serving, '--store', 'd', '--on-bad-working-set', 'fail'],
      /^error: .*'--on-bad-working-set <what>'/,
    ],
    [['restore', ...serving, '--store', 'd', '--disk', 'x'], /^error: .*'--disk <file>'/],
    [['record', ...serving, '--store', 'd', '-o', 'x'], /^error: .*'-o, --output <file>'/],
    [['record', ...serving, '--store', 'd', '--label', 'x'], /^error: .*'--label <text>'/],
    [
      ['record', ...serving, '--store', 'd', '--backend', 'page-cache'],
      /^error: --store needs a fault handler to record, not --backend page-cache/,
    ],
    [['restore', ...serving, '--working-set', 'x', '--variant', 'v'], /^error: --variant needs/],
    [['record', ...serving, '-o', 'x', '--parent', key], /^error: --parent needs --store/],
    [['record', ...serving, '--store', 'd', '--parent', 'x'], /^error: .*16 hexadecimal digits/],
    [['restore', '--memory', 'm', '--store', 'd'], /^error: required option '--socket/],
    [
      ['store', 'show', 'd'],
      /^error: a snapshot is missing.*\nhint: .*"reap-trace store show --help/,
    ],
    [['store', 'show', 'd', key, '--memory', 'm'], /^error: .*give one of them/],
    [['store', 'show', 'd', 'x'], /^error: .*16 hexadecimal digits.*store ls/],
    [['store', 'forget', 'd', '--snapshot-id', 'x'], /^error: --snapshot-id needs --memory/],
    [['store', 'export', 'd', key], /^error: required option '-o, --output <file>'/],
    [['store', 'import', 'd', 'f'], /^error: required option '--memory <file>'/],
    [['store', 'import', 'd', '--memory', 'm'], /^error: missing required argument 'file'/],
    [['store', 'ls', ''], /^error: .*must not be empty/],
    [['store', 'ls', 'd', '--', 'x'], /^error: store ls takes no command after --/],
    [['store', 'rm', 'd'], /^error: unknown command 'rm'\nhint: see "reap-trace store --help"/],
    [['store'], /^Usage: reap-trace store COMMAND DIR/],
  ])('are wrong usage: %j', (words, message) => {
    const parsed = parse(words)
    expect(parsed).toMatchObject({ exitCode: 2, stdout: '' })
    expect('stderr' in parsed && parsed.stderr).toMatch(message)
  })

  it('have help with examples within 100 columns', () => {
    const commands = ['ls', 'show', 'forget', 'export', 'import']
    for (const words of [[], ...commands.map((name) => [name])]) {
      const parsed = parse(['store', ...words, '--help'])
      const text = 'stdout' in parsed ? parsed.stdout : ''
      expect(text).toMatch(/Examples?:\n {2}\$ reap-trace store /)
      expect(text.split('\n').filter((line) => line.length > 100)).toEqual([])
    }
  })
})

it('a drift is told as a sentence', () => {
  expect(describeDrift({ kind: 'touches', variant: undefined })).toMatch(
    /^restores touch pages that/,
  )
  expect(describeDrift({ kind: 'waste', variant: 'GET /' })).toMatch(/^restores of "GET \/" no/)
})

it.each([
  [400, '0 seconds'],
  [1999, '1 second'],
  [119_000, '1 minute'],
  [7_300_000, '2 hours'],
  [200_000_000, '2 days'],
  [-5000, '0 seconds'],
])('the age of a date %i ms ago is %s', (ms, text) => {
  expect(formatAge(new Date(1e12).toISOString(), 1e12 + ms)).toBe(text)
})
