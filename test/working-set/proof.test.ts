import { closeSync, openSync, readFileSync, writeSync } from 'node:fs'
import {
  chmod,
  chown,
  copyFile,
  link,
  open,
  rename,
  statfs,
  symlink,
  unlink,
  utimes,
} from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { beforeAll, describe, expect, onTestFinished, test, vi } from 'vitest'
import { native } from '../../src/binding/addon.js'
import { WorkingSet } from '../../src/index.js'
import { keepsTimes } from '../../src/snapshot/file-stamp.js'
import { Cli, checkBuild, events, serveWords } from '../support/cli-process.js'
import {
  changePages,
  comparisons,
  copiedPair,
  identical,
  order,
  others,
  type Pair,
  places,
  proven,
  restore,
  SET_PAGES,
  unproven,
  withTimeSetBack,
  writeAsItIs,
  writtenPair,
} from '../support/proofs.js'
import { fakeVmm, isRoot, scene, scratchFolder, serveScene } from '../support/scratch.js'
import { PAGE } from '../support/working-sets.js'

beforeAll(checkBuild)

/** Restores in a separate process; returns its events. */
async function restoreElsewhere(
  { memoryFile, workingSet, socketPath, pages }: Pair,
  env: NodeJS.ProcessEnv = {},
) {
  const vmm = await fakeVmm()
  await vmm.map(PAGE, pages * PAGE)
  const words = ['restore', ...serveWords({ memoryFile, socketPath }), '--working-set', workingSet]
  const cli = new Cli(words, { env })
  await cli.event('listening')
  await vmm.handshake(socketPath)
  const prefetched = await cli.event('prefetched')
  expect((await vmm.verify(memoryFile)).wrong).toEqual([])
  await vmm.exit(0)
  const { code, stdout, stderr } = await cli.ended
  expect({ code, stderr }).toEqual({ code: 0, stderr: '' })
  return { prefetched, types: events(stdout).map(({ type }) => type) }
}

describe('a working set that was written on this host', () => {
  test('is proven without a comparison', async () => {
    const pair = await writtenPair()
    const spy = comparisons()
    for (let i = 0; i < 2; i++) {
      const restored = await restore(pair)
      expect(restored).toMatchObject(proven('written'))
      expect(restored.types).toEqual(['listening', 'connected', 'prefetched', 'closed'])
    }
    expect(spy).not.toHaveBeenCalled()
  })

  test('is proven in another process of this user, where that remembers the same', async () => {
    const pair = await writtenPair()
    const here = await restoreElsewhere(pair)
    expect(here.prefetched).toMatchObject(proven('written').prefetched)
    expect(here.types).not.toContain('compared')
    const env = { REAP_TRACE_PROOFS: join(await scratchFolder(), 'proofs') }
    const elsewhere = await restoreElsewhere(pair, env)
    expect(elsewhere.prefetched).toMatchObject({ source: 'memory-file' })
    expect(elsewhere.types).toContain('compared')
    const again = await restoreElsewhere(pair, env)
    expect(again.prefetched).toMatchObject(proven('compared').prefetched)
    expect(again.types).not.toContain('compared')
  })

  test('is proven for that memory file alone', async () => {
    const pair = await writtenPair()
    const memoryFile = join(pair.folder, 'other')
    await copyFile(pair.memoryFile, memoryFile)
    await changePages(memoryFile, [order[7]!])
    expect(await restore({ ...pair, memoryFile })).toMatchObject({
      ...unproven,
      compared: { mismatchedPageCount: 1, rewritten: false },
    })
    expect(await restore(pair)).toMatchObject(proven('written'))
  })
})

