import { fork } from 'node:child_process'
import { once } from 'node:events'
import { chmodSync, chownSync, copyFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { expect, onTestFinished, test } from 'vitest'
import { evict, nobodyMissing } from '../support/page-cache.js'
import { range, recordedSet, scene } from '../support/scratch.js'

const child = fileURLToPath(new URL('../support/fixtures/limits-child.mjs', import.meta.url))
/** A user without other processes: the limit is that of all processes of a user. */
const UID = 61_234

test('a process that may have no more threads is told so, and serves its VM on', async ({
  skip,
}) => {
  const missing = nobodyMissing()
  if (missing) skip(missing)
  const s = await scene({ pages: 512 })
  const workingSet = await recordedSet(s, range(0, 64))
  // Not the file of the session, which it reads to compare the set.
  const cold = join(s.folder, 'cold')
  copyFileSync(s.memoryFile, cold)
  for (const path of [s.memoryFile, cold, workingSet]) chownSync(path, UID, UID)
  chmodSync(s.folder, 0o777)
  const paths = { socketPath: s.socketPath, memoryFile: s.memoryFile, cold, workingSet }
  const handler = fork(child, [JSON.stringify(paths)], { uid: UID, gid: UID })
  onTestFinished(() => void handler.kill('SIGKILL'))
  const next = async () => (await once(handler, 'message'))[0]
  const go = () => {
    const answer = next()
    handler.send({})
    return answer
  }
  const refused = {
    code: 'ERR_NATIVE_UNAVAILABLE',
    errno: -11,
    hint: expect.stringMatching(/RLIMIT_NPROC.*pids\.max/),
  }
  expect(await next()).toEqual({ serve: refused })
  expect(await go()).toEqual({ listening: true })
  await s.vmm.handshake(s.socketPath)
  expect(await go()).toEqual({ prefetched: true })
  await evict(cold)
  expect(await go()).toEqual({ prefetch: refused })
  expect((await s.vmm.verify(s.memoryFile)).wrong).toEqual([])
  await evict(cold)
  expect(await go()).toEqual({ prefetch: 'done' })
})
