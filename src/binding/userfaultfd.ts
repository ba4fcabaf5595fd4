import { getSystemErrorName } from 'node:util'
import { ReapTraceError } from '../errors.js'
import { checkOptions, required, rules } from '../options.js'
import { native } from './addon.js'

/** Ways for this user to create a userfaultfd: each 0, or a negative errno. */
export interface UserfaultfdProbe {
  /**
   * Result of opening /dev/userfaultfd, which handles every fault, including those of KVM guests.
   */
  readonly device: number
  /** Result of the system call, which also handles every fault. */
  readonly syscall: number
  /**
   * Result of the unprivileged system call, which handles only user-mode faults, not those of KVM
   * guests.
   */
  readonly userModeOnly: number
  /** Feature bits of the kernel, from UFFDIO_API. */
  readonly features: number
}

/**
 * Probes how this user can create a userfaultfd. A handler needs none: the VMM creates it.
 *
 * @throws ReapTraceError `ERR_NATIVE_UNAVAILABLE`: the addon does not load.
 */
export function probeUserfaultfd(): UserfaultfdProbe {
  const [device, syscall, userModeOnly, features] = native().probe()
  return { device, syscall, userModeOnly, features: Number(features) }
}

const way = required({
  expected: '0 or a negative errno',
  accepts: (value) => Number.isSafeInteger(value) && (value as number) <= 0,
})
const probeRules = {
  device: way,
  syscall: way,
  userModeOnly: way,
  features: required(rules.count),
}

/**
 * Checks that a process can create a userfaultfd, as the demo's guest and the tests do.
 *
 * @throws TypeError for anything but a result of {@link probeUserfaultfd}.
 * @throws ReapTraceError `ERR_UFFD_UNAVAILABLE` if it cannot.
 */
export function requireUserfaultfd(probe: UserfaultfdProbe = probeUserfaultfd()): void {
  checkOptions('requireUserfaultfd()', probe, probeRules, 'field')
  const { device, syscall, userModeOnly } = probe
  if ([device, syscall, userModeOnly].includes(0)) return
  const name = getSystemErrorName(userModeOnly)
  throw new ReapTraceError(
    'ERR_UFFD_UNAVAILABLE',
    `userfaultfd is not available on this machine: ${name}`,
    {
      errno: userModeOnly,
      syscall: 'userfaultfd',
      hint:
        name === 'ENOSYS'
          ? 'The kernel was built without CONFIG_USERFAULTFD.'
          : 'Containers forbid it by default: docker run --security-opt seccomp=unconfined. Elsewhere: sudo setfacl -m u:$USER:rw /dev/userfaultfd. For details run `reap-trace doctor`.',
    },
  )
}
