import { spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { chmodSync, closeSync, fstatSync, openSync, readSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { text } from 'node:stream/consumers'
import { fileURLToPath } from 'node:url'
import koffi from 'koffi'
import { expect, onTestFinished } from 'vitest'
import {
  KvmGuest,
  type KvmOptions,
  type Touch,
  writeKvmTrace,
} from '../../native/guest/driver/kvm-guest.mjs'
import { PageCache } from '../../native/guest/driver/page-cache.mjs'
import { isRoot } from './scratch.js'
import { makeMemory, newPath, PAGE, setOf } from './working-sets.js'

const libc = koffi.load('libc.so.6')
const mmap = libc.func(
  'void *mmap(void *at, size_t bytes, int protection, int flags, int fd, int64_t offset)',
)
const munmap = libc.func('int munmap(void *at, size_t bytes)')
const mincore = libc.func('int mincore(void *at, size_t bytes, void *into)')
const PROT_READ = 1
const MAP_SHARED = 1

/** A file of sysfs: it can be read and not mapped, as one of FUSE with direct I/O. */
export const unmappableFile = '/sys/kernel/mm/transparent_hugepage/enabled'

/** The path of a working set for a memory file of its size. */
export async function unmappableSet(): Promise<string> {
  const [path, memoryFile] = [newPath('vm.ws'), makeMemory(1)]
  await setOf(memoryFile, [0]).write(path, { snapshot: { memoryFile } })
  return path
}

/** The pages of a file that are in the page cache, in order. */
export function residentPages(path: string): number[] {
  const file = openSync(path, 'r')
  const bytes = fstatSync(file).size
  const at = mmap(null, bytes, PROT_READ, MAP_SHARED, file, 0)
  closeSync(file)
  const found = new Uint8Array(Math.ceil(bytes / PAGE))
  try {
    expect(mincore(at, bytes, found)).toBe(0)
  } finally {
    munmap(at, bytes)
  }
  return [...found.keys()].filter((page) => (found[page]! & 1) !== 0)
}

/** Makes files cold or warm, and checks that they are. */
export async function pageCache(): Promise<PageCache> {
  const cache = await PageCache.open()
  onTestFinished(() => cache.close())
  return cache
}

export async function evict(...paths: string[]): Promise<void> {
  const cache = await pageCache()
  await cache.set('cold', paths)
  await cache.close()
}

/** Reads these pages of a file, as anybody would. */
export function readPages(path: string, pages: readonly number[]): void {
  const file = openSync(path, 'r')
  for (const page of pages) readSync(file, Buffer.alloc(PAGE), 0, PAGE, page * PAGE)
  closeSync(file)
}

/** A guest on threads that replays these touches, and compares whole pages when it is done. */
export function threadGuest(
  memoryFile: string,
  touches: readonly (Touch | number)[],
  options: Partial<KvmOptions> = {},
): KvmGuest {
  const trace = newPath('trace')
  writeKvmTrace(trace, memoryFile, touches)
  const guest = new KvmGuest({ memoryFile, trace, threads: true, verify: true, ...options })
  onTestFinished(async () => void (await guest.kill()))
  return guest
}

/** Makes files and their folders readable for every user, and writable only for their owner. */
export function readableToAll(...paths: string[]): void {
  for (const path of paths) {
    chmodSync(dirname(path), 0o755)
    chmodSync(path, 0o644)
  }
}

const index = join(fileURLToPath(new URL('../..', import.meta.url)), 'dist/index.js')
const nobody = { uid: 65534, gid: 65534, cwd: '/' }

/** Why another user cannot run this build; `undefined` if one can. */
export function nobodyMissing(): string | undefined {
  if (!isRoot) return 'without root to become another'
  const words = ['-e', `fs.accessSync(${JSON.stringify(index)})`]
  const { status } = spawnSync(process.execPath, words, { ...nobody, stdio: 'ignore' })
  return status === 0
    ? undefined
    : 'where others may not enter the folder of Node or of this checkout'
}

/**
 * Result of code that runs as another user than the files' owner, with `api`, the package, and
 * `args`. A failure is returned as its fields.
 */
export async function asNobody(code: string, args: unknown): Promise<unknown> {
  const script = `
    const api = await import(${JSON.stringify(index)})
    const args = ${JSON.stringify(args)}
    const outcome = await (async () => { ${code} })().catch((error) => ({ ...error, message: error.message }))
    console.log(JSON.stringify(outcome))`
  const child = spawn(process.execPath, ['--input-type=module', '--eval', script], {
    ...nobody,
    env: { PATH: process.env.PATH },
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  onTestFinished(() => void child.kill('SIGKILL'))
  const [said] = await Promise.all([text(child.stdout), once(child, 'close')])
  return JSON.parse(said)
}
