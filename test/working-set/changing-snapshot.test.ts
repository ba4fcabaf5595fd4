import { randomInt } from 'node:crypto'
import { closeSync, fstatSync, mkdirSync, openSync, readFileSync, statSync } from 'node:fs'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { expect, onTestFinished, test } from 'vitest'
import { type FaultHandler, type PrefetchResult, serve, type WorkingSet } from '../../src/index.js'
import { keepsTimes } from '../../src/snapshot/file-stamp.js'
import { ChangingSnapshot, type Random, randomOf } from '../support/changing-snapshot.js'
import { FakeVmm, pageDigest } from '../support/fake-vmm.js'

/*
 * Whatever is done to a memory file and its working set between restores, each guest has the bytes
 * that the memory file has when it is restored.
 *
 *   REAP_TRACE_STALE_RESTORES  how many restores
 *   REAP_TRACE_STALE_SEED      draws the same changes again
 *   REAP_TRACE_STALE_FOLDER    where the files are: another file system keeps other times
 */
const RESTORES = Number(process.env.REAP_TRACE_STALE_RESTORES ?? 2000)
const SEED = Number(process.env.REAP_TRACE_STALE_SEED ?? randomInt(2 ** 31))
const FOLDER = process.env.REAP_TRACE_STALE_FOLDER ?? tmpdir()
const LANES = 2
/** Of a lane. Most restores are of the first ones, so that others are left alone for a while. */
const SNAPSHOTS = 24
const PAGE = 4096

interface Lane {
  readonly random: Random
  readonly snapshots: readonly ChangingSnapshot[]
  readonly socketPath: string
  vmm: FakeVmm
}

async function makeLane(folder: string, seed: number): Promise<Lane> {
  const random = randomOf(seed)
  const snapshots: ChangingSnapshot[] = []
  for (let i = 0; i < SNAPSHOTS; i++) {
    const own = join(folder, `${i}`)
    mkdirSync(own, { recursive: true })
    snapshots.push(await ChangingSnapshot.make(own, i === 0 ? 256 : 64 + random.below(65), random))
  }
  const vmm = await FakeVmm.start()
  return { random, snapshots, socketPath: join(folder, 'uffd.sock'), vmm }
}

/** Runs `step` in every lane until there were so many restores, or one has failed. */
async function inLanes(
  restores: number,
  step: (lane: Lane, snapshot: ChangingSnapshot) => Promise<void>,
): Promise<void> {
  const folder = await mkdtemp(join(FOLDER, 'reap-stale-'))
  onTestFinished(() => rm(folder, { recursive: true, force: true }))
  let begun = 0
  let done = 0
  let failed = false
  const run = async (number: number): Promise<void> => {
    const lane = await makeLane(join(folder, `lane-${number}`), SEED + number)
    const { random, snapshots } = lane
    try {
      while (begun < restores && !failed) {
        begun++
        const snapshot = snapshots[Math.min(random.below(SNAPSHOTS), random.below(SNAPSHOTS))]!
        try {
          await step(lane, snapshot)
        } catch (error) {
          const before = `after ${done} restores with REAP_TRACE_STALE_SEED=${SEED}, lane ${number}`
          const steps = snapshot.history.map((what) => `\n  ${what}`).join('')
          throw new Error(`${before}: ${(error as Error).message}; before it:${steps}`, {
            cause: error,
          })
        }
        snapshot.history.push('- restored -')
        done++
      }
    } catch (error) {
      failed = true
      throw error
    } finally {
      await lane.vmm.kill()
    }
  }
  const ends = await Promise.allSettled(Array.from({ length: LANES }, (_, i) => run(i)))
  for (const end of ends) if (end.status === 'rejected') throw end.reason
  expect(done).toBe(restores)
}

/** One or several regions, in any order. */
function mapAnew({ vmm, random }: Lane, { pages }: ChangingSnapshot): Promise<unknown> {
  const first = random.oneIn(2) ? pages : 1 + random.below(pages - 1)
  const sizes = [first, pages - first].filter((count) => count > 0).map((count) => count * PAGE)
  const order = random.of(['asc', 'desc', 'shuffle'] as const)
  return Promise.all([vmm.drop(), vmm.map(PAGE, sizes, { order, gap: PAGE * random.below(3) })])
}

/** Ends the session so that the VM lives on, with all its memory or with what it has. */
async function leave({ random }: Lane, handler: FaultHandler): Promise<void> {
  const whole = random.oneIn(2)
  const { state } = await (whole ? handler.detach() : handler.close({ vm: 'leave' }))
  if (state !== (whole ? 'detached' : 'vm-left')) throw new Error(`the session ended: ${state}`)
}

function check(wrong: readonly number[], by: string): void {
  if (wrong.length === 0) return
  throw new Error(`wrong bytes in pages ${[...new Set(wrong)]}, found by ${by}`)
}

/** A restore that no VM comes to: all that is found out of the files, a moment before they change. */
async function serveNobody(lane: Lane, snapshot: ChangingSnapshot): Promise<void> {
  const { socketPath } = lane
  const { memoryFile } = snapshot
  const workingSet = await snapshot.workingSet()
  const handler = await serve({
    socketPath,
    snapshot: { memoryFile },
    workingSet,
    connectTimeoutMs: 0,
  })
  await handler.close()
  snapshot.history.push('- served to nobody -')
}

