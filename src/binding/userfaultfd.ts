import { getSystemErrorName } from 'node:util'
import { ReapTraceError } from '../errors.js'
import { native } from './addon.js'

/** The three ways to get a userfaultfd: 0 or a negative errno each. */
export interface UserfaultfdProbe {
  readonly device: number
  readonly syscall: number
  readonly userModeOnly: number
  readonly features: bigint
}

export function probeUserfaultfd(): UserfaultfdProbe {
  const [device, syscall, userModeOnly, features] = native().probe()
  return { device, syscall, userModeOnly, features }
}

/**
 * Makes sure that a process can serve itself, as the demo's guest and the tests do.
 *
 * @throws ReapTraceError `ERR_UFFD_UNAVAILABLE` when this machine gives no userfaultfd in any way.
 */
export function requireUserfaultfd(probe: UserfaultfdProbe = probeUserfaultfd()): void {
  const { device, syscall, userModeOnly } = probe
  if ([device, syscall, userModeOnly].includes(0)) return
  const name = getSystemErrorName(userModeOnly)
  throw new ReapTraceError('ERR_UFFD_UNAVAILABLE', `this machine gives no userfaultfd: ${name}`, {
    errno: userModeOnly,
    syscall: 'userfaultfd',
    hint:
      name === 'ENOSYS'
        ? 'The kernel was built without CONFIG_USERFAULTFD.'
        : 'A container forbids it by default: docker run --security-opt seccomp=unconfined. Elsewhere: sudo setfacl -m u:$USER:rw /dev/userfaultfd. `reap-trace doctor` says more.',
  })
}
