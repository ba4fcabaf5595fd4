import { constants } from 'node:fs'
import { access, open, readFile, rm, unlink, writeFile } from 'node:fs/promises'
import { release, userInfo } from 'node:os'
import { join, resolve } from 'node:path'
import { getSystemErrorName } from 'node:util'
import {
  findingsFolder,
  interposerEnvironment,
  probeUserfaultfd,
  type ReapTraceError,
  requireUserfaultfd,
  serve,
} from '../../index.js'
import { GuestProcess } from '../demo/guest-process.js'
import { temporaryFolder } from '../session/temporary-folder.js'
import { formatCount } from '../terminal/units.js'

/** Result of a check. */
export interface Finding {
  /**
   * `warn`: some features need it; `fail`: reap-trace does not work without it; `skip`: not
   * checked, since an earlier check failed.
   */
  readonly status: 'ok' | 'warn' | 'fail' | 'skip'
  readonly detail: string
  /** Remedy, as a command if there is one. */
  readonly remedy?: string
}

export interface Check {
  readonly name: string
  /** Name of an earlier check that must pass first. */
  readonly needs?: string
  readonly run: () => Finding | Promise<Finding>
}

const ok = (detail: string): Finding => ({ status: 'ok', detail })
const warn = (detail: string, remedy: string): Finding => ({ status: 'warn', detail, remedy })
const fail = (detail: string, remedy: string): Finding => ({ status: 'fail', detail, remedy })

const text = (path: string): Promise<string | undefined> =>
  readFile(path, 'utf8').then(
    (content) => content.trim(),
    () => undefined,
  )

const user = (): string => {
  try {
    return userInfo().username
  } catch {
    return String(process.getuid?.())
  }
}

/** Whether a release such as "6.1.0-9-amd64" is at least `major`.`minor`. */
export function isKernelAtLeast(kernel: string, major: number, minor: number): boolean {
  const [a = 0, b = 0] = kernel.split(/[.-]/).map(Number)
  return a > major || (a === major && b >= minor)
}

function platform(): Finding {
  const detail = `${process.platform}-${process.arch}`
  return process.platform === 'linux'
    ? ok(detail)
    : fail(detail, 'userfaultfd is a feature of Linux')
}

/** Whether this version satisfies `engines` of package.json. */
export function isNodeSupported(version: string): boolean {
  const [major = 0, minor = 0] = version.split('.').map(Number)
  return (major === 20 && minor >= 19) || (major === 22 && minor >= 12) || major > 22
}

function node(): Finding {
  const detail = `Node ${process.versions.node}`
  return isNodeSupported(process.versions.node)
    ? ok(detail)
    : warn(`${detail} is older than what reap-trace supports`, 'install Node 22 or later')
}

function addon(): Finding {
  try {
    probeUserfaultfd()
    return ok('the native addon loads')
  } catch (error) {
    const { message, hint = 'reinstall reap-trace' } = error as Error & { hint?: string }
    return fail(message, hint)
  }
}

function kernel(): Finding {
  const version = release()
  if (!isKernelAtLeast(version, 5, 3)) return fail(`Linux ${version}`, 'run Linux 5.10 or later')
  return isKernelAtLeast(version, 5, 10)
    ? ok(`Linux ${version}`)
    : warn(`Linux ${version} is older than what Firecracker supports`, 'run Linux 5.10 or later')
}

async function pageSize(): Promise<Finding> {
  // The auxiliary vector: pairs of 64-bit words, AT_PAGESZ is 6.
  const vector = await readFile('/proc/self/auxv').catch(() => Buffer.alloc(0))
  let bytes = 0
  for (let i = 0; i + 16 <= vector.length; i += 16) {
    if (vector.readBigUInt64LE(i) === 6n) bytes = Number(vector.readBigUInt64LE(i + 8))
  }
  if (bytes === 0) return warn('the page size is unknown', 'mount /proc')
  return bytes === 4096
    ? ok('pages of 4096 bytes')
    : fail(`pages of ${bytes} bytes`, 'boot a kernel with pages of 4096 bytes')
}

const outcome = (errno: number) => (errno === 0 ? 'works' : getSystemErrorName(errno))

/** Whether a VMM can create a userfaultfd for a KVM guest. */
function userfaultfdOfVmm(): Finding {
  const { device, syscall, userModeOnly, hasSeccompFilter } = probeUserfaultfd()
  const detail = `/dev/userfaultfd ${outcome(device)}, the system call ${outcome(syscall)}`
  if (device === 0 || syscall === 0)
    return ok(`${detail}: a VMM run by ${user()} can use its Uffd backend`)
  // The call for user-mode faults needs no privilege, so it is a filter that refuses it.
  const remedy =
    userModeOnly !== 0 && hasSeccompFilter
      ? 'a seccomp filter forbids it: docker run --security-opt seccomp=unconfined'
      : getSystemErrorName(device) === 'ENOENT'
        ? 'sudo sysctl vm.unprivileged_userfaultfd=1'
        : `sudo setfacl -m u:${user()}:rw /dev/userfaultfd`
  return warn(
    `${detail}: a VMM run by ${user()} cannot use its Uffd backend (${user()} can run a handler)`,
    remedy,
  )
}

