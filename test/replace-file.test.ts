import { execSync } from 'node:child_process'
import { chmodSync, lchownSync, mkdirSync, mkdtempSync, rmSync, symlinkSync } from 'node:fs'
import { lstat, readdir, readFile, stat, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { replaceFile, writeWhole } from '../src/files.js'
import { isRoot } from './support/scratch.js'
import { failureOf } from './support/working-sets.js'

let folder: string
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'replaced-'))
})
afterEach(() => rmSync(folder, { recursive: true }))

const replace = (path: string) =>
  replaceFile('trace file', path, (file) => writeWhole(file, Buffer.from('new'), 0))

describe('a file that is replaced', () => {
  test.each(['n'.repeat(255), `${'é'.repeat(127)}n`, 'n'])(
    'may have any name: %s',
    async (name) => {
      const path = join(folder, name)
      await replace(path)
      expect(await readFile(path, 'utf8')).toBe('new')
      expect(await readdir(folder)).toEqual([name])
      expect((await lstat(path)).mode & 0o7777).toBe(0o600)
    },
  )

  test('has its temporary file beside it, which goes when the writing fails', async () => {
    const path = join(folder, 'target')
    await writeFile(path, 'old')
    const work = replaceFile('trace file', path, async () => {
      expect(await readdir(folder)).toEqual([
        expect.stringMatching(/^reap-trace-.*\.tmp$/),
        'target',
      ])
      throw new Error('no more')
    })
    await expect(work).rejects.toThrow('no more')
    expect(await readdir(folder)).toEqual(['target'])
    expect(await readFile(path, 'utf8')).toBe('old')
  })
})

describe('what is no regular file', () => {
  test.each([
    ['a pipe', 'mkfifo x'],
    ['a device (needs root)', 'mknod x c 1 3'],
    ['a folder', 'mkdir x'],
    ['a link to a pipe', 'mkfifo y; ln -s y x'],
  ])('is not replaced: %s', async (what, make) => {
    if (what.includes('root') && !isRoot) return
    execSync(make, { cwd: folder })
    const path = join(folder, 'x')
    const [before, names] = [await stat(path), await readdir(folder)]
    const error = { code: 'ERR_TRACE_IO', check: 'regular-file', path, hint: expect.any(String) }
    expect(await failureOf(replace(path))).toMatchObject(error)
    expect((await stat(path)).ino).toBe(before.ino)
    expect(await readdir(folder)).toEqual(names)
  })
})

describe('a symbolic link to the file', () => {
  test.each(['existing', 'new'])('stays, and leads to the %s file in its folder', async (state) => {
    mkdirSync(join(folder, 'store'))
    mkdirSync(join(folder, 'links'))
    const target = join(folder, 'store/real')
    if (state === 'existing') await writeFile(target, 'old')
    // A link to a link, and a folder that is one: `..` goes up from where the folder is.
    symlinkSync(join(folder, 'links'), join(folder, 'here'))
    symlinkSync('../store/real', join(folder, 'links/second'))
    symlinkSync('here/second', join(folder, 'first'))
    await replace(join(folder, 'first'))
    expect(await readFile(target, 'utf8')).toBe('new')
    expect((await lstat(join(folder, 'first'))).isSymbolicLink()).toBe(true)
    expect((await lstat(join(folder, 'links/second'))).isSymbolicLink()).toBe(true)
    expect(await readdir(join(folder, 'store'))).toEqual(['real'])
  })

  test('that leads to itself is refused', async () => {
    const path = join(folder, 'loop')
    symlinkSync('loop', path)
    expect(await failureOf(replace(path))).toMatchObject({ code: 'ERR_TRACE_IO', path })
  })

  test.skipIf(!isRoot)(
    'that another user put into a folder like /tmp is refused (needs root for the other user)',
    async () => {
      const shared = join(folder, 'shared')
      mkdirSync(shared)
      chmodSync(shared, 0o1777)
      const target = join(folder, 'target')
      await writeFile(target, 'old')
      const path = join(shared, 'link')
      symlinkSync(target, path)
      lchownSync(path, 12345, 12345)
      const error = { code: 'ERR_TRACE_IO', check: 'link-owner', path, hint: expect.any(String) }
      expect(await failureOf(replace(path))).toMatchObject(error)
      expect(await readFile(target, 'utf8')).toBe('old')
      expect(await readdir(shared)).toEqual(['link'])
    },
  )
})
