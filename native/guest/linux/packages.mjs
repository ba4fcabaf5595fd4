// @ts-check
// Paths of the guest's parts on this machine; a missing one is reported with its apt command.
import { execFileSync } from 'node:child_process'
import { accessSync, constants, existsSync, readdirSync, realpathSync } from 'node:fs'

/**
 * @typedef {object} Parts
 * @property {string} qemu
 * @property {string} qemuVersion
 * @property {string} kernel       the image, such as /boot/vmlinuz-6.1.0-1-cloud-amd64
 * @property {string} modules      the folder of the kernel's modules
 * @property {string} busybox
 * @property {string} python
 * @property {string} mke2fs
 */

export class MissingPackages extends Error {
  /** @override */
  name = 'MissingPackages'
  /** @param {{ package: string, problem: string }[]} missing */
  constructor(missing) {
    const packages = missing.map((entry) => entry.package).join(' ')
    const problems = missing.map((entry) => `${entry.package}: ${entry.problem}`)
    super(`${problems.join('\n')}\nTo get them: sudo apt-get install -y ${packages}`)
  }
}

/**
 * @param {string[]} paths
 * @param {number} mode
 */
function firstOf(paths, mode = constants.R_OK) {
  return paths.find((path) => {
    try {
      accessSync(path, mode)
      return true
    } catch {
      return false
    }
  })
}

/** The newest kernel that has its modules; a cloud kernel before others: that is the one tested. */
function findKernel() {
  const releases = existsSync('/lib/modules') ? readdirSync('/lib/modules') : []
  const newestFirst = releases.sort((a, b) => b.localeCompare(a, 'en', { numeric: true }))
  const isCloud = (/** @type {string} */ release) => release.includes('cloud')
  const candidates = [
    ...newestFirst.filter(isCloud),
    ...newestFirst.filter((release) => !isCloud(release)),
  ]
  const release = candidates.find((name) => firstOf([`/boot/vmlinuz-${name}`]))
  return release && { kernel: `/boot/vmlinuz-${release}`, modules: `/lib/modules/${release}` }
}

/** @returns {Parts} */
export function findParts() {
  if (process.platform !== 'linux' || process.arch !== 'x64') {
    throw new Error('the Linux guest is for x86-64 Linux hosts')
  }
  const kernel = findKernel()
  const qemu = firstOf(['/usr/bin/qemu-system-x86_64'], constants.X_OK)
  const busybox = firstOf(['/usr/bin/busybox', '/bin/busybox'], constants.X_OK)
  // Debian's Python by its path: a version manager's may come first in PATH.
  const python = firstOf(['/usr/bin/python3'], constants.X_OK)
  const mke2fs = firstOf(['/usr/sbin/mke2fs', '/sbin/mke2fs'], constants.X_OK)
  const missing = []
  if (!qemu) missing.push({ package: 'qemu-system-x86', problem: 'no qemu-system-x86_64' })
  if (!kernel) {
    const problem = 'no readable /boot/vmlinuz-* with its /lib/modules'
    missing.push({ package: 'linux-image-cloud-amd64', problem })
  }
  if (!busybox || isDynamic(busybox)) {
    missing.push({ package: 'busybox-static', problem: 'no statically linked busybox' })
  }
  if (!python) missing.push({ package: 'python3', problem: 'no /usr/bin/python3' })
  if (!mke2fs) missing.push({ package: 'e2fsprogs', problem: 'no mke2fs' })
  if (!qemu || !kernel || !busybox || !python || !mke2fs || missing.length > 0) {
    throw new MissingPackages(missing)
  }
  const qemuVersion = execFileSync(qemu, ['--version'], { encoding: 'utf8' }).split('\n')[0] ?? ''
  return { qemu, qemuVersion, ...kernel, busybox: realpathSync(busybox), python, mke2fs }
}

/** @param {string} path */
function isDynamic(path) {
  return sharedLibraries(path).length > 0
}

/**
 * The libraries that the loader would map for `path`, by the names it looks them up under.
 * @param {string} path
 * @returns {string[]}
 */
export function sharedLibraries(path) {
  let printed = ''
  try {
    printed = execFileSync('ldd', [path], { encoding: 'utf8', stdio: 'pipe' })
  } catch {
    return [] // ldd exits with 1 for statically linked files
  }
  return [...printed.matchAll(/(\/\S+) \(0x/g)].map((match) => match[1] ?? '')
}
