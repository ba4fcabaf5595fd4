import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { beforeAll, describe, expect, test } from 'vitest'
import type { MicroVm } from '../../native/guest/driver/microvm.mjs'
import { cachedSnapshot } from '../../native/guest/driver/microvm-snapshot.mjs'
import { Cli, checkBuild } from '../support/cli-process.js'
import { scratchFolder, serveScene } from '../support/scratch.js'
import { microvm, missing, recordedSet, restored } from '../support/stock-firecracker.js'

const killed = { code: null, signal: 'SIGKILL' }

/** Whether one of its threads waits for a page. */
function waitsForPage({ pid }: MicroVm): boolean {
  return readdirSync(`/proc/${pid}/task`).some((thread) =>
    readFileSync(`/proc/${pid}/task/${thread}/wchan`, 'latin1').includes('userfault'),
  )
}

describe.skipIf(missing)('a Firecracker that is killed', () => {
  test('before it connects: the handler waits on, and another one may come', async () => {
    const { vmstate, memoryFile } = await cachedSnapshot('plain')
    const socketPath = join(await scratchFolder(), 'uffd.sock')
    const handler = await serveScene({ socketPath, memoryFile })
    const first = await microvm()
    await first.kill()
    const vm = await microvm()
    await vm.load({ vmstate, uffdSocket: socketPath })
    expect((await handler.connected).pid).toBe(vm.pid)
    await vm.ask('s')
  })

  test('during the prefetch: the session ends with it', async () => {
    const snapshot = await cachedSnapshot('plain')
    const workingSet = await recordedSet(snapshot, 'l')
    const socketPath = join(await scratchFolder(), 'uffd.sock')
    const vm = await microvm()
    const handler = await serveScene(
      { socketPath, memoryFile: snapshot.memoryFile },
      {
        workingSet,
        onEvent: ({ type }) => {
          if (type === 'connected') vm.signal('SIGKILL')
        },
      },
    )
    vm.send('l')
    const load = vm.load({ vmstate: snapshot.vmstate, uffdSocket: socketPath }).catch(() => {})
    expect(await handler.closed).toMatchObject({ state: 'vm-exited' })
    await load
    expect(await vm.exited).toEqual(killed)
    expect(existsSync(socketPath)).toBe(false)
  })

  test('while its guest asks for pages: the session ends with it', async () => {
    const { vm, handler } = await restored(await cachedSnapshot('plain'), 'l')
    await expect.poll(() => handler.stats().faults).toBeGreaterThan(1000)
    vm.signal('SIGKILL')
    expect(await handler.closed).toMatchObject({ state: 'vm-exited' })
    expect(await vm.exited).toEqual(killed)
  })
})

describe.skipIf(missing)('a handler that ends', () => {
  beforeAll(checkBuild)

  /** A handler in another process, and a Firecracker that has not loaded yet. */
  async function handled(requests: string) {
    const snapshot = await cachedSnapshot('plain')
    const workingSet = await recordedSet(snapshot, requests)
    const uffdSocket = join(await scratchFolder(), 'uffd.sock')
    const words = ['--memory', snapshot.memoryFile, '--working-set', workingSet]
    const handler = new Cli(['restore', ...words, '--socket', uffdSocket, '--json'])
    await handler.event('listening')
    const vm = await microvm()
    const load = () => vm.load({ vmstate: snapshot.vmstate, uffdSocket })
    return { handler, vm, load }
  }

  test('by SIGKILL before the load: Firecracker refuses, and ends', async () => {
    const { handler, vm, load } = await handled('s')
    handler.kill('SIGKILL')
    await handler.ended
    await expect(load()).rejects.toMatchObject({
      status: 400,
      message: expect.stringContaining('Connection refused (os error 111)'),
    })
    expect(await vm.exited).toMatchObject({ signal: null })
  })

  test('by SIGKILL during the prefetch: the guest stands still where a page is missing', async () => {
    const { handler, vm, load } = await handled('l')
    vm.send('l')
    const loading = load().catch(() => {})
    await handler.event('connected')
    handler.kill('SIGKILL')
    await handler.ended
    vm.send('z')
    await expect.poll(() => waitsForPage(vm)).toBe(true)
    await vm.kill()
    await loading
  })

  test('by SIGKILL after the prefetch: what is there is right, and the rest stands still', async () => {
    const { handler, vm, load } = await handled('s')
    await load()
    await vm.ask('s')
    await handler.event('prefetched')
    handler.kill('SIGKILL')
    await handler.ended
    expect(await vm.ask('s')).toEqual({ requests: 4 })
    vm.send('l')
    await expect.poll(() => waitsForPage(vm)).toBe(true)
    expect(await vm.state()).toBe('Running')
  })

  test.each(['SIGTERM', 'SIGHUP'] as const)('by %s: the VM is killed', async (signal) => {
    const { handler, vm, load } = await handled('s')
    await load()
    await vm.ask('s')
    handler.kill(signal)
    expect(await vm.exited).toEqual(killed)
    await handler.ended
  })

  test('by detach(): the VM lives on with all its memory', async () => {
    const { vm, handler } = await restored(await cachedSnapshot('plain'), 's')
    await vm.answer('s')
    expect(await handler.detach()).toMatchObject({ state: 'detached' })
    const { faults } = handler.stats()
    expect(await vm.ask('l')).toEqual({ requests: 4 })
    expect(handler.stats().faults).toBe(faults)
  })
})

test.skipIf(missing)('twenty Firecrackers are restored at once', async () => {
  const snapshot = await cachedSnapshot('plain')
  const workingSet = await recordedSet(snapshot, 's')
  const all = await Promise.all(
    Array.from({ length: 20 }, () => restored(snapshot, 's', { workingSet })),
  )
  for (const { vm, handler } of all) {
    expect(await vm.answer('s')).toEqual({ requests: 3 })
    expect(await handler.prefetched).toMatchObject({ complete: true })
    expect(handler.stats().residualFaults).toBe(0)
  }
})
