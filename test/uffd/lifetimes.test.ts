import { type ChildProcess, fork } from 'node:child_process'
import { existsSync } from 'node:fs'
import { readdir } from 'node:fs/promises'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { describe, expect, onTestFinished, test } from 'vitest'
import { serve, Trace, WorkingSet } from '../../src/index.js'
import { type Scene, scene } from '../support/scratch.js'

const script = fileURLToPath(new URL('../support/fixtures/lifetime-child.mjs', import.meta.url))

type Stage = 'listening' | 'connected' | 'prefetched'
type Ending = 'limit' | 'exit' | 'throw' | 'close' | 'worker' | 'SIGTERM' | 'SIGINT' | 'SIGKILL'

interface Counts {
  readonly threads: number
  readonly descriptors: number
}

interface End {
  readonly code: number | null
  readonly signal: NodeJS.Signals | null
  readonly messages: readonly Record<string, unknown>[]
}

async function someSet(s: Scene): Promise<string> {
  const pages = Uint32Array.from({ length: 200 }, (_, i) => i)
  const trace = new Trace({
    pageSize: 4096,
    memoryBytes: s.pages * 4096,
    pages,
    timesUs: pages,
  })
  const path = join(s.folder, 'set')
  await WorkingSet.fromTraces([trace]).write(path, { snapshot: { memoryFile: s.memoryFile } })
  return path
}

/** Runs a process that serves up to a stage and then ends, with the VM connecting when it may. */
async function endAt(s: Scene, stage: Stage, ending: Ending, vm: 'kill' | 'leave'): Promise<End> {
  const { socketPath, memoryFile } = s
  const workingSet = stage === 'prefetched' ? await someSet(s) : undefined
  const task = { socketPath, memoryFile, workingSet, stage, ending, vm }
  const child: ChildProcess = fork(script, [JSON.stringify(task)], { silent: true })
  onTestFinished(() => void child.kill('SIGKILL'))
  const messages: Record<string, unknown>[] = []
  child.on('message', async (message: Record<string, unknown>) => {
    messages.push(message)
    if (message.stage === 'listening' && !message.reached && stage !== 'listening') {
      await s.vmm.handshake(socketPath).catch(() => {})
    }
    if (message.reached && ending.startsWith('SIG')) child.kill(ending as NodeJS.Signals)
  })
  return new Promise((resolve) => {
    // Not 'exit', which may come before the last message.
    child.once('close', (code, signal) => resolve({ code, signal, messages }))
  })
}

const stages: Stage[] = ['listening', 'connected', 'prefetched']
const endings: [Ending, Pick<End, 'code' | 'signal'>][] = [
  ['close', { code: 0, signal: null }],
  ['exit', { code: 0, signal: null }],
  ['throw', { code: 1, signal: null }],
  ['worker', { code: 0, signal: null }],
  ['SIGTERM', { code: null, signal: 'SIGTERM' }],
  ['SIGINT', { code: null, signal: 'SIGINT' }],
]
const cases = stages.flatMap((stage) => endings.map(([ending, end]) => ({ stage, ending, end })))

describe('a process that ends', () => {
  test.each(cases)('when $stage, by $ending, kills its VM and leaves nothing', async (c) => {
    const s = await scene({ pages: 512 })
    const { messages, ...end } = await endAt(s, c.stage, c.ending, 'kill')
    expect(end).toEqual(c.end)
    expect(existsSync(s.socketPath)).toBe(false)
    if (c.ending === 'worker') {
      const { before, after } = messages.at(-1) as Record<'before' | 'after', Counts>
      expect(after.threads).toBeLessThanOrEqual(before.threads)
      expect(after.descriptors).toBeLessThanOrEqual(before.descriptors)
    }
    if (c.stage === 'listening') expect(await s.vmm.fds()).toBeGreaterThan(0)
    else expect(await s.vmm.exited).toEqual({ code: null, signal: 'SIGKILL' })
  })

  test.each(['exit', 'SIGTERM', 'worker'] as const)(
    'by %s, leaves the VM when that is the choice',
    async (ending) => {
      const s = await scene({ pages: 512 })
      await endAt(s, 'connected', ending, 'leave')
      expect(await s.vmm.fds()).toBeGreaterThan(0)
    },
  )

  test('does not end by a write past its limit of file size, which is EFBIG', async ({ skip }) => {
    const s = await scene({ pages: 512 })
    const end = await endAt(s, 'connected', 'limit', 'kill')
    const { error } = end.messages.at(-1) ?? {}
    if (error === 'no prlimit') skip('needs prlimit')
    expect(end).toMatchObject({ code: 0, signal: null })
    expect(error).toBe('EFBIG')
    expect(await s.vmm.exited).toEqual({ code: null, signal: 'SIGKILL' })
  })

  test('by SIGKILL, cannot do anything: the VM is frozen, not fed zeros', async () => {
    const s = await scene({ pages: 512, holes: false })
    await endAt(s, 'connected', 'SIGKILL', 'kill')
    await s.vmm.bg('stuck', 'read 7')
    expect(await s.vmm.wait('stuck', 100)).toBeUndefined()
  })
})

test('a session leaves no thread or descriptor behind', async () => {
  const count = async () => ({
    threads: (await readdir('/proc/self/task')).length,
    descriptors: (await readdir('/proc/self/fd')).length,
  })
  const session = async (workingSet?: string) => {
    const s = await scene({ pages: 512 })
    const set = workingSet ?? (await someSet(s))
    const { socketPath, memoryFile } = s
    const handler = await serve({ socketPath, snapshot: { memoryFile }, workingSet: set })
    await s.vmm.handshake(s.socketPath)
    await handler.prefetched
    await s.vmm.verify(s.memoryFile)
    await handler.close()
    await s.vmm.exited
  }
  await session()
  const before = await count()
  for (let i = 0; i < 5; i++) await session()
  // A thread that was joined is listed for a moment more.
  await expect
    .poll(async () => {
      const { threads, descriptors } = await count()
      return threads <= before.threads && descriptors <= before.descriptors
    })
    .toBe(true)
})

test('nothing of a session keeps the process alive once it has ended', async () => {
  const s = await scene({ pages: 64 })
  const end = await endAt(s, 'connected', 'close', 'kill')
  expect(end).toMatchObject({ code: 0, signal: null })
})
