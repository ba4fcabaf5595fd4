import { constants } from 'node:os'
import { expect, test } from 'vitest'
import { toError } from '../../src/binding/explain.js'
import type { NativeFailure } from '../../src/binding/failure.js'

const { EINVAL, EMFILE, ENFILE } = constants.errno
const socketPath = '/run/vm.sock'

function explain(failure: Partial<NativeFailure>, pid = 7): string {
  const whole = { errno: 0, syscall: '', check: '', offset: 0n, want: 0n, got: 0n, ...failure }
  const vm = { pid, state: 'vm-killed' } as const
  const { message, hint } = toError(whole as NativeFailure, { socketPath, vm })
  return `${message}. ${hint}`
}

test.each([
  [{ code: 'ERR_LIMIT', check: 'RLIMIT_NOFILE', errno: -EMFILE, syscall: 'accept' }, /ulimit -n/],
  [{ code: 'ERR_LIMIT', check: 'fs.file-max', errno: -ENFILE, syscall: 'accept' }, /fs\.file-max/],
  [{ code: 'ERR_SOCKET', check: 'replaced' }, /put something else in the socket's place/],
  [{ code: 'ERR_HANDSHAKE_INVALID', check: 'descriptor-lost' }, /did not deliver .*SELinux/],
  [{ code: 'ERR_PEER_REFUSED', check: 'process' }, /could not be killed .* pid namespace/],
  [{ code: 'ERR_VMM_UNSUPPORTED', check: 'fork' }, /fork events.* UFFD_FEATURE_EVENT_FORK/],
  [{ code: 'ERR_VMM_UNSUPPORTED', check: 'sigbus' }, /signals .* UFFD_FEATURE_SIGBUS/],
  [
    { code: 'ERR_FAULT_UNRESOLVED', errno: -EINVAL, syscall: 'read(userfaultfd)' },
    /^the faults of the guest cannot be read: .* UFFDIO_API/,
  ],
  [
    { code: 'ERR_VMM_UNSUPPORTED', check: 'minor-fault', offset: 0x7000n },
    /minor fault at address 0x7000.* UFFDIO_REGISTER_MODE_MINOR/,
  ],
  [
    { code: 'ERR_VMM_UNSUPPORTED', check: 'write-protect-fault' },
    /write-protect fault .* UFFDIO_REGISTER_MODE_WP/,
  ],
] as const)('says what failed and what helps: %o', (failure, words) => {
  expect(explain(failure)).toMatch(words)
})

test('names the VM by its pid, unless that is in another pid namespace', () => {
  const failure = { code: 'ERR_VMM_UNSUPPORTED', check: 'fork' } as const
  expect(explain(failure)).toMatch(/; the VM \(pid 7\) was killed\./)
  expect(explain(failure, 0)).toMatch(/; the VM was killed\./)
})
