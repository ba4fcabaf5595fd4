import { once } from 'node:events'
import { chmod, link, stat, symlink, truncate, writeFile } from 'node:fs/promises'
import { createConnection, createServer, type Server } from 'node:net'
import { join } from 'node:path'
import { describe, expect, onTestFinished, test } from 'vitest'
import { serve } from '../../src/index.js'
import type { HandshakeOptions } from '../support/fake-vmm.js'
import { fakeVmm, isRoot, scene, scratchFolder, serveScene } from '../support/scratch.js'

describe('a handshake is accepted', () => {
  const shapes: [string, HandshakeOptions][] = [
    ['without page sizes, as Firecracker 1.1 to 1.6 send it', { keys: 'none' }],
    ['with page_size_kib in bytes, as 1.7 to 1.11 do', { keys: 'kib' }],
    ['with page_size alone', { keys: 'page_size' }],
    ['with both, as since 1.12', { keys: 'both' }],
    ['with keys that are not known', { extra: true }],
    ['byte by byte', { pieces: 1000 }],
    ['longer than 64 KiB', { pad: 200_000 }],
    ['from a VMM that closes the socket behind it, as before 1.12', { close: true }],
  ]
  test.each(shapes)('%s', async (_, options) => {
    const s = await scene({ pages: 64 })
    const handler = await serveScene(s)
    await s.vmm.handshake(s.socketPath, options)
    await expect(handler.connected).resolves.toMatchObject({
      pid: s.vmm.pid,
      pageSize: 4096,
      memoryBytes: 64 * 4096,
    })
    expect((await s.vmm.verify(s.memoryFile)).wrong).toEqual([])
  })

  test.each([
    [1, 'asc'],
    [2, 'desc'],
    [3, 'shuffle'],
    [64, 'asc'],
    [64, 'desc'],
    [64, 'shuffle'],
  ] as const)('with %i regions in %s order of address', async (regions, order) => {
    const s = await scene({ pages: 256, regions, order, gap: 8192 })
    const handler = await serveScene(s)
    await s.vmm.handshake(s.socketPath)
    const { regions: seen } = await handler.connected
    expect(seen).toHaveLength(regions)
    expect(seen.map(({ offset }) => offset)).toEqual(
      [...seen.keys()].map((i) => i * Math.floor(256 / regions) * 4096),
    )
    expect((await s.vmm.verify(s.memoryFile)).wrong).toEqual([])
  })
})

describe('a handshake is refused', () => {
  const shapes: [string, HandshakeOptions, string][] = [
    ['without a descriptor', { fds: 0 }, 'descriptors'],
    ['with two descriptors', { fds: 2 }, 'descriptors'],
    ['with one that is not a userfaultfd', { 'wrong-fd': true }, 'not-a-userfaultfd'],
    ['for guest_memfd memory', { guest_memfd: true }, 'guest-memfd'],
    ['that is not JSON', { raw: '[{"size": ]' }, 'json'],
    ['that is not an array', { raw: '{}' }, 'not-an-array'],
    ['without regions', { raw: '[]' }, 'region-count'],
    ['that ends early', { truncate: 40 }, 'truncated'],
    ['of more than 1 MiB', { pad: 2 << 20 }, 'too-large'],
    ['with regions that overlap', { tweak: 'overlap' }, 'region-overlap'],
    ['with mixed page sizes', { tweak: 'mixed-page' }, 'page-size-mixed'],
    ['with an odd page size', { raw: page(4097) }, 'page-size'],
    ['with a region at an odd address', { tweak: 'unaligned' }, 'alignment'],
    ['with a region of an odd size', { tweak: 'odd-size' }, 'alignment'],
    ['with a gap in the memory file', { tweak: 'gap' }, 'offset-gap'],
    ['with less memory than the file', { tweak: 'too-short' }, 'memory-size'],
    ['with more memory than the file', { tweak: 'too-long' }, 'memory-size'],
  ]

  function page(pageSize: number): string {
    return JSON.stringify([
      { base_host_virt_addr: 0x7f0000000000, size: 262144, offset: 0, page_size: pageSize },
    ])
  }

  test.each(shapes)('%s', async (_, options, check) => {
    const s = await scene({ pages: 64, regions: 2 })
    const handler = await serveScene(s)
    // A VMM that is killed for it may not get round to answering.
    await s.vmm.handshake(s.socketPath, options).catch(() => {})
    const refusal = expect.objectContaining({ code: 'ERR_HANDSHAKE_INVALID', check })
    await expect(handler.connected).rejects.toEqual(refusal)
    await expect(handler.closed).rejects.toEqual(refusal)
    await expect(handler.prefetched).rejects.toEqual(refusal)
    await expect(stat(s.socketPath)).rejects.toMatchObject({ code: 'ENOENT' })
  })

  test('and a VMM that has handed over its memory is killed, since it would freeze', async () => {
    const s = await scene({ pages: 64 })
    const handler = await serveScene(s)
    await s.vmm.handshake(s.socketPath, { fds: 2 }).catch(() => {})
    await expect(handler.closed).rejects.toThrow(/the VM \(pid \d+\) was killed/)
    expect(await s.vmm.exited).toEqual({ code: null, signal: 'SIGKILL' })
  })

  test('and a VMM that has not is left alone', async () => {
    const s = await scene({ pages: 64 })
    const handler = await serveScene(s)
    await s.vmm.handshake(s.socketPath, { fds: 0 })
    await expect(handler.closed).rejects.toMatchObject({ code: 'ERR_HANDSHAKE_INVALID' })
    expect(await s.vmm.fds()).toBeGreaterThan(0)
  })

  test("and with vm: 'leave' it is left as well", async () => {
    const s = await scene({ pages: 64 })
    const handler = await serveScene(s, { vm: 'leave' })
    await s.vmm.handshake(s.socketPath, { fds: 2 })
    await expect(handler.closed).rejects.toThrow(/was left without a handler/)
    expect(await s.vmm.fds()).toBeGreaterThan(0)
  })
})

