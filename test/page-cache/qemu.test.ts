import { describe, expect, onTestFinished, test } from 'vitest'
import { diskFunctionNames, type Guest, prepareGuests } from '../../native/guest/linux/index.mjs'
import { findParts } from '../../native/guest/linux/packages.mjs'
import { prefetchPageCache, recordPageCache, WorkingSet } from '../../src/index.js'
import { evict, residentPages } from '../support/page-cache.js'
import { newPath } from '../support/working-sets.js'

// A guest that has to be built boots under emulation, on a machine that may be busy.
const buildMs = 180_000

function whatIsMissing(): string | undefined {
  try {
    findParts()
    return undefined
  } catch (error) {
    return (error as Error).message
  }
}
const missing = whatIsMissing()
if (missing) process.stderr.write(`skipped, the Linux guest: ${missing}\n`)

async function guestOf(name: string): Promise<Guest> {
  const [guest] = await prepareGuests({ functions: [name] })
  return guest!
}

/** Restores the guest on a plain mapping, and invokes it with its first input. */
async function invoked(guest: Guest) {
  const vm = await guest.restore()
  onTestFinished(() => vm.stop())
  await vm.resume()
  const { request, answer } = guest.inputs[0]!
  expect((await vm.invoke(request)).answer).toEqual(answer)
  return vm
}

/** A working-set file of one invocation of stock QEMU, and what was recorded. */
async function recorded(guest: Guest) {
  const { memoryFile, diskImages } = guest
  await using recording = await recordPageCache({ snapshot: { memoryFile, diskImages } })
  const vm = await invoked(guest)
  const record = await recording.stop()
  await vm.stop()
  const workingSet = newPath('vm.ws')
  const disks = record.disks.map((disk) => [disk])
  const set = WorkingSet.fromTraces([record.trace], { disks })
  await set.write(workingSet, { snapshot: { memoryFile, diskImages } })
  await evict(memoryFile, ...diskImages)
  return { ...record, pid: vm.pid, workingSet, memoryFile, diskImages }
}

describe.skipIf(missing)('stock QEMU without a handler', { timeout: buildMs }, () => {
  test('is recorded, and the next restore finds its memory in the page cache', async () => {
    const guest = await guestOf('helloworld')
    const record = await recorded(guest)
    const { memoryFile, workingSet, trace, mapper, trimmedPageCount } = record
    expect(mapper).toEqual({ pid: record.pid })
    // The function touches some hundred pages, and a fault maps its neighbours too.
    expect(trace.pages.length).toBeGreaterThan(500)
    expect(trace.pages.length).toBeLessThan(guest.memoryBytes / 4096 / 2)
    expect(trimmedPageCount).toBeGreaterThanOrEqual(0)

    const result = await prefetchPageCache({ snapshot: { memoryFile }, workingSet })
    expect(result).toMatchObject({ pageCount: trace.pages.length, complete: true })
    const there = new Set(residentPages(memoryFile))
    const found = trace.pages.filter((page) => there.has(page)).length
    // A host that is short of memory may take a few pages back.
    expect(found).toBeGreaterThan(trace.pages.length * 0.98)
    const vm = await invoked(guest)
    const more = residentPages(memoryFile).filter((page) => !there.has(page)).length
    await vm.stop()
    // By itself, the kernel reads megabytes around each page that is missing.
    await evict(memoryFile)
    await invoked(guest)
    const alone = residentPages(memoryFile).length
    expect(trace.pages.length).toBeLessThan(alone)
    expect(more).toBeLessThan(alone / 10)
  })

  test.each(diskFunctionNames)('%s is recorded with what it reads of its disk', async (name) => {
    const guest = await guestOf(name)
    const { memoryFile, diskImages, workingSet, disks } = await recorded(guest)
    const [image] = diskImages as [string]
    const [disk] = disks
    expect(disk!.pages.length).toBeGreaterThan(1000)

    // Without the prefetch, the invocation reads all of that.
    await invoked(guest).then((vm) => vm.stop())
    const alone = residentPages(image).length
    expect(alone).toBeGreaterThan(1000)
    await evict(memoryFile, image)

    const result = await prefetchPageCache({ snapshot: { memoryFile, diskImages }, workingSet })
    expect(result.complete).toBe(true)
    const before = new Set(residentPages(image))
    const found = disk!.pages.filter((page) => before.has(page)).length
    expect(found).toBeGreaterThan(disk!.pages.length * 0.98)
    await invoked(guest)
    const more = residentPages(image).filter((page) => !before.has(page)).length
    expect(more).toBeLessThan(alone / 10)
  })
})
