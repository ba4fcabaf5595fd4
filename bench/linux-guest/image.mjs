// @ts-check
// The guest's initramfs: busybox, the drivers of the virtio serial port, a runtime, one function.
import { execFileSync } from 'node:child_process'
import { readdirSync, readFileSync, realpathSync, statSync } from 'node:fs'
import { basename, dirname, join } from 'node:path'
import { sharedLibraries } from './packages.mjs'

const drivers = ['virtio_pci', 'virtio_console']

/**
 * A cpio archive of the kind the kernel unpacks ("newc"). Written here for two things cpio(1) cannot
 * do for a user who is not root: device nodes, and everything owned by root.
 */
class Archive {
  #parts = /** @type {Buffer[]} */ ([])
  #names = new Set()

  /**
   * @param {string} name
   * @param {number} mode
   * @param {Buffer} [content]
   * @param {{ mtime?: number, device?: [number, number] }} [options]
   */
  #add(name, mode, content = Buffer.alloc(0), { mtime = 0, device = [0, 0] } = {}) {
    if (this.#names.has(name)) return
    this.#names.add(name)
    const links = 1
    const owner = [0, 0]
    const hostDevice = [0, 0]
    const ino = this.#names.size
    const nameSize = Buffer.byteLength(name) + 1
    const checksum = 0
    const fields = [ino, mode, ...owner, links, mtime, content.length, ...hostDevice]
    const header = [...fields, ...device, nameSize, checksum]
      .map((field) => field.toString(16).padStart(8, '0'))
      .join('')
    this.#parts.push(padded(Buffer.from(`070701${header}${name}\0`)), padded(content))
  }

  /** @param {string} path */
  folder(path) {
    const name = path.replace(/^\/|\/$/g, '')
    if (name === '' || this.#names.has(name)) return
    this.folder(dirname(`/${name}`))
    this.#add(name, 0o40755)
  }

  /**
   * @param {string} path
   * @param {Buffer} content
   * @param {{ mode?: number, mtime?: number }} [options]
   */
  file(path, content, { mode = 0o644, mtime = 0 } = {}) {
    this.folder(dirname(path))
    this.#add(path.slice(1), 0o100000 | (mode & 0o777), content, { mtime })
  }

  /**
   * A file of the host, under its own path. Folders are taken for what they really are, since the
   * image has no /lib → /usr/lib. Python trusts a .pyc only with its source's time.
   * @param {string} path
   */
  hostFile(path, { as = join(realpathSync(dirname(path)), basename(path)) } = {}) {
    const { mode, mtimeMs } = statSync(path)
    this.file(as, readFileSync(path), { mode, mtime: Math.floor(mtimeMs / 1000) })
  }

  /**
   * @param {string} path
   * @param {string} target
   */
  link(path, target) {
    this.folder(dirname(path))
    this.#add(path.slice(1), 0o120777, Buffer.from(target))
  }

  /**
   * @param {string} path
   * @param {number} major
   * @param {number} minor
   */
  characterDevice(path, major, minor) {
    this.folder(dirname(path))
    this.#add(path.slice(1), 0o20600, undefined, { device: [major, minor] })
  }

  finish() {
    this.#add('TRAILER!!!', 0)
    return Buffer.concat(this.#parts)
  }
}

/** @param {Buffer} part */
function padded(part) {
  const rest = part.length % 4
  return rest === 0 ? part : Buffer.concat([part, Buffer.alloc(4 - rest)])
}

/**
 * The files of the drivers and of what they need, in the order to load them; none for a kernel that
 * has them built in.
 * @param {string} modules
 */
function driverFiles(modules) {
  const needs = new Map()
  for (const line of readFileSync(join(modules, 'modules.dep'), 'utf8').split('\n')) {
    const [file, after] = line.split(':')
    // Dependencies are listed nearest first, and are loaded in the opposite order.
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
 * @param {object} options
 * @param {import('./packages.mjs').Parts} options.parts
 * @param {string} options.guestFolder  its files go to the root of the image
 * @param {string[]} options.guestFiles  those of them that the function needs, relative
 * @param {string[]} options.command     what init becomes; its first word is the runtime
 * @param {string[]} options.files       what the runtime opens, by absolute paths
 * @returns {Buffer}
 */
export function buildImage({ parts, guestFolder, guestFiles, command, files }) {
  const archive = new Archive()
  for (const folder of ['/dev', '/proc', '/sys', '/tmp']) archive.folder(folder)
  archive.characterDevice('/dev/console', 5, 1)
  archive.hostFile(parts.busybox, { as: '/usr/bin/busybox' })
  for (const file of guestFiles) archive.hostFile(join(guestFolder, file), { as: `/${file}` })
  const modules = driverFiles(parts.modules).map((path) => {
    const name = `/modules.d/${basename(path).replace(/\.ko\..*/, '.ko')}`
    archive.file(name, readModule(path))
    return name
  })
  archive.file('/modules', Buffer.from(modules.map((name) => `${name}\n`).join('')))
  archive.file('/command', Buffer.from(`${command.join(' ')}\n`))
  const executable = command[0] ?? ''
  const libraries = [executable, ...files.filter((path) => path.endsWith('.so'))]
  for (const path of [executable, ...files, ...libraries.flatMap(sharedLibraries)]) {
    archive.hostFile(path)
  }
  // The loader is named in the executable by a path that goes through this link on a merged /usr.
  for (const name of readdirSync('/').filter((entry) => /^lib(64)?$/.test(entry))) {
    const target = realpathSync(`/${name}`)
    if (target !== `/${name}`) archive.link(`/${name}`, target)
  }
  return archive.finish()
}
