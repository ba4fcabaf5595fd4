import { execFileSync, spawnSync } from 'node:child_process'
import {
  chmodSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  statSync,
  truncateSync,
  utimesSync,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import { isMainThread } from 'node:worker_threads'
import { describe, expect, test } from 'vitest'
import { WorkingSet } from '../../src/working-set/working-set.js'
import {
  failureOf,
  folder,
  makeMemory,
  newPath,
  PAGE,
  setOf,
  write,
} from '../support/working-sets.js'

describe('writing', () => {
  /** Expects a write over an old file to fail and to leave nothing but the old file. */
  async function failsCleanly(
    into: string,
    write: (path: string) => Promise<unknown>,
  ): Promise<unknown> {
    const path = join(into, 'set')
    writeFileSync(path, 'the old one')
    const error = await write(path).then(
      () => 'it was written',
      (reason: unknown) => reason,
    )
    expect(readdirSync(into)).toEqual(['set'])
    expect(readFileSync(path, 'utf8')).toBe('the old one')
    return error
  }

  const newFolder = () => {
    const path = newPath('folder')
    mkdirSync(path)
    return path
  }
  const all = (count: number) => Array.from({ length: count }, (_, i) => i)

  test('replaces the file that is there', async () => {
    const memoryFile = makeMemory(8)
    const path = await write(memoryFile, [1])
    await setOf(memoryFile, [2, 3]).write(path, { snapshot: { memoryFile } })
    expect([...(await WorkingSet.read(path)).order.pages]).toEqual([2, 3])
  })

  test('leaves the old file when a file may not grow (EFBIG)', async ({ skip }) => {
    const limit = (bytes: string) =>
      spawnSync('prlimit', ['--pid', String(process.pid), `--fsize=${bytes}:`], {
        encoding: 'utf8',
      })
    if (limit('unlimited').status !== 0)
      skip('needs prlimit and an unlimited hard limit of file size')
    const memoryFile = makeMemory(2000)
    const set = setOf(memoryFile, all(2000))
    const error = await failsCleanly(newFolder(), async (path) => {
      limit('1000000')
      try {
        await set.write(path, { snapshot: { memoryFile } })
      } finally {
        limit('unlimited')
      }
    })
    expect(error).toMatchObject({
      code: 'ERR_WORKING_SET_IO',
      syscall: 'write',
      errno: -27,
      hint: expect.stringContaining('RLIMIT_FSIZE'),
    })
  })

  test('leaves the old file when the disk is full (ENOSPC)', async ({ skip }) => {
    const disk = newFolder()
    const mounted = spawnSync('mount', ['-t', 'tmpfs', '-o', 'size=1m', 'tmpfs', disk])
    if (mounted.status !== 0) skip('needs the right to mount a tmpfs')
    try {
      const memoryFile = makeMemory(2000)
      const error = await failsCleanly(disk, (path) =>
        setOf(memoryFile, all(2000)).write(path, { snapshot: { memoryFile } }),
      )
      expect(error).toMatchObject({ code: 'ERR_WORKING_SET_IO', syscall: 'write', errno: -28 })
    } finally {
      execFileSync('umount', [disk])
    }
  })

  test('leaves the old file when it is aborted, and rejects with the reason', async () => {
    const memoryFile = makeMemory(3000)
    const set = setOf(memoryFile, all(3000))
    for (const pages of [0, 1024, 3000]) {
      const abort = new AbortController()
      const reason = new Error(`enough at ${pages}`)
      if (pages === 0) abort.abort(reason)
      const error = await failsCleanly(newFolder(), (path) =>
        set.write(path, {
          snapshot: { memoryFile },
          signal: abort.signal,
          onProgress: (progress) => progress.pageCount === pages && abort.abort(reason),
        }),
      )
      expect(error).toBe(reason)
    }
  })

  test('leaves the old file when the memory file is cut or written to meanwhile', async () => {
    const memoryFile = makeMemory(3000)
    const set = setOf(memoryFile, all(3000))
    const cut = await failsCleanly(newFolder(), (path) =>
      set.write(path, {
        snapshot: { memoryFile },
        onProgress: () => truncateSync(memoryFile, 1500 * PAGE + 5),
      }),
    )
    expect(cut).toMatchObject({ code: 'ERR_SOURCE_READ', check: 'short-read', path: memoryFile })

    const other = makeMemory(3000)
    const changed = await failsCleanly(newFolder(), (path) =>
      set.write(path, {
        snapshot: { memoryFile: other },
        onProgress: () => utimesSync(other, 1, 2),
      }),
    )
    expect(changed).toMatchObject({ code: 'ERR_SOURCE_READ', check: 'changed', path: other })
  })

  test('refuses to replace the memory file itself', async () => {
    const memoryFile = makeMemory(8)
    await expect(
      setOf(memoryFile, [1]).write(memoryFile, { snapshot: { memoryFile } }),
    ).rejects.toThrow(TypeError)
    expect(statSync(memoryFile).size).toBe(8 * PAGE)
  })

  test('refuses a memory file of another size', async () => {
    const set = setOf(makeMemory(8), [1])
    const memoryFile = makeMemory(9)
    const error = await failsCleanly(newFolder(), (path) =>
      set.write(path, { snapshot: { memoryFile } }),
    )
    expect(error).toMatchObject({ code: 'ERR_SNAPSHOT_MISMATCH', check: 'size', path: memoryFile })
    expect((error as Error).message).toContain('32768')
    expect((error as Error).message).toContain('36864')
  })

  test('says what is wrong with the path', async () => {
    const memoryFile = makeMemory(8)
    const set = setOf(memoryFile, [1])
    const missing = join(folder, 'no-such-folder', 'set')
    expect(await failureOf(set.write(missing, { snapshot: { memoryFile } }))).toMatchObject({
      code: 'ERR_WORKING_SET_IO',
      errno: -2,
      syscall: 'open',
      path: missing,
    })
    const into = newFolder()
    expect(await failureOf(set.write(into, { snapshot: { memoryFile } }))).toMatchObject({
      check: 'regular-file',
    })
    expect(readdirSync(into)).toEqual([])
    expect(readdirSync(folder).filter((name) => name.endsWith('.tmp'))).toEqual([])
  })

  test('says what is wrong with the memory file', async () => {
    const set = setOf(makeMemory(8), [1])
    const path = newPath('set')
    const empty = newPath('memory')
    writeFileSync(empty, '')
    const uneven = newPath('memory')
    writeFileSync(uneven, 'x'.repeat(PAGE + 1))
    for (const [memoryFile, details] of [
      [empty, { check: 'empty' }],
      [uneven, { check: 'page-multiple' }],
      [folder, { check: 'regular-file' }],
      ['/dev/zero', { check: 'regular-file' }],
      [join(folder, 'none'), { errno: -2, syscall: 'open' }],
    ] as const) {
      const error = await failureOf(set.write(path, { snapshot: { memoryFile } }))
      expect(error).toMatchObject({ code: 'ERR_SOURCE_READ', path: memoryFile, ...details })
    }
  })
})

describe('reading', () => {
  test('says that there is no file', async () => {
    const path = join(folder, 'none')
    expect(await failureOf(WorkingSet.read(path))).toMatchObject({
      code: 'ERR_WORKING_SET_IO',
      errno: -2,
      syscall: 'open',
      path,
    })
  })

  test('says that the file is not ours', async ({ skip }) => {
    const root = process.geteuid?.() === 0
    if (root && !isMainThread) skip('needs another user than root, or the main thread')
    chmodSync(folder, 0o755)
    const path = await write(makeMemory(4), [1])
    chmodSync(path, 0)
    if (root) process.seteuid?.(65534)
    try {
      const error = await failureOf(WorkingSet.read(path))
      expect(error).toMatchObject({ code: 'ERR_WORKING_SET_IO', errno: -13, syscall: 'open' })
    } finally {
      if (root) process.seteuid?.(0)
    }
  })
})