function userfaultfdOfDemo(): Finding {
  const probe = probeUserfaultfd()
  const { userModeOnly } = probe
  const detail = `userfaultfd for user-mode faults ${outcome(userModeOnly)}`
  if (userModeOnly === 0) return ok(`${detail}: the demo and the tests need no privilege`)
  try {
    requireUserfaultfd(probe)
  } catch (error) {
    return fail(detail, (error as ReapTraceError).hint ?? 'see the lines above')
  }
  return ok(`${detail}, and not needed`)
}

const EVENT_REMOVE = 1 << 3

function features(): Finding {
  const { features: bits, ...ways } = probeUserfaultfd()
  if (![ways.device, ways.syscall, ways.userModeOnly].includes(0)) {
    return { status: 'skip', detail: 'unknown, since this user cannot create a userfaultfd' }
  }
  return (bits & EVENT_REMOVE) !== 0
    ? ok(`userfaultfd features 0x${bits.toString(16)}, with the balloon's REMOVE event`)
    : warn(`userfaultfd features 0x${bits.toString(16)}`, 'run Linux 4.11 or later')
}

async function unprivileged(): Promise<Finding> {
  const value = await text('/proc/sys/vm/unprivileged_userfaultfd')
  const detail = `vm.unprivileged_userfaultfd = ${value ?? 'none'}`
  return ok(`${detail}; only a VMM without /dev/userfaultfd needs it, never a handler`)
}

async function kvm(): Promise<Finding> {
  try {
    await access('/dev/kvm', constants.R_OK | constants.W_OK)
    return ok('/dev/kvm can be used')
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'ENOENT'
      ? warn(
          'no /dev/kvm: Firecracker does not run here, the demo does',
          'sudo modprobe kvm_intel || sudo modprobe kvm_amd',
        )
      : warn(
          `${user()} may not use /dev/kvm: Firecracker needs it`,
          `sudo setfacl -m u:${user()}:rw /dev/kvm`,
        )
  }
}

async function hugePages(): Promise<Finding> {
  const folder = '/sys/kernel/mm/hugepages/hugepages-2048kB'
  const [all, free] = await Promise.all([
    text(`${folder}/nr_hugepages`),
    text(`${folder}/free_hugepages`),
  ])
  if (all === undefined)
    return warn('no huge pages of 2 MiB in this kernel', 'use guests with 4 KiB pages')
  return Number(all) > 0
    ? ok(`${free} of ${all} huge pages are free`)
    : warn(
        'no huge pages are reserved: guests on 2 MiB pages need them',
        'sudo sysctl vm.nr_hugepages=512',
      )
}

async function proofs(): Promise<Finding> {
  const { path, isUsable } = await findingsFolder()
  return isUsable
    ? ok(`results of comparisons are kept in ${path}`)
    : warn(
        `${path} cannot be created, or others may write to it: each process compares working sets again`,
        'set REAP_TRACE_PROOFS to a folder that only you can write to',
      )
}

async function limits(): Promise<Finding> {
  const lines = (await text('/proc/self/limits')) ?? ''
  const limit = (name: string) => new RegExp(`^${name} +(\\S+)`, 'm').exec(lines)?.[1] ?? 'unknown'
  const files = limit('Max open files')
  const detail = `${files} open files, ${limit('Max locked memory')} bytes of locked memory (none is needed)`
  return Number(files) < 1024
    ? warn(`${detail}: a VM takes about 8 files`, 'ulimit -n 65536')
    : ok(detail)
}

async function directReads(): Promise<Finding> {
  const folder = resolve('.')
  const path = join(folder, `.reap-trace-doctor-${process.pid}`)
  const { O_CREAT, O_EXCL, O_RDWR, O_DIRECT } = constants
  try {
    const file = await open(path, O_CREAT | O_EXCL | O_RDWR | O_DIRECT, 0o600)
    await file.close()
    return ok(`O_DIRECT works in ${folder}`)
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException
    return code === 'EINVAL'
      ? warn(
          `no O_DIRECT in ${folder}: cold reads go through the page cache`,
          'keep snapshots on ext4 or xfs',
        )
      : warn(
          `${folder} is not writable (${code}): O_DIRECT was not tried`,
          'run this where the snapshots are',
        )
  } finally {
    await unlink(path).catch(() => {})
  }
}

