import { getSystemErrorName as errnoName } from 'node:util'
import { ReapTraceError, type ReapTraceErrorCode } from '../errors.js'
import { hints } from '../files.js'
import type { FailureContext, NativeFailure } from './failure.js'

interface Explanation {
  readonly message: string
  readonly hint?: string | undefined
  readonly path?: string | undefined
}

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
function explainHandshake({ check, offset, want, got, errno, syscall }: NativeFailure): string {
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

function explainLimit({ check, errno, syscall }: NativeFailure): Explanation {
  return {
    message: `no file descriptor is left: ${syscall} failed with ${errnoName(errno)}`,
    hint:
      check === 'RLIMIT_NOFILE'
        ? 'Raise the limit of open files of this process (ulimit -n; LimitNOFILE in systemd).'
        : 'Raise the limit of open files of this host (sysctl fs.file-max).',
  }
}

function explainSocket(failure: NativeFailure, path: string): Explanation {
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

function explainPeer({ check, want, got }: NativeFailure, path: string | undefined): Explanation {
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

function explainFile(failure: NativeFailure, what: string, path: string | undefined): Explanation {
  const { check, offset, errno, syscall, want } = failure
  if (check === 'hangs') {
    return {
      message: `a read of ${what} ${path} has not returned for ${want} ms`,
      hint: 'Check its disk or its server.',
      path,
    }
  }
  if (check === 'cut-short') {
    return {
      message: `${what} ${path} was truncated inside the page at offset ${offset}`,
      hint: `${what.replace('the', 'A')} must not change while in use.`,
      path,
    }
  }
  if (check === 'changed') {
    return {
      message: `${what} ${path} was modified while a VM was served from it`,
      hint: 'A snapshot in use must not be modified: write the next one to another file.',
      path,
    }
  }
  if (check === 'group-checksum') {
    return {
      message: `${what} ${path} is damaged: the checksum of the group at offset ${offset} does not match`,
      hint: 'Record it again.',
      path,
    }
  }
  if (check === 'regular-file') {
    return {
      message: `${what} ${path} is not a regular file`,
      hint: "Pass the snapshot's guest memory file (Firecracker's mem_file_path). A block device does not tell when its content changes: copy the memory to a file.",
      path,
    }
  }
  const name = errno === 0 ? 'an unknown error' : errnoName(errno)
  const where = syscall === 'open' || syscall === 'mmap' ? '' : ` at offset ${offset}`
  return {
    message: `cannot read ${what} ${path}${where}: ${syscall} failed with ${name}`,
    hint: hints.read[name],
    path,
  }
}

/**
 * Descriptions of broken rules of native/engine/working_set/rules.cc; for disks, `got` is the
 * index.
 */
const fileRules: Readonly<Record<string, (failure: NativeFailure) => string>> = {
  'regular-file': () => 'it is not a regular file',
  magic: () => 'it does not begin with "REAPWSET"',
  truncated: ({ offset }) => `it ends at byte ${offset}`,
  version: ({ got }) => `its version is ${got >> 16n}.${got & 0xffffn}, not 3.0`,
  'header-checksum': () => 'the checksum of its header is wrong',
  reserved: () => 'a reserved byte is not zero',
  'header-bytes': () => 'its header has another size',
  granule: ({ got }) => `its pages have ${got} bytes, not 4096`,
  'page-size': ({ got }) => `its guest has pages of ${got} bytes`,
  'memory-bytes': ({ got }) => `its guest has ${got} bytes of memory, an invalid size`,
  'file-bytes': ({ want, got }) => `it has ${got} bytes, and its header says ${want}`,
  'index-offset': () => 'its index does not follow its header',
  'written-touches': () => 'more of its pages are written than touched',
  runs: () => 'its number of runs is 0',
  'manifest-bytes': ({ want }) => `its manifest has more than ${want} bytes`,
  'disk-count': ({ want }) => `it has more than ${want} disks`,
  'index-bytes': () => 'the size of its index does not match its tables, or is too large',
  'data-offset': () => 'the offset of its data is invalid',
  'page-count': () => 'the number of pages in its tables does not match its header',
  'index-checksum': () => 'the checksum of its index is wrong',
  'touch-page': () => 'a touched page is not the first of a guest page',
  'group-data': () => 'the data of a group does not match its extents',
  'group-extents': () => 'the extents of a group do not follow those of the group before',
  'group-rank': () => 'the ranks of a group do not follow those of the group before',
  'group-pages': () => 'a group has more than 4096 pages',
  'extent-count': () => 'an extent is in no group',
  'extent-order': () => 'the extents of a group are not in order',
  'extent-pages': () => 'an extent is empty or lies outside the memory',
  'extent-flags': () => 'an extent has an unknown flag',
  'extent-overlap': () => 'two extents overlap',
  'extent-rank': () => 'the rank of an extent is not that of a page in it',
  'extent-touches': () => 'the pages of a group do not match the touches',
  'disk-bytes': ({ got }) => `disk ${got} has an invalid size`,
  'disk-samples': ({ got }) => `disk ${got} has invalid samples`,
  'disk-name': ({ got }) => `disk ${got} has an invalid name`,
  'disk-touches': () => 'the number of disk touches does not match the disks',
  'disk-touch-page': ({ got }) => `a touched page lies outside disk ${got}`,
  'disk-touch-order': ({ got }) => `the times of disk ${got} are not in order`,
  'disk-touch-twice': ({ got }) => `a page of disk ${got} is touched twice`,
}

function explainWorkingSet(failure: NativeFailure, path: string | undefined): Explanation {
  const { check, offset } = failure
  const rule = fileRules[check]
  if (!rule) return explainFile(failure, 'the working-set file', path)
  const what = rule(failure)
  return {
    message: `${path} is not a valid working-set file: ${what} (check ${check}, at byte ${offset})`,
    hint:
      check === 'magic' || check === 'regular-file'
        ? 'Is it another file, such as the memory file or a trace? If not, record it again.'
        : 'Record it again.',
    path,
  }
}

/** Describes a file that another user may have written. */
function explainWriters(
  { check, got, errno, syscall }: NativeFailure,
  { workingSetPath, tracePath, calibrationPath }: FailureContext,
): Explanation {
  const path = tracePath ?? calibrationPath ?? workingSetPath
  const trust =
    path === workingSetPath ? 'trustWorkingSet: true (--trust-working-set)' : 'trust: true'
  switch (check) {
    case 'owner':
      return {
        message: `${path} belongs to uid ${got}, who may write anything into it`,
        hint: `Only files of this user and of root are used. Copy it, or pass ${trust} if that user is trusted.`,
        path,
      }
    case 'mode':
      return {
        message: `${path} has the mode 0${got.toString(8)}: other users may write anything into it`,
        hint: `Take that away with chmod go-w, or pass ${trust} if they are all trusted.`,
        path,
      }
    default:
      return { message: `${path}: ${syscall} failed with ${errnoName(errno)}`, path }
  }
}

/** Describes why the page cache of a file cannot be recorded. */
function explainPageCache({ check, got }: NativeFailure, path: string | undefined): Explanation {
  switch (check) {
    case 'hidden':
      return {
        message: `the kernel does not tell this user which pages of ${path} are in the page cache`,
        hint: 'Record as the owner of the file, or as a user who may write to it.',
        path,
      }
    case 'mapped':
      return {
        message: `${path} cannot be evicted from the page cache: process ${got} maps it`,
        hint: 'End the VMs that were restored from it, or record a copy of the file.',
        path,
      }
    default:
      return {
        message: `${path} cannot be evicted from the page cache: ${got} pages stay`,
        hint: 'Files on tmpfs cannot be evicted. On other file systems a process may be reading the file.',
        path,
      }
  }
}

/** Describes why the engine, or a task of it, has not started. */
function explainStart({ syscall, errno }: NativeFailure): Explanation {
  const failed = `${syscall} failed with ${errnoName(errno)}`
  return syscall === 'pthread_create'
    ? {
        message: `no thread can be started: ${failed}`,
        hint: "Is the limit of threads reached? It is RLIMIT_NPROC (ulimit -u) for a user, pids.max for a cgroup (systemd's TasksMax). Or is there no memory for a stack?",
      }
    : { message: `the engine cannot start: ${failed}` }
}

function explainCause(
  code: ReapTraceErrorCode,
  failure: NativeFailure,
  context: FailureContext,
): Explanation {
  switch (code) {
    case 'ERR_NATIVE_UNAVAILABLE':
      return explainStart(failure)
    case 'ERR_LIMIT':
      return explainLimit(failure)
    case 'ERR_SOCKET':
      return explainSocket(failure, context.socketPath ?? '')
    case 'ERR_HANDSHAKE_TIMEOUT':
      return explainTimeout(failure, context)
    case 'ERR_VMM_EXITED':
      return {
        message: `the VMM (pid ${failure.got}) exited before it connected to ${context.socketPath}`,
        hint: 'See the log of the VMM. If it forks and exits, pass the pid of the child.',
        path: context.socketPath,
      }
    case 'ERR_HANDSHAKE_INVALID':
      return {
        message: `invalid handshake on ${context.socketPath}: ${explainHandshake(failure)}`,
        hint: handshakeHints[failure.check],
        path: context.socketPath,
      }
    case 'ERR_PEER_REFUSED':
      return explainPeer(failure, context.socketPath)
    case 'ERR_VMM_UNSUPPORTED':
      return explainUnsupported(failure)
    case 'ERR_SOURCE_READ':
      return context.diskImage === undefined
        ? explainFile(failure, 'the memory file', context.memoryFile)
        : explainFile(failure, 'the disk image', context.diskImage)
    case 'ERR_WORKING_SET_INVALID':
    case 'ERR_WORKING_SET_IO':
      return explainWorkingSet(failure, context.workingSetPath)
    case 'ERR_UNTRUSTED_FILE':
      return explainWriters(failure, context)
    case 'ERR_PAGE_CACHE':
      return explainPageCache(failure, context.diskImage ?? context.memoryFile)
    default:
      return explainFault(failure)
  }
}

/** Message, remedy and path for a native failure. */
function explain(
  code: ReapTraceErrorCode,
  failure: NativeFailure,
  context: FailureContext,
): Explanation {
  const explanation = explainCause(code, failure, context)
  const { vm } = context
  // 0: in another pid namespace.
  const name = vm?.pid ? `the VM (pid ${vm.pid})` : 'the VM'
  if (vm?.state === 'vm-killed') {
    return { ...explanation, message: `${explanation.message}; ${name} was killed` }
  }
  if (vm?.state === 'vm-left') {
    return {
      ...explanation,
      message: `${explanation.message}; ${name} was left without a handler and will freeze at its next fault`,
    }
  }
  return explanation
}

/** Turns a native failure into the error for the user. */
export function toError(failure: NativeFailure, context: FailureContext): ReapTraceError {
  const { code } = failure
  const { message, hint, path } = explain(code, failure, context)
  return new ReapTraceError(code, message, {
    hint,
    path,
    errno: failure.errno === 0 ? undefined : failure.errno,
    syscall: failure.syscall === '' ? undefined : failure.syscall,
    check: failure.check === '' ? undefined : failure.check,
    offset:
      failure.offset === 0n && (failure.check === '' || code === 'ERR_PAGE_CACHE')
        ? undefined
        : Number(failure.offset),
  })
}
