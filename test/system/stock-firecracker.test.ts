import { execFileSync } from 'node:child_process'
import { chmod, stat, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { beforeAll, describe, expect, test } from 'vitest'
import { firecracker, guestKernel } from '../../native/guest/driver/microvm.mjs'
import { cachedSnapshot } from '../../native/guest/driver/microvm-snapshot.mjs'
import { WorkingSet } from '../../src/index.js'
import { keepsTimes } from '../../src/snapshot/file-stamp.js'
import { Cli, checkBuild, events } from '../support/cli-process.js'
import { runExample } from '../support/example-process.js'
import { expectBrought, scratchFolder } from '../support/scratch.js'
import {
  filesIn,
  microvm,
  missing,
  recordedSet,
  restored,
  type Snapshot,
} from '../support/stock-firecracker.js'
import { checkTrace } from '../support/trace-events.js'

describe.skipIf(missing)('Firecracker itself', () => {
  test('boots, is snapshotted, recorded, and restored with its working set: no fault is residual', async () => {
    const snapshot = filesIn(await scratchFolder())
    const first = await microvm()
    await first.boot()
    expect(await first.ask('m')).toEqual({ requests: 1 })
    await first.snapshot(snapshot)
    expect(await first.state()).toBe('Paused')
    await first.kill()

    const recording = await restored(snapshot, 'm')
    expect(await recording.vm.answer('m')).toEqual({ requests: 2 })
    // With another answer, the recording has what the guest touches after one.
    expect(await recording.vm.ask('m')).toEqual({ requests: 3 })
    const trace = recording.handler.stopRecording()
    expect(trace.pages.length).toBeGreaterThanOrEqual(7680)
    const workingSet = join(await scratchFolder(), 'set')
    const set = WorkingSet.fromTraces([trace])
    await set.write(workingSet, { snapshot: { memoryFile: snapshot.memoryFile } })
    expect(await recording.handler.close()).toMatchObject({ state: 'vm-killed' })
    expect(await recording.vm.exited).toEqual({ code: null, signal: 'SIGKILL' })

    const { vm, handler } = await restored(snapshot, 'm', { workingSet, onBadWorkingSet: 'fail' })
    const { pid, pageSize, memoryBytes, regions } = await handler.connected
    expect({ pid, pageSize, memoryBytes }).toEqual({
      pid: vm.pid,
      pageSize: 4096,
      memoryBytes: (await stat(snapshot.memoryFile)).size,
    })
    expect(regions).toHaveLength(1)
    expect(await vm.answer('m')).toEqual({ requests: 2 })
    const provenBy = (await keepsTimes(snapshot.memoryFile)) ? 'written' : undefined
    expect(await handler.prefetched).toMatchObject({ complete: true, provenBy })
    const stats = handler.stats()
    expect(stats.residualFaults).toBe(0)
    expectBrought(stats, set.pageCount)

    // What is not in the set is right too, and what the guest writes stays.
    await vm.ask('l')
    await vm.ask('w')
    await vm.ask('n')
    await vm.ask('c')
    expect(await vm.ask('l')).toEqual({ requests: 7 })
    expect(handler.stats().residualFaults).toBeGreaterThan(16384 - 7680)
    await vm.kill()
    expect(await handler.closed).toMatchObject({ state: 'vm-exited' })
  })

  test('a guest that is held until the prefetch is over has no late fault', async () => {
    const snapshot = await cachedSnapshot('plain')
    const workingSet = await recordedSet(snapshot, 'm')
    const { vm, handler } = await restored(snapshot, 'm', { workingSet }, { resume: false })
    await handler.prefetched
    const before = handler.stats().lateFaults
    await vm.setState('Resumed')
    await vm.answer('m')
    expect(handler.stats()).toMatchObject({ residualFaults: 0, lateFaults: before })
  })

  test('another request than the recorded one is answered, and its own pages are residual', async () => {
    const snapshot = await cachedSnapshot('plain')
    const workingSet = await recordedSet(snapshot, 's')
    const { vm, handler } = await restored(snapshot, 'so', { workingSet })
    await vm.answer('s')
    await vm.answer('o')
    const served = () => handler.stats().residualFaults + handler.stats().installedAhead
    // The guest goes on before its last pages are counted.
    await expect.poll(served).toBeGreaterThanOrEqual(128)
    expect(served()).toBeLessThan(192)
    // The guest walks them in order.
    expect(handler.stats().residualFaults).toBeLessThan(64)
  })

  test('two regions of memory, below and above the hole of devices', async () => {
    // Of all written pages, so that its file is sparse.
    const boot = { memoryMib: 4096, trackDirtyPages: true }
    const snapshot = await cachedSnapshot('two-regions', { boot })
    const workingSet = await recordedSet(snapshot, 'm')
    const { vm, handler } = await restored(snapshot, 'ml', { workingSet })
    const { regions, memoryBytes } = await handler.connected
    expect(regions).toHaveLength(2)
    expect(memoryBytes).toBe(4096 * 2 ** 20)
    await vm.answer('m')
    expect(await handler.prefetched).toMatchObject({ complete: true })
    await vm.answer('l')
    const { order } = await WorkingSet.read(workingSet)
    const isHigh = (page: number) => page * 4096 >= regions[1]!.offset
    expect(order.pages.filter(isHigh).length).toBeGreaterThan(1000)
    expect(order.pages.filter((page) => !isHigh(page)).length).toBeGreaterThan(1000)
  })

  test('two vCPUs ask for pages at once', async () => {
    const snapshot = await cachedSnapshot('two-vcpus', { boot: { vcpus: 2 } })
    const workingSet = await recordedSet(snapshot, 'p')
    const { vm, handler } = await restored(snapshot, 'p', { workingSet })
    expect(await vm.answer('p')).toEqual({ requests: 3, figure: 2 })
    expect(handler.stats().residualFaults).toBe(0)
    const onDemand = await restored(snapshot, 'p')
    expect(await onDemand.vm.answer('p')).toEqual({ requests: 3, figure: 2 })
  })

  describe('by the command line, with a script that uses curl', () => {
    beforeAll(checkBuild)

    /** Loads the snapshot into a running Firecracker, and ends when `finish()` is called. */
    async function loadScript(folder: string, api: string, { vmstate }: Snapshot) {
      const fifo = join(folder, 'finish')
      execFileSync('mkfifo', [fifo])
      const path = join(folder, 'load.sh')
      const body = `{"snapshot_path": "${vmstate}", "mem_backend": {"backend_type": "Uffd",
        "backend_path": "'"$REAP_TRACE_SOCKET"'"}, "resume_vm": true}`
      await writeFile(
        path,
        `#!/bin/sh -e
curl --silent --show-error --fail-with-body --unix-socket '${api}' -X PUT \\
  -H 'Content-Type: application/json' -d '${body}' http://localhost/snapshot/load
cat '${fifo}'
`,
      )
      await chmod(path, 0o755)
      return { path, finish: () => writeFile(fifo, 'the function has answered\n') }
    }

    async function run(name: 'record' | 'restore', snapshot: Snapshot, ...options: string[]) {
      const folder = await scratchFolder()
      const vm = await microvm()
      const script = await loadScript(folder, join(vm.folder, 'api.sock'), snapshot)
      const words = ['--memory', snapshot.memoryFile, '--socket', join(folder, 'uffd.sock')]
      const cli = new Cli([name, ...words, ...options, '--json', '--', script.path])
      await cli.event('listening')
      const answer = await vm.ask('m')
      await script.finish()
      return { vm, cli, answer }
    }

    test('records, restores, and the VM lives until it is killed', async () => {
      const snapshot = await cachedSnapshot('plain')
      const set = join(await scratchFolder(), 'vm.ws')
      const recording = await run('record', snapshot, '--output', set)
      expect(recording.answer).toEqual({ requests: 3 })
      expect(await recording.cli.event('recorded')).toMatchObject({ path: set })
      await recording.vm.kill()
      expect(await recording.cli.ended).toMatchObject({ code: 0 })

      const trace = join(await scratchFolder(), 'restore.json')
      const options = ['--working-set', set, '--trace', trace]
      const { vm, cli, answer } = await run('restore', snapshot, ...options)
      expect(answer).toEqual({ requests: 3 })
      expect(await cli.event('prefetched')).toMatchObject({ complete: true })
      expect(await vm.ask('l')).toEqual({ requests: 4 })
      await vm.kill()
      const { code, stdout } = await cli.ended
      expect(code).toBe(0)
      expect(events(stdout).at(-1)).toMatchObject({ type: 'closed', state: 'vm-exited' })
      const { stats, prefetch } = await checkTrace(trace)
      expect(stats!.residualFaults).toBeGreaterThan(0)
      expect(prefetch).toMatchObject({ complete: true })
    })

    test('restores twice from a store, which learns when the script ends', async () => {
      const snapshot = await cachedSnapshot('plain')
      const store = join(await scratchFolder(), 'store')
      const first = await run('restore', snapshot, '--store', store)
      const { written } = await first.cli.event<{ written: [{ pageCount: number }] }>('learned')
      await first.vm.kill()
      expect(await first.cli.ended).toMatchObject({ code: 0 })

      const second = await run('restore', snapshot, '--store', store)
      expect(second.answer).toEqual({ requests: 3 })
      const prefetched = await second.cli.event<{ pageCount: number }>('prefetched')
      // Without the pages that are held out.
      expect(prefetched.pageCount).toBeGreaterThan(0.7 * written[0].pageCount)
      expect(prefetched).toMatchObject({ complete: true, source: 'working-set' })
      await second.cli.event('learned')
      await second.vm.kill()
      const { code, stdout } = await second.cli.ended
      expect(code).toBe(0)
      const { statsAtReady } = events(stdout).find(({ type }) => type === 'closed')
      expect(statsAtReady.residualFaults).toBeLessThan(0.05 * written[0].pageCount)
    })
  })

  test('the example makes a snapshot once, and restores with what the store learned', async () => {
    await checkBuild()
    const folder = await scratchFolder()
    const boot = ['--kernel', guestKernel, '--boot-seconds', '1']
    const first = await runExample(firecracker, folder, ...boot, '--', 'true')
    expect(first.code, first.output).toBe(0)
    expect(first.phases).toEqual(expect.arrayContaining(['snapshot', 'written', 'prefetched']))
    const second = await runExample(firecracker, folder, '--', 'true')
    expect(second.code, second.output).toBe(0)
    expect(second.phases).toContain('prefetched')
    expect(second.phases).not.toContain('snapshot')
  })
})