const PAGES = 256

interface Failure {
  readonly detail: string
  readonly remedy: string
  /** Output of the VM on stderr. */
  readonly stderr: string
}

/** Serves a tiny VM from its handshake to its exit. `begin` starts it and sends its handshake. */
async function serveTinyVm(
  begin: (vm: GuestProcess, socketPath: string, memoryFile: string) => Promise<unknown>,
  environment: (socketPath: string, memoryFile: string) => Record<string, string> = () => ({}),
): Promise<Failure | undefined> {
  let vm: GuestProcess | undefined
  let folder: string | undefined
  let failure: { detail: string; remedy: string } | undefined
  try {
    folder = await temporaryFolder('reap-trace-doctor-')
    const memoryFile = join(folder, 'memory')
    const socketPath = join(folder, 'socket')
    await writeFile(memoryFile, Buffer.alloc(PAGES * 4096, 'reap'), { mode: 0o600 })
    vm = await GuestProcess.start(environment(socketPath, memoryFile))
    const handler = await serve({
      socketPath,
      snapshot: { memoryFile },
      connectTimeoutMs: 5000,
      record: true,
    })
    try {
      await begin(vm, socketPath, memoryFile)
      const { wrongCount } = await vm.send<{ wrongCount: number }>(`verify ${memoryFile}`)
      const { state, stats } = await handler.close()
      if (wrongCount !== 0 || stats.faults !== PAGES || state !== 'vm-killed') {
        const detail = `${wrongCount} wrong pages, ${stats.faults} faults, ${state}`
        failure = { detail, remedy: 'please report this' }
      }
    } finally {
      await handler.close()
    }
  } catch (error) {
    const { message, hint } = error as Error & { hint?: string }
    failure = { detail: message, remedy: hint ?? 'see the lines above' }
  } finally {
    await vm?.kill()
    if (folder !== undefined) await rm(folder, { recursive: true, force: true })
  }
  return failure && { ...failure, stderr: vm?.stderr ?? '' }
}

/** Tests the handshake, the peer's pidfd, faults and the end of a VM. */
async function endToEnd(): Promise<Finding> {
  const failure = await serveTinyVm(async (vm, socketPath) => {
    await vm.send(`map 4096 ${PAGES * 4096}`)
    await vm.send(`handshake ${socketPath}`)
  })
  if (failure) return fail(failure.detail, failure.remedy)
  return ok(
    `a tiny VM was served ${formatCount(PAGES)} pages, with every byte correct, and killed through its pidfd`,
  )
}

/** Tests a VMM with the interposer. */
async function interposer(): Promise<Finding> {
  const failure = await serveTinyVm(
    (vm, _, memoryFile) => vm.send(`map-file ${memoryFile} 0 ${PAGES * 4096}`),
    (socketPath, memoryFile) => interposerEnvironment({ socketPath, snapshot: { memoryFile } }),
  )
  // Only a warning, since most VMMs do not need the interposer.
  if (failure) {
    const [, reason] = /^reap-trace: .* is not served: (.*);/m.exec(failure.stderr) ?? []
    return reason
      ? warn(`an interposed VMM run by ${user()} is not served: ${reason}`, 'see the lines above')
      : warn(failure.detail, failure.remedy)
  }
  const { device, syscall } = probeUserfaultfd()
  return device === 0 || syscall === 0
    ? ok(`an interposed VMM run by ${user()} is served every fault, with KVM and emulated`)
    : warn(
        `an interposed VMM run by ${user()} is served user-mode faults only: emulated guests, not KVM`,
        `sudo setfacl -m u:${user()}:rw /dev/userfaultfd`,
      )
}

export const checks: readonly Check[] = [
  { name: 'platform', run: platform },
  { name: 'node', run: node },
  { name: 'addon', needs: 'platform', run: addon },
  { name: 'kernel', needs: 'platform', run: kernel },
  { name: 'page size', needs: 'platform', run: pageSize },
  { name: 'uffd, VMM', needs: 'addon', run: userfaultfdOfVmm },
  { name: 'uffd, demo', needs: 'addon', run: userfaultfdOfDemo },
  { name: 'uffd, features', needs: 'addon', run: features },
  { name: 'uffd, sysctl', needs: 'platform', run: unprivileged },
  { name: 'end to end', needs: 'addon', run: endToEnd },
  { name: 'interposer', needs: 'addon', run: interposer },
  { name: 'kvm', needs: 'platform', run: kvm },
  { name: 'huge pages', needs: 'platform', run: hugePages },
  { name: 'O_DIRECT', needs: 'platform', run: directReads },
  { name: 'proofs', needs: 'addon', run: proofs },
  { name: 'limits', needs: 'platform', run: limits },
]
