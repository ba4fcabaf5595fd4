import { spawnSync } from 'node:child_process'
import { readFileSync, readlinkSync, statSync } from 'node:fs'
import { cpus, release } from 'node:os'
import { basename } from 'node:path'
import { fileURLToPath } from 'node:url'

export const root = fileURLToPath(new URL('../..', import.meta.url))

const read = (path) => {
  try {
    return readFileSync(path, 'utf8').trim()
  } catch {
    return undefined
  }
}

/** Block device of a file, and its kind according to the kernel: `vda, rotational`. */
export function storageOf(path) {
  const { dev } = statSync(path)
  // The kernel's encoding of a device number: 12 bits of major between two parts of the minor.
  const major = (dev >> 8) & 0xfff
  const minor = (dev & 0xff) | ((dev >>> 12) & 0xfff00)
  const folder = `/sys/dev/block/${major}:${minor}`
  try {
    const link = readlinkSync(folder)
    const disk = read(`${folder}/partition`) ? `${folder}/..` : folder
    const rotational = read(`${disk}/queue/rotational`)
    return `${basename(link)}, ${rotational === '0' ? 'not rotational' : 'rotational'}`
  } catch {
    return `device ${major}:${minor}`
  }
}

/** Description of the machine. */
export function describeMachine(folder) {
  const git = (...words) => spawnSync('git', words, { cwd: root, encoding: 'utf8' }).stdout?.trim()
  const changed = git('status', '--porcelain', '--untracked-files=no') ? ' with changes' : ''
  return {
    kernel: `Linux ${release()}`,
    cpu: `${cpus().length} × ${cpus()[0]?.model}`,
    storage: storageOf(folder),
    node: process.version,
    commit: `${git('rev-parse', '--short', 'HEAD')}${changed}`,
    date: new Date().toISOString(),
  }
}
