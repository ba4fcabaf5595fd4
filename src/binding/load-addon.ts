import { closeSync, fstatSync, openSync, readSync } from 'node:fs'
import { ReapTraceError } from '../errors.js'

/**
 * Loads an addon and returns its exports.
 *
 * @throws ReapTraceError `ERR_NATIVE_UNAVAILABLE`, with a remedy as its hint.
 */
export function loadAddon(path: string): unknown {
  // Twice as fast as require(): there is nothing to resolve.
  const module = { exports: {} }
  try {
    checkFile(path)
    process.dlopen(module, path)
  } catch (cause) {
    const { message, code } = cause as NodeJS.ErrnoException
    throw new ReapTraceError('ERR_NATIVE_UNAVAILABLE', `${path} does not load: ${message}`, {
      path,
      hint: hintForLoad(message, code),
      cause,
    })
  }
  return module.exports
}

/** Architectures of the package's binaries, by `e_machine` of the ELF header. */
const architectures: Readonly<Record<number, string>> = { 62: 'x64', 183: 'arm64' }

/**
 * Throws if the file is not a complete ELF file for this architecture. The dynamic loader would map
 * a truncated file, and the process would die of SIGBUS.
 */
function checkFile(path: string): void {
  const file = openSync(path, 'r')
  try {
    const header = Buffer.alloc(64)
    const isElf =
      readSync(file, header) === header.length && header.subarray(0, 6).equals(ELF_64_LITTLE_ENDIAN)
    // The section header table is at the end of the file.
    const end =
      header.readBigUInt64LE(40) + BigInt(header.readUInt16LE(58) * header.readUInt16LE(60))
    if (!isElf || BigInt(fstatSync(file).size) < end) throw new Error('the file is damaged')
    const arch = architectures[header.readUInt16LE(18)]
    if (arch && arch !== process.arch) {
      throw new Error(`the file is for ${arch}, Node is for ${process.arch}`)
    }
  } finally {
    closeSync(file)
  }
}

const ELF_64_LITTLE_ENDIAN = Buffer.from('\x7fELF\x02\x01', 'latin1')

/** Remedy for an addon that does not load, from the loader's message and Node's code. */
export function hintForLoad(message: string, code?: string): string {
  if (code === 'ERR_DLOPEN_DISABLED') {
    return 'Node loads no addons: drop --no-addons, or add --allow-addons to its permissions.'
  }
  if (code === 'ERR_ACCESS_DENIED') {
    return "Node's permission model hides the file: add --allow-fs-read for the package's folder."
  }
  if (/^the file is for /.test(message)) {
    return 'Install or build reap-trace with the Node that runs it.'
  }
  if (/the file is damaged|file too short|invalid ELF header/.test(message)) {
    return 'Install reap-trace again; in a checkout, remove build/ and run `npm run build`.'
  }
  // Messages of musl, whose loader does not find glibc's libraries or their symbols.
  if (/^Error (loading|relocating) /.test(message)) {
    return 'The C library here is musl (Alpine Linux), and the binary needs glibc: use a Node image with glibc, such as node:22-slim.'
  }
  if (/version `(GLIBC|GLIBCXX|CXXABI)_/.test(message)) {
    return 'The binary needs glibc 2.34 and the libstdc++ of gcc 11, or later: Debian 12, Ubuntu 22.04, RHEL 9, Amazon Linux 2023.'
  }
  if (/failed to map segment/.test(message)) {
    return 'The file system is probably mounted noexec: remount it with exec, or install reap-trace on another one.'
  }
  return 'The binary needs Linux, glibc 2.34 or later and libstdc++.so.6.'
}
