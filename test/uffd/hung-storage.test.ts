import { fork } from 'node:child_process'
import { once } from 'node:events'
import { readdirSync, readlinkSync } from 'node:fs'
import { stat } from 'node:fs/promises'
import { dirname } from 'node:path'
import { fileURLToPath } from 'node:url'
import { describe, expect, onTestFinished, test } from 'vitest'
import {
  prefetchPageCache,
  type ServeEvent,
  type ServeOptions,
  serve,
  Trace,
  WorkingSet,
} from '../../src/index.js'
import { hangingScene } from '../support/hanging-folder.js'
import { fakeVmm, range, recordedSet, type Scene } from '../support/scratch.js'

const child = fileURLToPath(new URL('../support/fixtures/hung-child.mjs', import.meta.url))

/** A set without a file: its pages are read from the memory file. */
const everyPage = ({ pages }: Scene) =>
  WorkingSet.fromTraces([
    new Trace({
      pageSize: 4096,
      memoryBytes: pages * 4096,
      pages: Uint32Array.from(range(0, pages)),
      timesUs: Uint32Array.from(range(0, pages)),
    }),
  ])

test('files that cannot be opened hold up neither JavaScript nor other files', async ({ skip }) => {
  const [s, folder] = await hangingScene(skip)
  await folder.hold('open')
  const abort = new AbortController()
  // More than libuv has threads.
  const hung = range(0, 8).map((i) =>
    serve({
      snapshot: { memoryFile: folder.file(i) },
      socketPath: `${s.socketPath}.${i}`,
      startSignal: abort.signal,
    }),
  )
  await folder.untilHeld(8)
  expect((await stat('/')).isDirectory()).toBe(true)
  const handler = await serve({ snapshot: { memoryFile: s.memoryFile }, socketPath: s.socketPath })
  await handler.close()
  abort.abort(new Error('too late'))
  for (const start of hung) await expect(start).rejects.toThrow('too late')
  // What comes too late is closed.
  await folder.release()
  const isOpen = (fd: string) => {
    try {
      return readlinkSync(`/proc/self/fd/${fd}`).startsWith(dirname(folder.file(0)))
    } catch {
      return false
    }
  }
  await expect.poll(() => readdirSync('/proc/self/fd').filter(isOpen)).toEqual([])
})

test('disk images that do not answer hold up no other files', async ({ skip }) => {
  const [s, folder] = await hangingScene(skip)
  await folder.hold('lookup')
  const workingSet = WorkingSet.fromTraces([everyPage(s).order], { disks: [[everyPage(s).order]] })
  const hung = range(0, 8).map((i) =>
    prefetchPageCache({
      snapshot: { memoryFile: s.memoryFile, diskImages: [folder.file(i)] },
      workingSet,
    }),
  )
  // The kernel may let one call at a time look into a folder.
  await folder.untilHeld(1)
  expect((await stat('/')).isDirectory()).toBe(true)
  await folder.release()
  for (const prefetch of hung) expect(await prefetch).toMatchObject({ complete: true })
})

test('a file whose close() hangs holds up neither JavaScript nor the ends of VMs', async ({
  skip,
}) => {
  const [s, folder] = await hangingScene(skip)
  const sessions = await Promise.all(
    range(0, 8).map((i) =>
      serve({
        snapshot: { memoryFile: folder.file(i) },
        socketPath: `${s.socketPath}.${i}`,
        connectTimeoutMs: 0,
      }),
    ),
  )
  const handler = await serve({ snapshot: { memoryFile: s.memoryFile }, socketPath: s.socketPath })
  await s.vmm.handshake(s.socketPath)
  await folder.hold('flush')
  for (const session of sessions) expect((await session.close()).state).toBe('closed')
  await folder.untilHeld(8)
  expect((await s.vmm.verify(s.memoryFile)).wrong).toEqual([])
  expect((await handler.close()).state).toBe('vm-killed')
})

