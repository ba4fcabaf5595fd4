import { randomBytes } from 'node:crypto'
import koffi from 'koffi'
import { describe, expect, onTestFinished, test } from 'vitest'
import {
  AnonymousMemory,
  KoffiUffd,
  MISSING_IOCTLS,
  pageSize,
  UFFD_FEATURE_EVENT_REMOVE,
} from '../support/koffi-uffd.js'

const { EAGAIN, EEXIST, EINVAL, ENOENT } = koffi.os.errno as Record<string, number>
const noUffd = KoffiUffd.unavailable()
const zeros = Buffer.alloc(pageSize)

/** Memory under a userfaultfd, released at the end even of a test that timed out. */
function arena(pages: number): { memory: AnonymousMemory; uffd: KoffiUffd } {
  const memory = AnonymousMemory.map(pages)
  const uffd = KoffiUffd.open()
  onTestFinished(async () => {
    uffd.close()
    await memory.unmap()
  })
  uffd.api(UFFD_FEATURE_EVENT_REMOVE)
  uffd.register(memory.address, memory.size)
  return { memory, uffd }
}

describe.skipIf(noUffd)(noUffd ?? 'a userfaultfd client over koffi', () => {
  test('the API handshake offers REMOVE events and is refused a second time', () => {
    const uffd = KoffiUffd.open()
    onTestFinished(() => uffd.close())
    expect(uffd.api().features & UFFD_FEATURE_EVENT_REMOVE).not.toBe(0n)
    expect(() => uffd.api(UFFD_FEATURE_EVENT_REMOVE)).toThrow('UFFDIO_API: EINVAL')
  })

  test('a registered range offers copy, zeropage and wake', () => {
    const { memory, uffd } = arena(1)
    // A second registration of the same range by the same descriptor is allowed.
    expect(uffd.register(memory.address, memory.size) & MISSING_IOCTLS).toBe(MISSING_IOCTLS)
    expect(uffd.readEvents()).toEqual([])
  })

  test('a missing page stops the thread that reads it until the page is copied', async () => {
    const { memory, uffd } = arena(4)
    const bytes = randomBytes(pageSize)
    const touch = memory.read(2)
    expect(await uffd.nextEvents()).toEqual([
      { event: 'pagefault', address: memory.at(2), write: false },
    ])
    expect(memory.resident()).toEqual([])
    expect(uffd.copy(memory.at(2), bytes)).toEqual({ copied: pageSize, errno: 0 })
    expect(await touch).toEqual(bytes)
    expect(memory.resident()).toEqual([2])
  })

  test('a write fault says so, and keeps the rest of the page that is copied', async () => {
    const { memory, uffd } = arena(1)
    const bytes = Buffer.alloc(pageSize, 0x11)
    const touch = memory.write(0, 0x22)
    expect(await uffd.nextEvents()).toEqual([
      { event: 'pagefault', address: memory.at(0), write: true },
    ])
    uffd.copy(memory.at(0), bytes)
    await touch
    bytes[0] = 0x22
    expect(await memory.read(0)).toEqual(bytes)
  })

  test('zeropage serves zeros', async () => {
    const { memory, uffd } = arena(1)
    const touch = memory.read(0)
    await uffd.nextEvents()
    expect(uffd.zeropage(memory.at(0))).toEqual({ copied: pageSize, errno: 0 })
    expect(await touch).toEqual(zeros)
  })

  test('two threads on one page are two messages, and one copy wakes both', async () => {
    const { memory, uffd } = arena(1)
    const bytes = randomBytes(pageSize)
    const touches = [memory.read(0), memory.read(0)]
    await expect.poll(() => uffd.waiters().unread).toBe(2)
    expect(uffd.readEvents()).toEqual(
      Array(2).fill({ event: 'pagefault', address: memory.at(0), write: false }),
    )
    uffd.copy(memory.at(0), bytes)
    expect(await Promise.all(touches)).toEqual([bytes, bytes])
  })

  test('EEXIST does not wake a thread that waits for the page; WAKE does', async () => {
    const { memory, uffd } = arena(2)
    const bytes = randomBytes(pageSize)
    const touch = memory.read(0)
    await uffd.nextEvents()
    expect(uffd.copy(memory.at(0), bytes, { wake: false }).errno).toBe(0)
    expect(uffd.copy(memory.at(0), zeros)).toEqual({ copied: -EEXIST!, errno: EEXIST })
    expect(uffd.zeropage(memory.at(0))).toEqual({ copied: -EEXIST!, errno: EEXIST })
    expect(uffd.waiters()).toEqual({ unread: 0, total: 1 })

    uffd.wake(memory.at(0))
    expect(uffd.waiters()).toEqual({ unread: 0, total: 0 })
    expect(await touch).toEqual(bytes)
  })

  test('a run that meets a present page stops there with EAGAIN and the bytes it copied', () => {
    const { memory, uffd } = arena(4)
    const run = randomBytes(4 * pageSize)
    uffd.copy(memory.at(2), zeros)
    expect(uffd.copy(memory.at(0), run)).toEqual({ copied: 2 * pageSize, errno: EAGAIN })
    expect(uffd.copy(memory.at(2), run.subarray(2 * pageSize))).toEqual({
      copied: -EEXIST!,
      errno: EEXIST,
    })
    expect(memory.resident()).toEqual([0, 1, 2])
  })

  test('the part of a run that was copied before EAGAIN is woken', async () => {
    const { memory, uffd } = arena(2)
    const run = randomBytes(2 * pageSize)
    uffd.zeropage(memory.at(1))
    const touch = memory.read(0)
    await uffd.nextEvents()
    expect(uffd.copy(memory.at(0), run)).toEqual({ copied: pageSize, errno: EAGAIN })
    expect(await touch).toEqual(run.subarray(0, pageSize))
  })

  test.each([
    ['a destination off the page', 1n, pageSize],
    ['a length that is no multiple of the page', 0n, 100],
    ['a length of nothing', 0n, 0],
  ])('EINVAL and nothing copied: %s', (_, skew, bytes) => {
    const { memory, uffd } = arena(2)
    expect(uffd.copy(memory.at(0) + skew, Buffer.alloc(bytes))).toEqual({
      copied: 0,
      errno: EINVAL,
    })
    expect(memory.resident()).toEqual([])
  })

  test('a source may start anywhere', async () => {
    const { memory, uffd } = arena(1)
    const bytes = randomBytes(pageSize + 3).subarray(3)
    uffd.copy(memory.at(0), bytes)
    expect(await memory.read(0)).toEqual(bytes)
  })

  test('ENOENT: a range that is not registered, or only in part', () => {
    const { memory, uffd } = arena(4)
    uffd.unregister(memory.at(1), pageSize)
    expect(uffd.copy(memory.at(1), zeros)).toEqual({ copied: -ENOENT!, errno: ENOENT })
    expect(uffd.copy(memory.at(0), Buffer.alloc(2 * pageSize))).toEqual({
      copied: -ENOENT!,
      errno: ENOENT,
    })
    expect(memory.resident()).toEqual([])
  })

  test('unregistering wakes who waits there, and the page reads as zeros', async () => {
    const { memory, uffd } = arena(1)
    const touch = memory.read(0)
    await uffd.nextEvents()
    uffd.unregister(memory.address, memory.size)
    expect(await touch).toEqual(zeros)
  })

  test('closing the last descriptor releases who waits, with zeros', async () => {
    const { memory, uffd } = arena(1)
    const touch = memory.read(0)
    await uffd.readable()
    uffd.close()
    expect(await touch).toEqual(zeros)
  })

  test('while a REMOVE is unread, copy and zeropage get EAGAIN and a negative count', async () => {
    const { memory, uffd } = arena(4)
    uffd.copy(memory.at(1), randomBytes(pageSize))
    const discarded = memory.discard(1, 2)
    await uffd.readable()
    expect(uffd.copy(memory.at(0), zeros)).toEqual({ copied: -EAGAIN!, errno: EAGAIN })
    expect(uffd.zeropage(memory.at(0))).toEqual({ copied: -EAGAIN!, errno: EAGAIN })
    uffd.wake(memory.at(0))

    expect(uffd.readEvents()).toEqual([{ event: 'remove', start: memory.at(1), end: memory.at(3) }])
    await discarded
    expect(memory.resident()).toEqual([])
    expect(uffd.zeropage(memory.at(1))).toEqual({ copied: pageSize, errno: 0 })
  })

  test('a page that was removed faults again', async () => {
    const { memory, uffd } = arena(1)
    uffd.copy(memory.at(0), randomBytes(pageSize))
    const discarded = memory.discard(0)
    await uffd.nextEvents()
    await discarded
    const touch = memory.read(0)
    expect(await uffd.nextEvents()).toMatchObject([{ event: 'pagefault', address: memory.at(0) }])
    uffd.zeropage(memory.at(0))
    expect(await touch).toEqual(zeros)
  })

  test('a fault is read ahead of a REMOVE that was queued before it', async () => {
    const { memory, uffd } = arena(2)
    const discarded = memory.discard(0)
    await uffd.readable()
    const touch = memory.read(1)
    await expect.poll(() => uffd.waiters().unread).toBe(1)
    expect((await uffd.nextEvents()).map(({ event }) => event)).toEqual(['pagefault', 'remove'])
    await discarded
    uffd.zeropage(memory.at(1))
    await touch
  })
})
