import { describe, expect, test } from 'vitest'
import { probeUserfaultfd, requireUserfaultfd } from '../src/binding/userfaultfd.js'
import { ReapTraceError, serve, WorkingSet } from '../src/index.js'

const good = { socketPath: '/nowhere/s', memoryFile: '/nowhere/m' }

describe('misuse is a TypeError that names the option', () => {
  const cases: [string, unknown, RegExp][] = [
    ['no options', undefined, /serve\(\) expects an options object, got undefined/],
    ['no socket', { memoryFile: 'm' }, /"socketPath" of serve\(\) to be a non-empty path/],
    ['an empty path', { ...good, memoryFile: '' }, /"memoryFile" .* got ""/],
    ['a path with a NUL', { ...good, socketPath: 'a\0b' }, /"socketPath"/],
    ['a number for a path', { ...good, memoryFile: 5 }, /"memoryFile" .* got 5/],
    ['an unknown option', { ...good, verbose: true }, /no option "verbose": it has socketPath/],
    ['another spelling', { ...good, workingset: 'x' }, /did you mean "workingSet"\?/],
    ['a slip of the pen', { ...good, peerUID: 5 }, /did you mean "peerUid"\?/],
    ['a negative time', { ...good, connectTimeoutMs: -1 }, /a non-negative integer of .*, got -1/],
    ['a fraction', { ...good, connectTimeoutMs: 0.5 }, /a non-negative integer of .*, got 0.5/],
    ['a time too long', { ...good, connectTimeoutMs: 2 ** 31 }, /at the most 2147483647, got/],
    ['an unknown policy', { ...good, onFailure: 'hope' }, /"kill-vm" or "leave-vm", got "hope"/],
    ['no boolean', { ...good, record: 'yes' }, /"record" of serve\(\) to be a boolean, got "yes"/],
    ['no signal', { ...good, signal: {} }, /an AbortSignal, got Object/],
    ['no listener', { ...good, onEvent: true }, /"onEvent" of serve\(\) to be a function/],
    ['no working set', { ...good, workingSet: {} }, /a WorkingSet or the path of/],
  ]
  test.each(cases)('%s', async (_, options, message) => {
    const error = await serve(options as never).catch((error: unknown) => error)
    expect(error).toBeInstanceOf(TypeError)
    expect((error as Error).message).toMatch(message)
  })

  test('and so it is for the others', async () => {
    expect(() => WorkingSet.fromTraces([])).toThrow(TypeError)
    await expect(WorkingSet.read('')).rejects.toThrow(TypeError)
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

test('a machine without userfaultfd is told what would give it one', () => {
  const nothing = { device: -2, syscall: -1, userModeOnly: -1, features: 0n }
  expect(() => requireUserfaultfd(nothing)).toThrow(
    expect.objectContaining({
      code: 'ERR_UFFD_UNAVAILABLE',
      errno: -1,
      hint: expect.stringContaining('seccomp=unconfined'),
    }),
  )
  requireUserfaultfd({ ...nothing, userModeOnly: 0 })
  expect(probeUserfaultfd().features).toBeTypeOf('bigint')
})
