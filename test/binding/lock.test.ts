import { execFile, spawn } from 'node:child_process'
import { once } from 'node:events'
import { chmod, rm, stat, symlink } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import { expect, onTestFinished, test } from 'vitest'
import { tryLock } from '../../src/binding/lock.js'
import { scratchFolder } from '../support/scratch.js'
import { failureOf } from '../support/working-sets.js'

const fixture = fileURLToPath(new URL('../support/fixtures/locks.mjs', import.meta.url))

/** A process that has tried to take the lock; resolves with what it says. */
async function lockingProcess(path: string) {
  const child = spawn(process.execPath, [fixture, 'hold', path], {
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  onTestFinished(() => void child.kill('SIGKILL'))
  const [said] = await once(child.stdout.setEncoding('utf8'), 'data')
  return { child, said: `${said}`.trim() }
}

test('a lock has one owner at a time, in this process and among processes', async () => {
  const path = join(await scratchFolder(), 'lock')
  const lock = await tryLock(path)
  expect((await stat(path)).mode & 0o7777).toBe(0o600)
  expect(await tryLock(path)).toBeUndefined()
  expect((await lockingProcess(path)).said).toBe('busy')
  lock?.release()
  lock?.release()
  const owner = await lockingProcess(path)
  expect(owner.said).toBe('held')
  expect(await tryLock(path)).toBeUndefined()
})

test('a lock is free when its process is killed', async () => {
  const path = join(await scratchFolder(), 'lock')
  const { child, said } = await lockingProcess(path)
  expect(said).toBe('held')
  expect(await tryLock(path)).toBeUndefined()
  child.kill('SIGKILL')
  await once(child, 'exit')
  const lock = await tryLock(path)
  expect(lock).toBeDefined()
  lock?.release()
})

test('a lock is free when its worker thread is terminated, also while it is being taken', async () => {
  const path = join(await scratchFolder(), 'lock')
  const { stdout } = await promisify(execFile)(process.execPath, [fixture, 'terminate', path])
  expect(JSON.parse(stdout)).toEqual(Array(8).fill(true))
})

test('a lock that nothing refers to is free once it is garbage-collected', async () => {
  const path = join(await scratchFolder(), 'lock')
  setFlagsFromString('--expose-gc')
  const collect = runInNewContext('gc')
  expect(await tryLock(path)).toBeDefined()
  let lock = await tryLock(path)
  while (!lock) {
    collect()
    await sleep(1)
    lock = await tryLock(path)
  }
  lock.release()
})

test('a path that is no file of this user is not locked, and the error says why', async () => {
  const folder = await scratchFolder()
  const path = join(folder, 'lock')
  expect(await failureOf(tryLock(join(folder, 'no folder', 'lock')))).toMatchObject({
    code: 'ERR_STORE_IO',
    syscall: 'open',
    hint: 'The folder does not exist.',
  })
  expect(await failureOf(tryLock(folder))).toMatchObject({ code: 'ERR_STORE_IO', path: folder })
  await symlink('elsewhere', path)
  expect(await failureOf(tryLock(path))).toMatchObject({ code: 'ERR_STORE_IO', path })
  await rm(path)
  const lock = await tryLock(path)
  lock?.release()
  await chmod(path, 0o620)
  expect(await failureOf(tryLock(path))).toMatchObject({
    code: 'ERR_UNTRUSTED_FILE',
    check: 'mode',
    path,
    hint: 'Take that away with chmod go-w.',
  })
})
