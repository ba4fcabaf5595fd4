import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { describe, expect, test } from 'vitest'
import { probeUserfaultfd, requireUserfaultfd } from '../src/binding/userfaultfd.js'
import {
  interposerEnvironment,
  planRestore,
  prefetchPageCache,
  programPath,
  ReapTraceError,
  recordPageCache,
  serve,
  Trace,
  WorkingSet,
} from '../src/index.js'

const snapshot = { memoryFile: '/nowhere/m' }
const good = { socketPath: '/nowhere/s', snapshot }
const set = WorkingSet.fromTraces([
  new Trace({
    pageSize: 4096,
    memoryBytes: 4096,
    pages: new Uint32Array(),
    timesUs: new Uint32Array(),
  }),
])

describe('misuse is a TypeError that names the option', () => {
  const cases: [string, unknown, RegExp][] = [
    ['no options', undefined, /serve\(\) expects an options object, got undefined/],
    ['no socket', { snapshot }, /"socketPath" of serve\(\) to be a non-empty path/],
    [
      'a socket path that is too long',
      { ...good, socketPath: 's'.repeat(108) },
      /"socketPath" .* at most 107 bytes/,
    ],
    ['an empty path', { ...good, socketPath: '' }, /"socketPath" .* got ""/],
    ['a path with a NUL', { ...good, socketPath: 'a\0b' }, /"socketPath"/],
    ['a number for a path', { ...good, socketPath: 5 }, /"socketPath" .* got 5/],
    ['a long text', { ...good, vm: 'x'.repeat(5000) }, /got "x{200}"… of 5000 characters$/],
    [
      'an unknown option',
      { ...good, verbose: true },
      /no option "verbose": it has snapshot, socket/,
    ],
    ['another spelling', { ...good, workingset: 'x' }, /did you mean "workingSet"\?/],
    ['a slip of the pen', { ...good, peerUID: 5 }, /did you mean "peerUid"\?/],
    ['a negative time', { ...good, connectTimeoutMs: -1 }, /a non-negative integer of .*, got -1/],
    ['a fraction', { ...good, connectTimeoutMs: 0.5 }, /a non-negative integer of .*, got 0.5/],
    ['a time too long', { ...good, connectTimeoutMs: 2 ** 31 }, /at most 2147483647, got/],
    ['an unknown policy', { ...good, vm: 'hope' }, /"vm" .* "kill" or "leave", got "hope"/],
    ['no pid', { ...good, vmm: 0 }, /"vmm" .* a pid, or an object with a pid, got 0/],
    ['too large a pid', { ...good, vmm: 2 ** 32 + 1 }, /"vmm" .* a pid, .* got 4294967297/],
    ['a process without a pid', { ...good, vmm: {} }, /"vmm" .* got Object/],
    ['no boolean', { ...good, record: 'yes' }, /"record" of serve\(\) to be a boolean, got "yes"/],
    ['no signal', { ...good, signal: {} }, /"signal" .* an AbortSignal, got Object/],
    ['no signal for the start', { ...good, startSignal: 4000 }, /"startSignal" .* got 4000/],
    ['no listener', { ...good, onEvent: true }, /"onEvent" of serve\(\) to be a function/],
    ['no working set', { ...good, workingSet: {} }, /a WorkingSet or the path of/],
  ]
  test.each(cases)('%s', async (_, options, message) => {
    const error = await serve(options as never).catch((error: unknown) => error)
    expect(error).toBeInstanceOf(TypeError)
    expect((error as Error).message).toMatch(message)
  })

  const verbs: [string, (snapshot: unknown) => unknown][] = [
    ['serve()', (snapshot) => serve({ ...good, snapshot } as never)],
    ['planRestore()', (snapshot) => planRestore({ snapshot } as never)],
    ['recordPageCache()', (snapshot) => recordPageCache({ snapshot } as never)],
    [
      'prefetchPageCache()',
      (snapshot) => prefetchPageCache({ snapshot, workingSet: set } as never),
    ],
    [
      'interposerEnvironment()',
      (snapshot) => interposerEnvironment({ ...good, snapshot } as never),
    ],
    ['WorkingSet.write()', (snapshot) => set.write('/nowhere/w', { snapshot } as never)],
    ['WorkingSet.verify()', (snapshot) => set.verify(snapshot as never)],
  ]
  const snapshots: [unknown, string][] = [
    [undefined, '"snapshot" of $ to be an object with a memoryFile, got undefined'],
    ['/nowhere/m', '"snapshot" of $ to be an object with a memoryFile, got "/nowhere/m"'],
    [[snapshot], '"snapshot" of $ to be an object with a memoryFile, got Array'],
    [{}, '"memoryFile" of the snapshot of $ to be a non-empty path, got undefined'],
    [{ memoryFile: '' }, '"memoryFile" of the snapshot of $ to be a non-empty path, got ""'],
    [
      { ...snapshot, diskImages: 'd' },
      '"diskImages" of the snapshot of $ to be an array of at most',
    ],
    [
      { ...snapshot, diskImages: [''] },
      '"diskImages" of the snapshot of $ to be an array of at most',
    ],
    [
      { ...snapshot, diskImages: Array(17).fill('d') },
      '"diskImages" of the snapshot of $ to be an array of at most 16 non-empty paths, got Array',
    ],
    [{ ...snapshot, id: '' }, '"id" of the snapshot of $ to be a string of 1 to 1024 characters'],
    [{ ...snapshot, diskimages: [] }, 'The snapshot of $ has no field "diskimages": did you mean'],
  ]
  describe.each(verbs)('in the snapshot of %s', (verb, call) => {
    test.each(snapshots)('as %j', async (snapshot, message) => {
      const error = await (async () => call(snapshot))().catch((error: unknown) => error)
      expect(error).toBeInstanceOf(TypeError)
      expect((error as Error).message).toContain(message.replace('$', verb))
    })
  })

  test('in the number of disk images that a set is written with', async () => {
    const written = set.write('/nowhere/w', { snapshot: { ...snapshot, diskImages: ['d'] } })
    await expect(written).rejects.toThrow(TypeError)
    await expect(written).rejects.toThrow(
      "Expected 0 diskImages in the snapshot of WorkingSet.write(), one for each of the set's disks, got 1",
    )
  })

  test('and so it is for the others', async () => {
    expect(() => WorkingSet.fromTraces([])).toThrow(TypeError)
    await expect(WorkingSet.read('')).rejects.toThrow(
      'Expected the argument "path" of WorkingSet.read() to be a non-empty path, got ""',
    )
    expect(() => programPath('x' as never)).toThrow(
      'Expected the argument "name" of programPath() to be "reap-guest" or "reap-microvm", got "x"',
    )
    expect(() => requireUserfaultfd({} as never)).toThrow(
      'Expected the field "device" of requireUserfaultfd() to be 0 or a negative errno',
    )
    const three = serve({ ...good, onStaleWorkingSet: 'no' } as never)
    await expect(three).rejects.toThrow('to be "warn", "rewrite" or "fail", got "no"')
  })
})

