import { getSystemErrorName } from 'node:util'
import { ReapTraceError } from '../errors.js'
import { native } from './addon.js'

/** Ways in which a process of this user gets a userfaultfd: 0 or a negative errno each. */
export interface UserfaultfdProbe {
  /** By /dev/userfaultfd. Serves every fault, those of KVM's guests too. */
  readonly device: number
  /** By the system call. Serves every fault, too. */
  readonly syscall: number
  /** By the system call for faults from user mode alone, which needs no privilege: not for KVM. */
  readonly userModeOnly: number
  /** The kernel's features, as UFFDIO_API gives them. */
  readonly features: number
}

/**
 * Tries how a userfaultfd can be had here. A handler needs none of its own: it is the VMM that makes it.
 *
 * @throws ReapTraceError `ERR_NATIVE_UNAVAILABLE`: the addon does not load.
 */
export function probeUserfaultfd(): UserfaultfdProbe {
  const [device, syscall, userModeOnly, features] = native().probe()
  return { device, syscall, userModeOnly, features: Number(features) }
}

/**
 * Makes sure that a process can serve itself, as the demo's guest and the tests do.
 *
 * @throws ReapTraceError `ERR_UFFD_UNAVAILABLE` where there is no way to get one.
 */
export function requireUserfaultfd(probe: UserfaultfdProbe = probeUserfaultfd()): void {
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
          : 'A container forbids it by default: docker run --security-opt seccomp=unconfined. Elsewhere: sudo setfacl -m u:$USER:rw /dev/userfaultfd. `reap-trace doctor` says more.',
    },
  )
}
