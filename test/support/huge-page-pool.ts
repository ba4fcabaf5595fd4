import { closeSync, openSync, readFileSync, writeFileSync } from 'node:fs'
import { setTimeout as delay } from 'node:timers/promises'
import koffi from 'koffi'
import { afterAll } from 'vitest'

const pool = '/proc/sys/vm/nr_hugepages'
const LOCK_EX = 2
const LOCK_NB = 4

const pooled = () => Number(readFileSync(pool, 'utf8'))

/**
 * Adds so many pages of 2 MiB to the host's pool where that is allowed, until the tests of the file are
 * over, and keeps the tests of others away from the pool meanwhile. Says why there are less than
 * `needed` free ones, if there are.
 */
export async function borrowHugePages(wanted: number, needed: number): Promise<string | undefined> {
  // The pool is the machine's and the native tests empty it, so those of another checkout wait
  // (test/native/support/main.cc takes the same lock).
  const lock = openSync(pool, 'r')
  const flock = koffi.load('libc.so.6').func('int flock(int fd, int operation)')
  while (flock(lock, LOCK_EX | LOCK_NB) !== 0) await delay(50)
  const before = pooled()
  try {
    writeFileSync(pool, String(before + wanted))
  } catch {}
  const borrowed = pooled() - before
  // Not what was there before: others may have borrowed some meanwhile.
  afterAll(() => {
    if (borrowed > 0) writeFileSync(pool, String(Math.max(0, pooled() - borrowed)))
    closeSync(lock)
  })
  const free = Number(/HugePages_Free:\s+(\d+)/.exec(readFileSync('/proc/meminfo', 'utf8'))?.[1])
  if (free >= needed) return undefined
  return `${needed} free pages of 2 MiB, has ${free} (sysctl vm.nr_hugepages=${needed})`
}
