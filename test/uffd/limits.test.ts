import { fork } from 'node:child_process'
import { once } from 'node:events'
import {
  chmodSync,
  chownSync,
  copyFileSync,
  mkdirSync,
  readFileSync,
  rmdirSync,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { expect, onTestFinished, test } from 'vitest'
import { evict, nobodyMissing } from '../support/page-cache.js'
import { range, recordedSet, scene, serveScene } from '../support/scratch.js'

const child = fileURLToPath(new URL('../support/fixtures/limits-child.mjs', import.meta.url))
/** A user without other processes: the limit is that of all processes of a user. */
const UID = 61_234

test('a process at its limit of threads gets an error, and continues to serve its VM', async ({
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

/** A memory cgroup of this many bytes, in whichever hierarchy has the controller; undefined where none can be made. */
function memoryGroup(bytes: number): string | undefined {
  const own = readFileSync('/proc/self/cgroup', 'utf8')
  const [first] = /(?<=:memory:).*/.exec(own) ?? []
  const [second = ''] = /(?<=^0::).*/m.exec(own) ?? []
  const parent = first === undefined ? `/sys/fs/cgroup${second}` : `/sys/fs/cgroup/memory${first}`
  const group = join(parent, `reap-test-${process.pid}`)
  try {
    mkdirSync(group)
    onTestFinished(() => rmdirSync(group))
    const limit = first === undefined ? 'memory.max' : 'memory.limit_in_bytes'
    writeFileSync(join(group, limit), String(bytes))
    return group
  } catch {
    return undefined
  }
}

test.for([
  { how: 'the OOM killer', oom: true },
  { how: 'itself', oom: undefined },
])('the end of a VM in a memory cgroup by $how is reported as such', async ({ oom }, { skip }) => {
  const s = await scene({ pages: 16_384, holes: false })
  const group = memoryGroup(oom ? 16 << 20 : 256 << 20)
  if (!group) return skip('needs the right to make a memory cgroup')
  writeFileSync(join(group, 'cgroup.procs'), String(s.vmm.pid))
  const handler = await serveScene(s, { record: false })
  await s.vmm.handshake(s.socketPath)
  if (oom) await s.vmm.verify(s.memoryFile).catch(() => {})
  else await s.vmm.exit(0)
  expect(await handler.closed).toMatchObject({ state: 'vm-exited' })
  expect((await handler.closed).oom).toBe(oom)
  await s.vmm.exited
})