describe('the deadline', () => {
  test('ends a session to which nobody connects', async () => {
    const s = await scene({ pages: 64 })
    const handler = await serveScene(s, { connectTimeoutMs: 50 })
    await expect(handler.connected).rejects.toMatchObject({
      code: 'ERR_HANDSHAKE_TIMEOUT',
      check: 'connect',
      path: s.socketPath,
    })
    await expect(stat(s.socketPath)).rejects.toMatchObject({ code: 'ENOENT' })
  })

  test('ends a session whose peer says nothing', async () => {
    const s = await scene({ pages: 64 })
    const handler = await serveScene(s)
    await s.vmm.handshake(s.socketPath, { hold: true })
    await expect(handler.connected).rejects.toMatchObject({
      code: 'ERR_HANDSHAKE_TIMEOUT',
      check: 'message',
    })
  })
})

describe('the socket', () => {
  test('can be used by its owner alone', async () => {
    const s = await scene({ pages: 64 })
    await serveScene(s)
    expect((await stat(s.socketPath)).mode & 0o777).toBe(0o600)
  })

  test('takes the place of one that its owner left behind', async () => {
    const s = await scene({ pages: 64 })
    await leaveSocket(s.socketPath)
    const handler = await serveScene(s)
    await s.vmm.handshake(s.socketPath)
    await handler.connected
  })

  test('does not take the place of one that somebody listens on', async () => {
    const s = await scene({ pages: 64 })
    await listen(s.socketPath)
    await expect(serveScene(s)).rejects.toMatchObject({
      code: 'ERR_SOCKET',
      check: 'in-use',
      syscall: 'bind',
      path: s.socketPath,
    })
    expect((await stat(s.socketPath)).isSocket()).toBe(true)
  })

  test('does not take the place of a file', async () => {
    const s = await scene({ pages: 64 })
    await writeFile(s.socketPath, 'precious')
    await expect(serveScene(s)).rejects.toMatchObject({ code: 'ERR_SOCKET', check: 'in-use' })
    expect((await stat(s.socketPath)).size).toBe(8)
  })

  test('needs a path that fits into an address', async () => {
    const s = await scene({ pages: 64 })
    await expect(
      serveScene({
        memoryFile: s.memoryFile,
        socketPath: join(s.folder, 'x'.repeat(108)),
      }),
    ).rejects.toThrow(/"socketPath" of serve\(\) .* at most 107 bytes/)
  })

  test('is not disturbed by a second handler on its path', async () => {
    const s = await scene({ pages: 64 })
    const handler = await serveScene(s)
    await expect(serveScene(s)).rejects.toMatchObject({ code: 'ERR_SOCKET', check: 'in-use' })
    await s.vmm.handshake(s.socketPath)
    await expect(handler.connected).resolves.toMatchObject({ pid: s.vmm.pid })
  })

  test('is not disturbed by connections that close without a byte', async () => {
    const s = await scene({ pages: 64 })
    const handler = await serveScene(s)
    for (let i = 0; i < 20; i++) {
      const probe = createConnection(s.socketPath)
      await once(probe, 'connect')
      probe.destroy()
    }
    await s.vmm.handshake(s.socketPath)
    await expect(handler.connected).resolves.toMatchObject({ pid: s.vmm.pid })
    expect((await s.vmm.verify(s.memoryFile)).wrong).toEqual([])
  })

  test('needs a folder', async () => {
    const s = await scene({ pages: 64 })
    await expect(
      serveScene({
        memoryFile: s.memoryFile,
        socketPath: join(s.folder, 'no', 'uffd.sock'),
      }),
    ).rejects.toMatchObject({ code: 'ERR_SOCKET', syscall: 'bind' })
  })

  test('is taken away when the session ends, unless it is another one by then', async () => {
    const s = await scene({ pages: 64 })
    const first = await serveScene(s)
    await first.close()
    await expect(stat(s.socketPath)).rejects.toMatchObject({ code: 'ENOENT' })
  })

  async function listen(path: string): Promise<Server> {
    const server = createServer()
    onTestFinished(() => void server.close())
    await new Promise<void>((resolve) => server.listen(path, resolve))
    return server
  }

  /** A socket that nobody listens on: bound under another name, which a hard link keeps. */
  async function leaveSocket(path: string): Promise<void> {
    const server = await listen(`${path}.old`)
    await link(`${path}.old`, path)
    await new Promise((resolve) => server.close(resolve))
  }
})