/** Restores a guest, and compares every page that it has with the memory file. */
async function restore(lane: Lane, snapshot: ChangingSnapshot): Promise<PrefetchResult['source']> {
  const { random, socketPath, vmm } = lane
  const { memoryFile, pages } = snapshot
  const records = random.oneIn(16)
  const workingSet: WorkingSet | string | undefined = records
    ? undefined
    : await snapshot.workingSet()
  const [handler] = await Promise.all([
    serve({
      socketPath,
      snapshot: { memoryFile },
      workingSet,
      record: records,
      connectTimeoutMs: 0,
    }),
    mapAnew(lane, snapshot),
  ])
  const seed = random.below(2 ** 31)
  const way = random.below(8)
  if (way === 0) {
    // The handler alone brings everything, one way or the other.
    await vmm.handshake(socketPath)
    await (random.oneIn(2) ? handler.prefetched : handler.connected)
    await handler.detach()
    check((await vmm.verify(memoryFile)).wrong, 'verify after detach()')
  } else if (way === 1) {
    await vmm.handshake(socketPath)
    await handler.prefetched
    check((await vmm.verify(memoryFile)).wrong, 'verify after the prefetch')
    await leave(lane, handler)
  } else {
    // The guest touches its pages while the prefetch brings them.
    const threads = 2 + random.below(3)
    const [, found] = await Promise.all([
      vmm.handshake(socketPath),
      vmm.sweep(threads, seed, memoryFile),
    ])
    check(found.wrong, `a sweep of ${threads} threads`)
    await handler.connected
    if (records) snapshot.touched(handler.stopRecording())
    await leave(lane, handler)
  }
  if (random.oneIn(8)) {
    // Once more outside of the guest, which maps the file that is read here.
    const bytes = readFileSync(memoryFile)
    const numbers = Array.from({ length: pages }, (_, page) => page)
    const { digests } = await vmm.read(...numbers)
    const differs = (page: number) =>
      digests[page] !== pageDigest(bytes.subarray(page * PAGE, (page + 1) * PAGE))
    check(numbers.filter(differs), 'the digests')
  }
  return (await handler.prefetched.catch(() => undefined))?.source
}

test('no restore gives a guest other bytes than the memory file has, whatever was changed before', {
  timeout: 60_000 + 50 * RESTORES,
}, async () => {
  const sources = { 'working-set': 0, 'memory-file': 0, undefined: 0 }
  await inLanes(RESTORES, async (lane, snapshot) => {
    const { random } = lane
    if (random.oneIn(5)) {
      await snapshot.agree()
      await serveNobody(lane, snapshot)
      await snapshot.changeMemory()
    } else {
      const changes = random.of([0, 0, 0, 0, 0, 0, 1, 1, 2, 3])
      for (let i = 0; i < changes; i++) await snapshot.change()
    }
    sources[(await restore(lane, snapshot)) ?? 'undefined']++
  })
  // Else nothing was shown.
  const few = RESTORES / 50
  expect(sources['memory-file']).toBeGreaterThan(few)
  if (await keepsTimes(FOLDER)) expect(sources['working-set']).toBeGreaterThan(few)
})

test('a guest has the bytes of one memory file or is ended, whatever changes before its handshake', {
  timeout: 60_000 + 50 * RESTORES,
}, async () => {
  await inLanes(Math.ceil(RESTORES / 10), async (lane, snapshot) => {
    const { random, socketPath, vmm } = lane
    const { memoryFile } = snapshot
    if (random.oneIn(2)) await snapshot.change()
    await mapAnew(lane, snapshot)
    const opened = openSync(memoryFile, 'r')
    try {
      const workingSet = await snapshot.workingSet()
      const handler = await serve({
        socketPath,
        snapshot: { memoryFile },
        workingSet,
        connectTimeoutMs: 0,
      })
      snapshot.history.push('- served -')
      const changes = 1 + random.below(2)
      for (let i = 0; i < changes; i++) {
        await (random.oneIn(3) ? snapshot.changeSet() : snapshot.changeMemory())
      }
      const handshake = vmm.handshake(socketPath)
      const swept = handshake.then(() => vmm.sweep(3, random.below(2 ** 31), memoryFile))
      const found = await swept.catch(() => undefined)
      if (found) {
        // Who is served from a file that is at its path no more has all of that file.
        const isThere = fstatSync(opened).ino === statSync(memoryFile).ino
        const other = `/proc/${process.pid}/fd/${opened}`
        const wrong = isThere || found.wrong.length === 0 ? found : await vmm.verify(other)
        check(wrong.wrong, 'a sweep after the change')
        await leave(lane, handler)
      } else {
        const end = await handler.closed.then(
          ({ state }) => state,
          () => 'failed',
        )
        if (!['failed', 'closed', 'vm-killed'].includes(end)) throw new Error(`ended: ${end}`)
        await vmm.kill()
        lane.vmm = await FakeVmm.start()
      }
    } finally {
      closeSync(opened)
    }
  })
})
