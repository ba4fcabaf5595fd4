import { getSystemErrorName as errnoName } from 'node:util'
import { hints } from '../files.js'
import type {
  Explain,
  Explanation,
  FailureContext,
  NativeErrorCode,
  NativeFailure,
} from './failure.js'

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
      hint: "Pass the snapshot's guest memory file (Firecracker's mem_file_path). A block device does not show when its content changes: copy the memory to a file.",
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

function explainWorkingSet(
  failure: NativeFailure,
  { workingSetPath: path }: FailureContext,
): Explanation {
  const { check, offset } = failure
  const rule = fileRules[check]
  if (!rule) return explainFile(failure, 'the working-set file', path)
  const what = rule(failure)
  return {
    message: `${path} is not a valid working-set file: ${what} (check ${check}, at byte ${offset})`,
    hint:
      check === 'magic' || check === 'regular-file'
        ? 'Is it another file, such as the memory file, or that of "restore --trace" or "compare --json", which "reap-trace report" reads? If not, record it again.'
        : 'Record it again.',
    path,
  }
}

/** Describes why a file of a store cannot be locked. */
function explainStore(
  { check, errno, syscall }: NativeFailure,
  { storePath: path }: FailureContext,
): Explanation {
  if (check === 'regular-file') {
    return { message: `the store file ${path} is not a regular file`, hint: 'Remove it.', path }
  }
  const name = errnoName(errno)
  return {
    message: `cannot lock the store file ${path}: ${syscall} failed with ${name}`,
    hint: hints.write[name],
    path,
  }
}

/** Mode bit of a folder that many users write to, such as /tmp. */
const STICKY = 0o1000n

/** Describes a file that another user may have written. */
function explainWriters(
  { check, got, errno, syscall }: NativeFailure,
  { workingSetPath, tracePath, calibrationPath, storePath, exportPath }: FailureContext,
): Explanation {
  const path = storePath ?? exportPath ?? tracePath ?? calibrationPath ?? workingSetPath
  const trust =
    path === workingSetPath ? 'trustWorkingSet: true (--trust-working-set)' : 'trust: true'
  const isStore = storePath !== undefined
  const remedy = (first: string, second: string) =>
    isStore ? `${first}.` : `${first}, or pass ${trust} if ${second}.`
  switch (check) {
    case 'owner':
      return {
        message: `${path} belongs to uid ${got}, who may write anything into it`,
        hint: isStore
          ? 'A store is used by its owner: run as that user, or choose another folder.'
          : `Only files of this user and of root are used. ${remedy('Copy it', 'that user is trusted')}`,
        path,
      }
    case 'mode':
      return {
        message: `${path} has the mode 0${got.toString(8)}: other users may write anything into it`,
        hint:
          isStore && got & STICKY
            ? 'It is a shared folder: choose a folder inside it.'
            : remedy('Take that away with chmod go-w', 'they are all trusted'),
        path,
      }
    default:
      return { message: `${path}: ${syscall} failed with ${errnoName(errno)}`, path }
  }
}

/** Describes why the page cache of a file cannot be recorded. */
function explainPageCache(
  { check, got }: NativeFailure,
  { diskImage, memoryFile }: FailureContext,
): Explanation {
  const path = diskImage ?? memoryFile
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

/** What goes wrong with files: memory files, disk images, working sets, traces, stores. */
export const fileExplanations = {
  ERR_SOURCE_READ: (failure, { diskImage, memoryFile }) =>
    diskImage === undefined
      ? explainFile(failure, 'the memory file', memoryFile)
      : explainFile(failure, 'the disk image', diskImage),
  ERR_WORKING_SET_INVALID: explainWorkingSet,
  ERR_WORKING_SET_IO: explainWorkingSet,
  ERR_STORE_IO: explainStore,
  ERR_UNTRUSTED_FILE: explainWriters,
  ERR_PAGE_CACHE: explainPageCache,
} satisfies Partial<Record<NativeErrorCode, Explain>>