describe('a working set that comes with its memory file from elsewhere', () => {
  test('gives the order at first, is compared, and is proven from then on', async () => {
    const pair = await copiedPair()
    const spy = comparisons()
    const first = await restore(pair)
    expect(first).toMatchObject({ ...unproven, warnings: [] })
    expect(first.compared).toEqual(identical)
    expect(first.types).toEqual(['listening', 'connected', 'prefetched', 'compared', 'closed'])
    expect(first.events[3]).toEqual({ type: 'compared', atMs: expect.any(Number), ...identical })
    expect(await restore(pair)).toMatchObject(proven('compared'))
    expect(spy).toHaveBeenCalledOnce()
    expect((await restoreElsewhere(pair)).prefetched).toMatchObject(proven('compared').prefetched)
  })

  test('is compared once by first restores at the same time', async () => {
    const pair = await copiedPair()
    const { workingSet } = pair
    const spy = comparisons()
    const sockets = [0, 1, 2].map((i) => join(pair.folder, `${i}.sock`))
    const handlers = await Promise.all(
      sockets.map((socketPath) => serveScene({ ...pair, socketPath }, { workingSet })),
    )
    await Promise.all(
      sockets.map(async (socketPath) => {
        const vmm = await fakeVmm()
        await vmm.map(PAGE, pair.pages * PAGE)
        await vmm.handshake(socketPath)
        expect((await vmm.verify(pair.memoryFile)).wrong).toEqual([])
      }),
    )
    for (const handler of handlers) {
      expect(await handler.prefetched).toMatchObject(unproven.prefetched)
      expect(await handler.compared).toEqual(identical)
    }
    expect(spy).toHaveBeenCalledOnce()
  })

  test('is proven by verify()', async () => {
    const pair = await copiedPair()
    const set = await WorkingSet.read(pair.workingSet)
    const { rewritten, ...result } = identical
    expect(await set.verify({ memoryFile: pair.memoryFile })).toEqual(result)
    expect(await restore(pair)).toMatchObject(proven('compared'))
  })
})

/** None of these changes a byte. */
const losing: { name: string; needsRoot?: true; change(path: string): Promise<unknown> }[] = [
  { name: 'is touched', change: (path) => utimes(path, new Date(), new Date()) },
  { name: 'gets another mode', change: (path) => chmod(path, 0o640) },
  {
    name: 'gets another group',
    needsRoot: true,
    change: (path) => chown(path, process.getuid!(), 12345),
  },
  {
    name: 'gets a hard link for a while',
    change: async (path) => {
      await link(path, `${path}.link`)
      await unlink(`${path}.link`)
    },
  },
  {
    name: 'is renamed, and back',
    change: async (path) => {
      await rename(path, `${path}.other`)
      await rename(`${path}.other`, path)
    },
  },
  { name: 'is copied over in place', change: writeAsItIs },
  {
    name: 'is written to, and its time set back',
    change: (path) => withTimeSetBack(path, () => writeAsItIs(path)),
  },
  {
    name: 'is replaced by a file with its bytes, size and time',
    change: (path) =>
      withTimeSetBack(path, async () => {
        await copyFile(path, `${path}.other`)
        await rename(`${path}.other`, path)
      }),
  },
]
const files = ['memoryFile', 'workingSet'] as const

describe.each(files)('a proof, when the %s', (which) => {
  test.for(losing)('$name, is lost, and found again', async ({ needsRoot, change }, { skip }) => {
    skip(needsRoot === true && !isRoot, 'needs root to change an owner')
    const pair = await writtenPair()
    expect(await restore(pair)).toMatchObject(proven('written'))
    await change(pair[which])
    const lost = await restore(pair)
    expect(lost).toMatchObject({ ...unproven, warnings: [] })
    expect(lost.compared).toEqual(identical)
    expect(await restore(pair)).toMatchObject(proven('compared'))
  })

  test('is read, lasts', async () => {
    const pair = await writtenPair()
    readFileSync(pair[which])
    expect(await restore(pair)).toMatchObject(proven('written'))
  })

  test('is named by a link, lasts', async () => {
    const pair = await writtenPair()
    const path = join(pair.folder, 'link')
    await symlink(pair[which], path)
    expect(await restore({ ...pair, [which]: path })).toMatchObject(proven('written'))
  })

  test('moves with its folder, lasts', async () => {
    const pair = await writtenPair()
    const folder = join(await scratchFolder(), 'moved')
    await rename(pair.folder, folder)
    const moved = (path: string) => path.replace(pair.folder, folder)
    const [memoryFile, workingSet] = [moved(pair.memoryFile), moved(pair.workingSet)]
    const socketPath = moved(pair.socketPath)
    expect(await restore({ ...pair, memoryFile, workingSet, socketPath })).toMatchObject(
      proven('written'),
    )
  })
})

