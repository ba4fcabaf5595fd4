import { stat } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { beforeAll, describe, expect, onTestFinished, test } from 'vitest'
import { WorkingSet } from '../../src/index.js'
import { checkBuild } from '../support/cli-process.js'
import { runExample } from '../support/example-process.js'
import { Firecracker, FirecrackerError } from '../support/firecracker-client.js'
import { expectBrought, scratchFolder, serveScene } from '../support/scratch.js'

const root = fileURLToPath(new URL('../..', import.meta.url))
const standIn = join(root, 'test/support/fixtures/firecracker-stand-in.mjs')

/** A Firecracker, or what stands in for one, and what it boots. */
interface Target {
  readonly binary: string
  readonly kernel: string
  readonly initrd?: string | undefined
  readonly rootfs?: string | undefined
  /** What the guest writes to its console again and again, as long as it runs. */
  readonly console?: RegExp | undefined
  readonly env?: Readonly<Record<string, string>>
}

interface Snapshot {
  readonly vmstate: string
  readonly memoryFile: string
}

/** A Firecracker process that goes when the test ends. */
async function start({ binary, env }: Target): Promise<Firecracker> {
  const vm = await Firecracker.start(binary, await scratchFolder(), env)
  onTestFinished(() => vm.kill())
  return vm
}

/** Until the guest has shown that it runs; without a console to see it on, for a second. */
async function letRun(vm: Firecracker, target: Target): Promise<string | undefined> {
  if (target.console) return await vm.consoleMatch(target.console)
  await sleep(1000)
  return undefined
}

async function takeSnapshot(target: Target): Promise<Snapshot & { said: string | undefined }> {
  const folder = await scratchFolder()
  const vm = await start(target)
  expect(await vm.state()).toBe('Not started')
  await vm.boot(target)
  const said = await letRun(vm, target)
  await vm.pause()
  expect(await vm.state()).toBe('Paused')
  const snapshot = { vmstate: join(folder, 'vmstate'), memoryFile: join(folder, 'memory') }
  await vm.snapshot(snapshot.vmstate, snapshot.memoryFile)
  await vm.kill()
  return { ...snapshot, said }
}

/** Loads the snapshot behind a handler and lets it run, once everything is prefetched. */
async function restore(target: Target, snapshot: Snapshot, workingSet?: string) {
  const uffdSocket = join(await scratchFolder(), 'uffd.sock')
  const { memoryFile, vmstate } = snapshot
  const handler = await serveScene({ socketPath: uffdSocket, memoryFile }, { workingSet })
  const vm = await start(target)
  await vm.load({ vmstate, uffdSocket })
  const { memoryBytes } = await handler.connected
  expect(memoryBytes).toBe((await stat(memoryFile)).size)
  expect(await vm.state()).toBe('Paused')
  const prefetch = await handler.prefetched
  await vm.resume()
  const said = await letRun(vm, target)
  expect(await vm.state()).toBe('Running')
  return { vm, handler, prefetch, said }
}

/** Takes a snapshot, records its working set and restores with it. */
async function wholeLife(target: Target) {
  const snapshot = await takeSnapshot(target)

  const first = await restore(target, snapshot)
  expect(first.handler.stats().faults).toBeGreaterThan(0)
  const trace = first.handler.stopRecording()
  const workingSet = `${snapshot.vmstate}.ws`
  const set = WorkingSet.fromTraces([trace])
  await set.write(workingSet, { snapshot: { memoryFile: snapshot.memoryFile } })
  expect(await first.vm.state()).toBe('Running')
  expect(await first.handler.close()).toMatchObject({ state: 'vm-killed' })
  expect(await first.vm.exited).toEqual({ code: null, signal: 'SIGKILL' })

  const next = await restore(target, snapshot, workingSet)
  expect(next.prefetch).toMatchObject({ complete: true })
  const stats = next.handler.stats()
  expect(stats.prefetched).toBeGreaterThan(0)
  // A guest does much the same each time.
  expect(stats.residualFaults).toBeLessThan(trace.pages.length / 2)
  expect(await next.handler.close()).toMatchObject({ state: 'vm-killed' })
  expect(await next.vm.exited).toEqual({ code: null, signal: 'SIGKILL' })
  return { set, stats, said: [snapshot.said, first.said, next.said] }
}

const standInFor = (version: string): Target => ({
  binary: standIn,
  kernel: standIn,
  initrd: standIn,
  rootfs: standIn,
  console: /^guest memory [0-9a-f]{16}$/m,
  env: { FIRECRACKER_STAND_IN_VERSION: version },
})

