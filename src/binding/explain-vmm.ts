import { getSystemErrorName as errnoName } from 'node:util'
import type {
  Explain,
  Explanation,
  FailureContext,
  NativeErrorCode,
  NativeFailure,
} from './failure.js'

const handshakeKeys = [
  'base_host_virt_addr',
  'size',
  'offset',
  'page_size_kib',
  'page_size',
  'is_guest_memfd',
]

const hex = (value: bigint) => `0x${value.toString(16)}`

/** Describes a rejected handshake; native/engine/handshake/parser.h defines the numbers. */
function describeHandshake({ check, offset, want, got, errno, syscall }: NativeFailure): string {
  const key = handshakeKeys[Number(want)] ?? 'a key'
  const region = `region ${offset}`
  switch (check) {
    case 'connection':
      return `${syscall} failed with ${errnoName(errno)}`
    case 'truncated':
      return `the peer closed the connection after ${offset} bytes, before the message was complete`
    case 'too-large':
      return `the message is longer than ${want} bytes`
    case 'descriptors':
      return got === 0n
        ? 'no file descriptor came with the message'
        : `${got} file descriptors came with the message, expected one`
    case 'descriptor-lost':
      return 'the kernel did not deliver the file descriptor that came with the message'
    case 'not-a-userfaultfd':
      return 'the file descriptor that came with the message is not a userfaultfd'
    case 'json':
      return `the message is not JSON at byte ${offset}`
    case 'utf8':
      return `the message is not UTF-8 at byte ${offset}`
    case 'depth':
      return `the message nests deeper than ${want} levels at byte ${offset}`
    case 'not-an-array':
      return 'the message is not a JSON array'
    case 'region-count':
      return got === 0n ? 'the message has no region' : `the message has more than ${want} regions`
    case 'region-type':
      return `${region} is not an object`
    case 'region-key-missing':
      return `${region} has no ${key}`
    case 'region-key-type':
      return `${key} of ${region} is not a value of its type`
    case 'region-key-twice':
      return `${region} has a duplicate ${key}`
    case 'guest-memfd':
      return `${region} is guest_memfd memory, which cannot be served by installing pages`
    case 'page-size-disagrees':
      return `${region} says page_size ${want} and page_size_kib ${got} (which is in bytes too)`
    case 'page-size':
      return `${region} has pages of ${got} bytes; ${want} and 2097152 can be served`
    case 'page-size-mixed':
      return `${region} has pages of ${got} bytes, region 0 of ${want}`
    case 'region-empty':
      return `${region} is empty`
    case 'alignment':
      return `${hex(got)} in ${region} is not a multiple of its page size, ${want}`
    case 'address-overflow':
      return `${region} is larger than the address space`
    case 'memory-size':
      return `the regions add up to ${got} bytes and the memory file has ${want}`
    case 'offset-gap':
      return `${region} starts at offset ${got} of the memory file and leaves a gap from ${want}`
    case 'offset-overlap':
      return `${region} starts at offset ${got} of the memory file, inside another that ends at ${want}`
    case 'region-overlap':
      return `${region} at ${hex(got)} overlaps another that ends at ${hex(want)}`
    default:
      return `the check "${check}" failed`
  }
}

const handshakeHints: Readonly<Record<string, string>> = {
  'memory-size': 'Is this the memory file of the snapshot that is being restored?',
  'descriptor-lost': 'A security module (SELinux, AppArmor) may forbid it: see its log.',
}

function explainSocket(
  failure: NativeFailure,
  { socketPath: path = '' }: FailureContext,
): Explanation {
  if (failure.check === 'replaced') {
    return {
      message: `cannot listen on ${path}: another process put something else in the socket's place`,
      hint: 'Use one socket path for each restore, in a folder that others cannot write to.',
      path,
    }
  }
  const name = errnoName(failure.errno)
  const hints: Record<string, string> = {
    EADDRINUSE:
      failure.check === 'in-use'
        ? 'Another process listens there, another user left it behind, or the path is not a socket: use one socket path for each restore.'
        : 'Use one socket path for each restore.',
    EACCES: 'The folder of the socket must be writable.',
    ENOENT: 'The folder of the socket must exist.',
    EPERM:
      failure.check === 'peer-uid'
        ? 'Only root may give the socket to another uid: run as root or leave out peerUid.'
        : '',
  }
  return {
    message: `cannot listen on ${path}: ${failure.syscall} failed with ${name}`,
    hint: hints[name] || undefined,
    path,
  }
}

