// @ts-check
// Root of the guest: busybox, the drivers of the virtio serial port, a runtime, one function. It is
// the initramfs itself, or a disk that a smaller initramfs mounts.
import { execFile, execFileSync } from 'node:child_process'
import { readdirSync, readFileSync, realpathSync } from 'node:fs'
import { basename, join } from 'node:path'
import { promisify } from 'node:util'
import { sharedLibraries } from './packages.mjs'
import { Archive, addHostFile, blockBytes, Staging } from './trees.mjs'

const portDrivers = ['virtio_pci', 'virtio_console']
// ext4 looks up crc32c by name, which modules.dep does not list.
const diskDrivers = ['virtio_blk', 'crc32c_generic', 'ext4']

/**
 * The files of the drivers and of what they need, in the order to load them; none for a kernel that
 * has them built in.
 * @param {string} modules
 * @param {string[]} drivers
 */
function driverFiles(modules, drivers) {
  const needs = new Map()
  for (const line of readFileSync(join(modules, 'modules.dep'), 'utf8').split('\n')) {
    const [file, after] = line.split(':')
    // Dependencies are listed nearest first, and are loaded in reverse order.
    if (file) needs.set(file, (after ?? '').split(' ').filter(Boolean).reverse())
  }
  const ordered = new Set()
  for (const driver of drivers) {
    const file = [...needs.keys()].find((path) => basename(path).split('.')[0] === driver)
    for (const path of file ? [...needs.get(file), file] : []) ordered.add(path)
  }
  return [...ordered].map((path) => join(modules, path))
}

/** @param {string} path */
function readModule(path) {
  const unpack = { '.xz': 'xz', '.zst': 'zstd', '.gz': 'gzip' }[/\.\w+$/.exec(path)?.[0] ?? '']
  if (!unpack) return readFileSync(path)
  return execFileSync(unpack, ['-dc', path], { maxBuffer: 64 * 2 ** 20 })
}

/**
 * Content of the root in addition to busybox and drivers.
 * @typedef {object} Userland
 * @property {import('./packages.mjs').Parts} parts
 * @property {string} guestFolder    its files go to the root of the image
 * @property {string[]} guestFiles   those of them that the function needs, relative
 * @property {string[]} command      what init becomes; its first word is the runtime
 * @property {string[]} files        what the runtime opens, by absolute paths
 */

/**
 * @param {import('./trees.mjs').Tree} tree
 * @param {string} busybox
 */
function addBase(tree, busybox) {
  for (const folder of ['/dev', '/proc', '/sys', '/tmp']) tree.folder(folder)
  addHostFile(tree, busybox, { as: '/usr/bin/busybox' })
}

/**
 * @param {import('./trees.mjs').Tree} tree
 * @param {string} modules
 * @param {string[]} drivers
 */
function addDrivers(tree, modules, drivers) {
  const names = driverFiles(modules, drivers).map((path) => {
    const name = `/modules.d/${basename(path).replace(/\.ko\..*/, '.ko')}`
    tree.file(name, readModule(path))
    return name
  })
  tree.file('/modules', Buffer.from(names.map((name) => `${name}\n`).join('')))
}

/**
 * @param {import('./trees.mjs').Tree} tree
 * @param {Userland} userland
 */
function addUserland(tree, { guestFolder, guestFiles, command, files }) {
  for (const file of guestFiles) addHostFile(tree, join(guestFolder, file), { as: `/${file}` })
  tree.file('/command', Buffer.from(`${command.join(' ')}\n`))
  const executable = command[0] ?? ''
  const libraries = [executable, ...files.filter((path) => path.endsWith('.so'))]
  for (const path of [executable, ...files, ...libraries.flatMap(sharedLibraries)]) {
    addHostFile(tree, path)
  }
  // On a merged /usr the executable names its loader by a path through this link.
  for (const name of readdirSync('/').filter((entry) => /^lib(64)?$/.test(entry))) {
    const target = realpathSync(`/${name}`)
    if (target !== `/${name}`) tree.link(`/${name}`, target)
  }
}

/**
 * An initramfs that is the guest's root.
 * @param {Userland} userland
 * @returns {Buffer}
 */
export function buildImage(userland) {
  const { busybox, modules } = userland.parts
  const archive = new Archive()
  archive.characterDevice('/dev/console', 5, 1)
  addBase(archive, busybox)
  addDrivers(archive, modules, portDrivers)
  addUserland(archive, userland)
  return archive.finish()
}

/**
 * An initramfs that only leads to the root on a disk.
 * @param {Userland} userland
 * @returns {Buffer}
 */
export function buildDiskLoader({ parts, guestFolder }) {
  const archive = new Archive()
  archive.characterDevice('/dev/console', 5, 1)
  archive.folder('/newroot')
  addBase(archive, parts.busybox)
  addDrivers(archive, parts.modules, [...portDrivers, ...diskDrivers])
  addHostFile(archive, join(guestFolder, 'init-disk'), { as: '/init' })
  return archive.finish()
}

/**
 * A root for read-only use, as ext4 in `disk`. mke2fs fills it from a folder: nothing is mounted,
 * and no root is needed. With a fixed UUID and hash seed, equal content has an equal layout.
 * @param {Userland} userland
 * @param {{ disk: string, dataFolder: string, stagingFolder: string, signal?: AbortSignal | undefined }} options
 */
export async function buildDisk(userland, { disk, dataFolder, stagingFolder, signal }) {
  const staging = new Staging(stagingFolder)
  addBase(staging, userland.parts.busybox)
  addDrivers(staging, userland.parts.modules, []) // the loader has the drivers
  addUserland(staging, userland)
  for (const name of readdirSync(dataFolder)) {
    addHostFile(staging, join(dataFolder, name), { as: `/data/${name}` })
  }
  const uuid = '72656170-2d74-4261-8365-2d6469736b00'
  const options = [
    ...['-q', '-t', 'ext4', '-b', `${blockBytes}`, '-i', '16384', '-m', '0', '-U', uuid],
    ...['-O', '^has_journal,^resize_inode', '-E', `root_owner=0:0,hash_seed=${uuid}`],
    ...['-d', stagingFolder],
  ]
  // A tenth and some MiB for inodes, folders and block tables.
  const kib = Math.ceil((staging.bytes * 1.1 + 8 * 2 ** 20) / 1024)
  await promisify(execFile)(userland.parts.mke2fs, [...options, disk, `${kib}k`], { signal })
}