describe('a memory file that somebody has open for writing', () => {
  test('proves nothing while it is young, and something when nobody has any more', async () => {
    const s = await scene({ pages: 256 })
    const pair = { ...s, workingSet: join(s.folder, 'vm.ws') }
    const writer = await open(pair.memoryFile, 'r+')
    await places().write(pair.workingSet, { snapshot: { memoryFile: pair.memoryFile } })
    for (let i = 0; i < 2; i++) {
      expect(await restore(pair)).toMatchObject({
        ...unproven,
        compared: { ...identical, remembered: false },
      })
    }
    await writer.close()
    expect(await restore(pair)).toMatchObject({ ...unproven, compared: identical })
    expect(await restore(pair)).toMatchObject(proven('compared'))
  })

  test('is believed when its last change is older than the kernel leaves pages dirty', async () => {
    const pair = await copiedPair()
    const writer = await open(pair.memoryFile, 'r+')
    onTestFinished(() => writer.close())
    const { isSettled } = native()
    const spy = vi.spyOn(native(), 'isSettled')
    onTestFinished(() => spy.mockRestore())
    spy.mockImplementation((changedAt, age) => isSettled(changedAt - 600_000_000_000n, age))
    expect(await restore(pair)).toMatchObject({ ...unproven, compared: identical })
    expect(await restore(pair)).toMatchObject(proven('compared'))
  })
})

describe('verify()', () => {
  test('remembers nothing of a memory file that is written to meanwhile', async () => {
    const pair = await copiedPair()
    const set = await WorkingSet.read(pair.workingSet)
    // Opened meanwhile: a file that had a writer before is not believed anyway.
    const onProgress = () => {
      const file = openSync(pair.memoryFile, 'r+')
      writeSync(file, 'changed', others[0]! * PAGE)
      closeSync(file)
    }
    expect(await set.verify({ memoryFile: pair.memoryFile }, { onProgress })).toMatchObject({
      identical: true,
      remembered: false,
    })
    expect((await restore(pair)).prefetched).toMatchObject(unproven.prefetched)
  })

  test('refuses a set whose file was written anew since it was read', async () => {
    const pair = await writtenPair()
    const set = await WorkingSet.read(pair.workingSet)
    await places().write(pair.workingSet, { snapshot: { memoryFile: pair.memoryFile } })
    await expect(set.verify({ memoryFile: pair.memoryFile })).rejects.toMatchObject({
      code: 'ERR_WORKING_SET_INVALID',
      check: 'changed',
      path: pair.workingSet,
    })
  })

  test('finds pages that differ, and remembers that', async () => {
    const pair = await writtenPair()
    await changePages(pair.memoryFile, [order[3]!, others[0]!])
    const set = await WorkingSet.read(pair.workingSet)
    const mismatches = [{ page: order[3], offset: order[3]! * PAGE }]
    const result = { pageCount: SET_PAGES, identical: false, mismatchedPageCount: 1, mismatches }
    expect(await set.verify({ memoryFile: pair.memoryFile })).toEqual({
      ...result,
      remembered: true,
    })
    const spy = comparisons()
    const { warnings } = await restore(pair)
    expect(warnings).toMatchObject([{ check: 'stale' }])
    expect(spy).not.toHaveBeenCalled()
  })
})

describe('the times of a file', () => {
  test('are believed where the kernel itself keeps them', async ({ skip }) => {
    expect(await keepsTimes('/proc/self/status')).toBe(false)
    expect(await keepsTimes(join(tmpdir(), 'nowhere', 'at', 'all'))).toBe(false)
    const typeOf = async (path: string) => (await statfs(path)).type
    if ((await typeOf('/dev/shm')) === 0x01021994) expect(await keepsTimes('/dev/shm')).toBe(false)
    skip((await typeOf(tmpdir())) !== 0xef53, 'needs ext4 as the temporary folder')
    expect(await keepsTimes(await scratchFolder())).toBe(true)
  })
})