test('an error carries what is known of it, and no more', () => {
  const cause = new Error('below')
  const error = new ReapTraceError('ERR_SOCKET', 'no', { errno: -2, hint: 'do', cause })
  expect(error).toMatchObject({ name: 'ReapTraceError', code: 'ERR_SOCKET', errno: -2, hint: 'do' })
  expect(error.cause).toBe(cause)
  expect('syscall' in error).toBe(false)
  expect(error).toBeInstanceOf(Error)
})

test('an error survives JSON with its message', () => {
  const cause = new Error('below')
  const error = new ReapTraceError('ERR_SOCKET', 'no', { errno: -2, hint: 'do', cause })
  expect(JSON.parse(JSON.stringify({ error }))).toEqual({
    error: { name: 'ReapTraceError', code: 'ERR_SOCKET', message: 'no', errno: -2, hint: 'do' },
  })
})

test('a VMM whose process did not start is a failure, not misuse', async () => {
  const vmm = spawn('/nowhere/vmm')
  const started = once(vmm, 'spawn')
  await expect(serve({ ...good, vmm })).rejects.toMatchObject({
    code: 'ERR_VMM_EXITED',
    message: 'the VMM did not start: it has no pid',
  })
  await expect(started).rejects.toThrow('ENOENT')
})

test('a machine without userfaultfd gets a hint at what would provide it', () => {
  const nothing = { device: -2, syscall: -1, userModeOnly: -1, features: 0, hasSeccompFilter: true }
  const [EPERM, ENOSYS, ENOENT] = [-1, -38, -2]
  for (const [userModeOnly, device, hasSeccompFilter, hint] of [
    [EPERM, ENOENT, true, /^A seccomp filter forbids .*seccomp=unconfined/],
    [EPERM, ENOENT, false, /^Try: sudo setfacl/],
    [ENOSYS, EPERM, true, /^A seccomp filter forbids/],
    [ENOSYS, ENOENT, true, /without CONFIG_USERFAULTFD, or a seccomp filter hides it/],
    [ENOSYS, ENOENT, false, /without CONFIG_USERFAULTFD\.$/],
  ] as const) {
    const probe = { ...nothing, userModeOnly, device, hasSeccompFilter }
    expect(() => requireUserfaultfd(probe)).toThrow(
      expect.objectContaining({
        code: 'ERR_UFFD_UNAVAILABLE',
        errno: userModeOnly,
        hint: expect.stringMatching(hint),
      }),
    )
  }
  requireUserfaultfd({ ...nothing, userModeOnly: 0 })
  expect(probeUserfaultfd().features).toBeTypeOf('number')
})