test('the end of a recording asks no storage', async ({ skip }) => {
  const [s, folder] = await hangingScene(skip)
  const memoryFile = folder.file(0)
  const handler = await serve({
    snapshot: { memoryFile },
    socketPath: s.socketPath,
    record: true,
  })
  await s.vmm.handshake(s.socketPath)
  await s.vmm.verify(s.memoryFile)
  for (const call of ['lookup', 'open', 'read'] as const) await folder.hold(call)
  expect(handler.stopRecording().pages.length).toBe(s.pages)
  await handler.close()
})

test('a read that hangs is reported with its file, and ends the VM only if so chosen', async ({
  skip,
}) => {
  const [s, folder] = await hangingScene(skip)
  const [waits, fails] = [folder.file(0), folder.file(1)]
  const events: ServeEvent[] = []
  const open = (memoryFile: string, options: Partial<ServeOptions>) =>
    serve({
      snapshot: { memoryFile },
      socketPath: `${memoryFile.replace(/.*\//, `${s.folder}/`)}.sock`,
      readTimeoutMs: 100,
      onEvent: (event) => void events.push(event),
      ...options,
    })
  const hangs = (memoryFile: string) => ({
    type: 'warning',
    error: {
      code: 'ERR_SOURCE_READ',
      check: 'hangs',
      path: memoryFile,
      message: expect.stringContaining(
        `a read of the memory file ${memoryFile} has not returned for 100 ms`,
      ),
    },
  })
  const waiting = await open(waits, {})
  await s.vmm.handshake(waiting.socketPath)
  await folder.hold('read')
  const verified = s.vmm.verify(s.memoryFile)
  const warnings = () => events.filter(({ type }) => type === 'warning')
  await expect.poll(warnings).toMatchObject([hangs(waits)])
  const failing = await open(fails, { onReadTimeout: 'fail', workingSet: everyPage(s) })
  await expect(failing.closed).rejects.toMatchObject(hangs(fails).error)
  await folder.release()
  expect((await verified).wrong).toEqual([])

  const vmm = await fakeVmm()
  await vmm.map(4096, [s.pages * 4096])
  const killing = await open(folder.file(2), { onReadTimeout: 'fail' })
  await vmm.handshake(killing.socketPath)
  await folder.hold('read')
  vmm.verify(s.memoryFile).catch(() => {})
  await expect(killing.closed).rejects.toMatchObject(hangs(folder.file(2)).error)
  expect(await vmm.exited).toMatchObject({ signal: 'SIGKILL' })
  await folder.release()
})

// An open() that a FUSE server has taken is left to a worker thread: it survives even SIGKILL.
describe.each([false, true])('in a worker thread: %s', (inWorker) => {
  test.for([...(inWorker ? ['open'] : []), 'serve', 'prefetch', 'compare'])(
    'the end does not wait for storage that hangs: %s',
    async (way, { skip }) => {
      const [s, folder] = await hangingScene(skip)
      const memoryFile = folder.file(0)
      const workingSet = await recordedSet(s, range(0, 64))
      await folder.hold(way === 'open' ? 'open' : 'read')
      const task = { way, inWorker, socketPath: s.socketPath, memoryFile, workingSet }
      const handler = fork(child, [JSON.stringify(task)])
      onTestFinished(() => void handler.kill('SIGKILL'))
      const next = async () => (await once(handler, 'message'))[0]
      expect(await next()).toBe('began')
      if (way === 'serve') {
        expect(await next()).toBe('listening')
        await s.vmm.handshake(s.socketPath)
      }
      await folder.untilHeld(1)
      if (inWorker) {
        const ended = next()
        handler.send('terminate')
        expect(await ended).toBe('terminated')
      } else {
        const ended = once(handler, 'exit')
        handler.kill('SIGTERM')
        expect((await ended)[1]).toBe('SIGTERM')
      }
      if (way === 'serve') expect(await s.vmm.exited).toMatchObject({ signal: 'SIGKILL' })
    },
  )
})
