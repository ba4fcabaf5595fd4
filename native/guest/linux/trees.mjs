// @ts-check
// Containers for a guest's files: an archive for its initramfs, a folder for its disk.
import {
  existsSync,
  mkdirSync,
  readFileSync,
  realpathSync,
  statSync,
  symlinkSync,
  utimesSync,
  writeFileSync,
} from 'node:fs'
import { basename, dirname, join } from 'node:path'

export const blockBytes = 4096

/**
 * A cpio archive of the kind the kernel unpacks ("newc"). Written here for two things cpio(1) cannot
 * do for a user who is not root: device nodes, and everything owned by root.
 */
export class Archive {
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

/** A folder that stands for the guest's root; device nodes cannot be in it without root. */
export class Staging {
  /** The sizes of its files, in whole blocks of a disk. */
  bytes = 0

  /** @param {string} root  an empty folder */
  constructor(root) {
    this.root = root
  }

  /** @param {string} path */
  folder(path) {
    mkdirSync(join(this.root, path), { recursive: true })
  }

  /**
   * @param {string} path
   * @param {Buffer} content
   * @param {{ mode?: number, mtime?: number }} [options]
   */
  file(path, content, { mode = 0o644, mtime = 0 } = {}) {
    const file = join(this.root, path)
    if (existsSync(file)) return
    this.folder(dirname(path))
    writeFileSync(file, content, { mode: mode & 0o777 })
    utimesSync(file, mtime, mtime)
    this.bytes += Math.ceil(content.length / blockBytes) * blockBytes
  }

  /**
   * @param {string} path
   * @param {string} target
   */
  link(path, target) {
    this.folder(dirname(path))
    symlinkSync(target, join(this.root, path))
  }
}

/** @typedef {Archive | Staging} Tree */

/**
 * A file of the host, under its own path. Symbolic links to folders are resolved, since the image
 * has no /lib → /usr/lib. Python trusts a .pyc only with its source's time.
 * @param {Tree} tree
 * @param {string} path
 */
export function addHostFile(
  tree,
  path,
  { as = join(realpathSync(dirname(path)), basename(path)) } = {},
) {
  const { mode, mtimeMs } = statSync(path)
  tree.file(as, readFileSync(path), { mode, mtime: Math.floor(mtimeMs / 1000) })
}