describe.each(['1.1.4', '1.7.0', '1.13.1', '1.16.0'])(
  'a stand-in for Firecracker %s',
  (version) => {
    const target = standInFor(version)

    test('start, pause, snapshot, restore to record, restore with the working set', async () => {
      const { set, stats, said } = await wholeLife(target)
      expectBrought(stats, set.pageCount)
      // The console tells what the guest reads: right bytes in each restore.
      expect(new Set(said).size).toBe(1)
      expect(stats.residualFaults).toBeLessThanOrEqual(5)
    })

    test('fields are sent under the names that the version knows', async () => {
      const { vmstate, memoryFile } = await takeSnapshot(target)
      const uffdSocket = join(await scratchFolder(), 'uffd.sock')
      await serveScene({ socketPath: uffdSocket, memoryFile })
      const vm = await start(target)
      expect(vm.version).toBe(version)
      await vm.load({ vmstate, uffdSocket, trackDirtyPages: true })
      expect(await vm.state()).toBe('Paused')
    })

    test('a field that it does not know is refused, by the client or by itself', async () => {
      const vm = await start(target)
      const load = { vmstate: 'vmstate', uffdSocket: 'uffd.sock', clockRealtime: true }
      if (version === '1.16.0') {
        await expect(vm.load(load)).rejects.toBeInstanceOf(FirecrackerError)
        return
      }
      await expect(vm.load(load)).rejects.toThrow(
        new TypeError(`clock_realtime needs Firecracker 1.16, this is ${version}`),
      )
      const refused = vm.put('/snapshot/load', { snapshot_path: 'vmstate', clock_realtime: true })
      await expect(refused).rejects.toMatchObject({
        status: 400,
        faultMessage: expect.stringContaining('unknown field `clock_realtime`'),
      })
      expect(await vm.state()).toBe('Not started')
    })
  },
)

test('a load without a handler says why, and ends the process', async () => {
  const target = standInFor('1.13.1')
  const { vmstate } = await takeSnapshot(target)
  const vm = await start(target)
  const uffdSocket = join(await scratchFolder(), 'uffd.sock')
  await expect(vm.load({ vmstate, uffdSocket })).rejects.toMatchObject({
    status: 400,
    faultMessage: expect.stringContaining('Failed to connect to UDS Unix stream'),
  })
  expect(await vm.exited).toMatchObject({ signal: null })
})

test('a binary that ends at once is reported with what it said', async () => {
  await expect(start({ binary: '/bin/ls', kernel: '' })).rejects.toThrow(/ended at once.*ls:/s)
})

describe('examples/firecracker.mjs', () => {
  beforeAll(checkBuild)

  test('makes a snapshot, lets the store record it once, and restores with what it learned', async () => {
    const folder = await scratchFolder()
    const boot = ['--kernel', standIn, '--boot-seconds', '0.1']
    const first = await runExample(standIn, folder, ...boot, '--', 'sleep', '0.1')
    expect(first.output).toContain('guest memory ')
    const recording = ['answered', 'connected', 'listening', 'loaded', 'resumed', 'written']
    const prefetching = ['answered', 'connected', 'listening', 'loaded', 'prefetched', 'resumed']
    expect(first).toMatchObject({
      code: 0,
      phases: [...['booted', 'snapshot'], ...recording, ...prefetching].sort(),
    })
    const figure = (pattern: RegExp) => Number(pattern.exec(first.output)?.[1])
    const prefetched = figure(/prefetched +(\d+) pages/)
    const lateFaults = figure(/.*\((\d+) late/s)
    const heldOut = 1 + figure(/a set of (\d+) pages/) / 4
    expect(prefetched + lateFaults).toBeGreaterThan(figure(/a set of (\d+) pages/) - heldOut)
    const second = await runExample(standIn, folder, '--', 'sleep', '0.1')
    expect(second.code, second.output).toBe(0)
    expect(second.phases).toEqual(expect.arrayContaining(prefetching))
    expect(second.output).not.toContain('to record')
  })

  test('says what is wrong and leaves no process behind', async () => {
    const folder = await scratchFolder()
    expect(await runExample(standIn)).toMatchObject({
      code: 2,
      output: expect.stringMatching(/usage/),
    })
    const { code, output } = await runExample(standIn, folder, '--kernel', '/no/kernel')
    expect({ code, output }).toMatchObject({ code: 1 })
    expect(output).toContain('error: PUT /boot-source: 400')
    expect(output).toContain('/no/kernel')
    const none = await runExample(standIn, folder)
    expect(none.output).toContain('--kernel')
  })
})

// The rest needs the real thing.

const { env } = process
const missing = [
  !env.FIRECRACKER && 'FIRECRACKER=/path/to/firecracker',
  !env.FIRECRACKER_KERNEL && 'FIRECRACKER_KERNEL=/path/to/an/uncompressed/vmlinux',
].filter((hint) => hint !== false)
const hint =
  missing.length > 0
    ? ` (needs ${missing.join(' and ')}, and FIRECRACKER_INITRD or FIRECRACKER_ROOTFS if there is one)`
    : ''

describe('Firecracker itself', () => {
  const target: Target = {
    binary: env.FIRECRACKER!,
    kernel: env.FIRECRACKER_KERNEL!,
    initrd: env.FIRECRACKER_INITRD,
    rootfs: env.FIRECRACKER_ROOTFS,
    console: env.FIRECRACKER_CONSOLE ? new RegExp(env.FIRECRACKER_CONSOLE) : undefined,
  }

  test.skipIf(missing.length > 0)(
    `start, pause, snapshot, restore to record, restore with the working set${hint}`,
    { timeout: 120_000 },
    async () => {
      const { set, stats } = await wholeLife(target)
      console.log(`${set.pageCount} pages recorded, then ${stats.residualFaults} residual faults`)
    },
  )
})
