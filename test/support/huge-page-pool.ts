import { closeSync, openSync, readFileSync, writeFileSync } from 'node:fs'
import { setTimeout as delay } from 'node:timers/promises'
import koffi from 'koffi'
import { afterAll } from 'vitest'

const pool = '/proc/sys/vm/nr_hugepages'
const LOCK_EX = 2
const LOCK_NB = 4

const pooled = () => Number(readFileSync(pool, 'utf8'))

/**
 * Adds this many pages of 2 MiB to the host's pool, if that is allowed, until the tests of the file
 * are over, and keeps other tests away from the pool meanwhile. Returns what is missing if
 * fewer than `needed` pages are free.
 */
export async function borrowHugePages(wanted: number, needed: number): Promise<string | undefined> {
  // The pool belongs to the machine, and native tests empty it, so those of another checkout wait
  // (test/native/support/main.cc takes the same lock).
  const lock = openSync(pool, 'r')
  const flock = koffi.load('libc.so.6').func('int flock(int fd, int operation)')
  while (flock(lock, LOCK_EX | LOCK_NB) !== 0) await delay(50)
  const before = pooled()
  try {
    writeFileSync(pool, String(before + wanted))
  } catch {}
  const borrowed = pooled() - before
  // Not the number from before: others may have borrowed some meanwhile.
  afterAll(() => {
    if (borrowed > 0) writeFileSync(pool, String(Math.max(0, pooled() - borrowed)))
    closeSync(lock)
  })
  const free = Number(/HugePages_Free:\s+(\d+)/.exec(readFileSync('/proc/meminfo', 'utf8'))?.[1])
  if (free >= needed) return undefined
  return `${needed} free pages of 2 MiB, has ${free} (sysctl vm.nr_hugepages=${needed})`
}
