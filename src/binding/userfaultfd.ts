import { readFileSync } from 'node:fs'
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
  /** Feature bits of the kernel, from UFFDIO_API; 0 if none of the ways works. */
  readonly features: number
  /** Whether a seccomp filter restricts this process, as in most containers. */
  readonly hasSeccompFilter: boolean
}

/**
 * Probes how this user can create a userfaultfd. A handler needs none: the VMM creates it.
 *
 * @throws ReapTraceError `ERR_NATIVE_UNAVAILABLE`: the addon does not load.
 */
export function probeUserfaultfd(): UserfaultfdProbe {
  const [device, syscall, userModeOnly, features] = native().probe()
  return {
    device,
    syscall,
    userModeOnly,
    features: Number(features),
    hasSeccompFilter: hasSeccompFilter(),
  }
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
  hasSeccompFilter: required(rules.boolean),
}

/** Mode 2 of proc_pid_status(5). */
function hasSeccompFilter(): boolean {
  try {
    return /^Seccomp:\s*2$/m.test(readFileSync('/proc/self/status', 'utf8'))
  } catch {
    return false
  }
}

const UNCONFINED = 'docker run --security-opt seccomp=unconfined'

/** Remedy where even the system call for user-mode faults, which needs no privilege, is refused. */
function remedy({ device, hasSeccompFilter }: UserfaultfdProbe, name: string): string {
  // The device exists if the kernel was built with userfaultfd, since Linux 6.1.
  const isBuiltIn = getSystemErrorName(device) !== 'ENOENT'
  if (hasSeccompFilter && (name === 'EPERM' || isBuiltIn)) {
    return `A seccomp filter forbids the system call userfaultfd, as containers do by default: ${UNCONFINED}. For details run \`reap-trace doctor\`.`
  }
  if (name === 'ENOSYS') {
    const filter = hasSeccompFilter ? `, or a seccomp filter hides it: ${UNCONFINED}` : ''
    return `The kernel was built without CONFIG_USERFAULTFD${filter}.`
  }
  return 'Try: sudo setfacl -m u:$USER:rw /dev/userfaultfd. For details run `reap-trace doctor`.'
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
      hint: remedy(probe, name),
    },
  )
}