function explainTimeout({ check }: NativeFailure, context: FailureContext): Explanation {
  const path = context.socketPath
  return check === 'connect'
    ? {
        message: `no VMM connected to ${path} within ${context.connectTimeoutMs} ms`,
        hint: 'Was PUT /snapshot/load issued, with this path as backend_path as the VMM sees it?',
        path,
      }
    : {
        message: `a process connected to ${path} but did not complete its handshake in time`,
        hint: 'Firecracker sends its regions and its userfaultfd in one message, right after it connects.',
        path,
      }
}

function explainPeer(
  { check, want, got }: NativeFailure,
  { socketPath: path }: FailureContext,
): Explanation {
  return check === 'uid'
    ? {
        message: `uid ${got} connected to ${path}, but only uid ${want} and root are allowed to`,
        hint: `If the VMM runs as uid ${got} (under a jailer), pass peerUid: ${got}.`,
        path,
      }
    : {
        message: `the process that connected to ${path} could not be killed from here`,
        hint: "It is in another pid namespace: run the handler in the VMM's namespace or one above it, or pass vm: 'leave'.",
        path,
      }
}

function explainUnsupported({ check, offset }: NativeFailure): Explanation {
  if (check === 'fork') {
    return {
      message: 'the VMM asks its userfaultfd for fork events, and a child would not be served',
      hint: 'Leave UFFD_FEATURE_EVENT_FORK out of the features of UFFDIO_API.',
    }
  }
  if (check === 'sigbus') {
    return {
      message: 'the VMM asks its userfaultfd for signals in place of page faults',
      hint: 'Leave UFFD_FEATURE_SIGBUS out of the features of UFFDIO_API.',
    }
  }
  const [kind, mode] = check === 'minor-fault' ? ['minor', 'MINOR'] : ['write-protect', 'WP']
  return {
    message: `the guest had a ${kind} fault at address ${hex(offset)}, and only missing pages can be served`,
    hint: `Register the guest memory without UFFDIO_REGISTER_MODE_${mode}.`,
  }
}

function explainFault(failure: NativeFailure): Explanation {
  const { check, offset, errno, syscall } = failure
  if (check === 'address') {
    return { message: `the guest faulted at ${hex(offset)}, which is in none of its regions` }
  }
  const name = errnoName(errno)
  if (syscall === 'read(userfaultfd)') {
    return {
      message: `the faults of the guest cannot be read: ${syscall} failed with ${name}`,
      hint: name === 'EINVAL' ? 'The VMM has to call UFFDIO_API on its userfaultfd.' : undefined,
    }
  }
  const doing =
    check === 'prefetch' || check === 'detach'
      ? `at offset ${hex(offset)} of the memory file`
      : `at address ${hex(offset)}`
  return {
    message: `a page ${doing} cannot be installed: ${syscall} failed with ${name}`,
    hint:
      name === 'ENOMEM'
        ? "2 MiB pages come from the hugepage pool, others are charged to the VMM's memory cgroup: raise vm.nr_hugepages or memory.max."
        : undefined,
  }
}

/** What goes wrong with a VMM: at its socket, in its handshake, and at its faults. */
export const vmmExplanations = {
  ERR_SOCKET: explainSocket,
  ERR_HANDSHAKE_TIMEOUT: explainTimeout,
  ERR_VMM_EXITED: ({ got }, { socketPath }) => ({
    message: `the VMM (pid ${got}) exited before it connected to ${socketPath}`,
    hint: 'See the log of the VMM. If it forks and exits, pass the pid of the child.',
    path: socketPath,
  }),
  ERR_HANDSHAKE_INVALID: (failure, { socketPath }) => ({
    message: `invalid handshake on ${socketPath}: ${describeHandshake(failure)}`,
    hint: handshakeHints[failure.check],
    path: socketPath,
  }),
  ERR_PEER_REFUSED: explainPeer,
  ERR_VMM_UNSUPPORTED: explainUnsupported,
  ERR_FAULT_UNRESOLVED: explainFault,
} satisfies Partial<Record<NativeErrorCode, Explain>>