describe.skipIf(!isRoot)('a peer of another uid (needs root to make one)', () => {
  const nobody = 65534

  test('is refused, even when the socket lets it in', async () => {
    const s = await scene({ pages: 64 })
    await openTo(s.folder)
    const handler = await serveScene(s)
    await chmod(s.socketPath, 0o666)
    const vmm = await fakeVmm({ uid: nobody })
    await vmm.map(4096, 64 * 4096)
    await vmm.handshake(s.socketPath).catch(() => {})
    await expect(handler.connected).rejects.toMatchObject({
      code: 'ERR_PEER_REFUSED',
      check: 'uid',
      hint: expect.stringContaining('peerUid: 65534'),
    })
    expect(await vmm.fds()).toBeGreaterThan(0)
  })

  test('is served when peerUid names it, and the socket is its own', async () => {
    const s = await scene({ pages: 64 })
    await openTo(s.folder)
    const handler = await serveScene(s, { peerUid: nobody })
    expect((await stat(s.socketPath)).uid).toBe(nobody)
    const vmm = await fakeVmm({ uid: nobody })
    await vmm.map(4096, 64 * 4096)
    await vmm.handshake(s.socketPath)
    await expect(handler.connected).resolves.toMatchObject({ pid: vmm.pid })
    expect((await vmm.read(3)).digests).toHaveLength(1)
  })

  const openTo = (folder: string) => chmod(folder, 0o755)
})

describe('the memory file', () => {
  test('must be there', async () => {
    const folder = await scratchFolder()
    await expect(
      serve({
        socketPath: join(folder, 's'),
        snapshot: { memoryFile: join(folder, 'none') },
        record: true,
      }),
    ).rejects.toMatchObject({ code: 'ERR_SOURCE_READ', syscall: 'open', errno: -2 })
    await expect(stat(join(folder, 's'))).rejects.toMatchObject({ code: 'ENOENT' })
  })

  test('must be a file', async () => {
    const folder = await scratchFolder()
    await expect(
      serve({ socketPath: join(folder, 's'), snapshot: { memoryFile: folder }, record: true }),
    ).rejects.toMatchObject({ code: 'ERR_SOURCE_READ' })
  })

  test('may be reached by a link', async () => {
    const s = await scene({ pages: 64 })
    const memoryFile = join(s.folder, 'link')
    await symlink(s.memoryFile, memoryFile)
    const handler = await serveScene({ ...s, memoryFile })
    await s.vmm.handshake(s.socketPath)
    await handler.connected
  })

  test('must have the size of the guest memory', async () => {
    const s = await scene({ pages: 64 })
    await truncate(s.memoryFile, 63 * 4096)
    const handler = await serveScene(s)
    // A VMM that is killed for it may not get round to answering.
    await s.vmm.handshake(s.socketPath).catch(() => {})
    await expect(handler.connected).rejects.toMatchObject({
      code: 'ERR_HANDSHAKE_INVALID',
      check: 'memory-size',
      hint: expect.stringContaining('memory file'),
    })
  })
})
