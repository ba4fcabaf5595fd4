import { existsSync } from 'node:fs'
import { copyFile, readdir, readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { beforeAll, describe, expect, it } from 'vitest'
import { tryLock } from '../../src/binding/lock.js'
import { openStore } from '../../src/index.js'
import {
  Cli,
  checkBuild,
  errorIn,
  events,
  run,
  script,
  serveWords,
} from '../support/cli-process.js'
import { range, type Scene, scene } from '../support/scratch.js'
import { restoreOnce, storeScene } from '../support/stores.js'

beforeAll(checkBuild)

const storeOf = ({ folder }: Pick<Scene, 'folder'>) => join(folder, 'store')

const storeWords = (here: Scene) => [...serveWords(here), '--store', storeOf(here)]

/** Restores once from the store of the scene, by a script that touches these pages. */
async function restored(here: Scene, touched: string, ...words: string[]) {
  const command = await script(here, touched)
  const ended = await run(['restore', ...storeWords(here), ...words, '--', command])
  expect(ended.code, ended.stderr).toBe(0)
  return events(ended.stdout)
}

/** The only snapshot of the scene's store. */
async function described(here: Scene, id?: string) {
  const store = await openStore(storeOf(here), { readOnly: true })
  return (await store.describe({ memoryFile: here.memoryFile, id }))!
}

describe('restore --store', () => {
  it('records first, prefetches then, and learns each time, event by event', async () => {
    const here = await scene({ pages: 256, holes: false })
    const first = await restored(here, '7 3 4 5 100')
    const types = first.map(({ type }) => type)
    // The end of COMMAND may be seen before that of its VM, or after it.
    expect(types.filter((type) => type !== 'ready').sort()).toEqual(
      ['planned', 'listening', 'connected', 'closed', 'learned'].sort(),
    )
    expect(types.indexOf('learned')).toBeGreaterThan(types.indexOf('connected'))
    const { key } = await described(here)
    expect(first.find(({ type }) => type === 'planned')).toMatchObject({
      backend: 'uffd',
      snapshotKey: key,
      reason: expect.any(String),
    })
    expect(first.find(({ type }) => type === 'learned')).toEqual({
      type: 'learned',
      written: [{ pageCount: 5 }],
    })
    expect(first.find(({ type }) => type === 'closed').verdict?.remedy ?? '').not.toMatch(/Record/)

    const second = new Cli(['restore', ...storeWords(here)])
    await second.event('listening')
    await here.vmm.handshake(here.socketPath)
    const prefetched = await second.event('prefetched')
    expect(prefetched).toMatchObject({ source: 'working-set', provenBy: 'written' })
    const { heldOutPageCount } = await second.event('planned')
    expect(Number(heldOutPageCount) + Number(prefetched.pageCount)).toBe(5)
    expect(await here.vmm.verify(here.memoryFile)).toMatchObject({ wrongCount: 0, pages: 256 })
    await here.vmm.exit(0)
    const { code, stdout, stderr } = await second.ended
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' })
    expect(events(stdout).at(-1)).toMatchObject({ type: 'learned' })
    expect(await described(here)).toMatchObject({ restoreCount: 2 })
  })

  it('says in words what it learned', async () => {
    const here = await scene({ pages: 256 })
    const words = ['--memory', here.memoryFile, '--socket', here.socketPath]
    const command = await script(here, '7 3 4 5 100')
    const once = ['restore', ...words, '--store', storeOf(here), '--', command]
    const first = (await run(once)).stdout
    expect(first).toMatch(/^the store has no set of this snapshot \([0-9a-f]{16}\) yet$/m)
    expect(first).toMatch(/^learned: wrote a set of 5 pages \(20 KiB\), the first one$/m)
    // What another set would gain depends on the machine.
    const second = (await run(once)).stdout
    expect(second).toMatch(/^learned: (saved, and no set changes|wrote a set of .* before)$/m)
  })

  it('counts pages until the mark of COMMAND only', async () => {
    const here = await scene({ pages: 256 })
    const done = join(here.folder, 'done')
    const wait = `until [ -e ${done} ] || [ ! -d ${here.folder} ]; do sleep 0.02; done`
    const line = `${wait}; echo >"$REAP_TRACE_READY"; exec sleep 100`
    const restore = new Cli(['restore', ...storeWords(here), '--', 'sh', '-c', line])
    await restore.event('listening')
    await here.vmm.handshake(here.socketPath)
    await here.vmm.read(7, 3)
    await writeFile(done, '')
    await restore.event('ready')
    // Saved while the VM lives.
    expect(await restore.event('learned')).toMatchObject({ written: [{ pageCount: 2 }] })
    await here.vmm.read(50, 51)
    restore.kill('SIGTERM')
    expect(await restore.ended).toMatchObject({ signal: 'SIGTERM' })
    const { history, sets } = await described(here)
    expect(sets).toMatchObject([{ pageCount: 2 }])
    expect(history).toMatchObject([{ recorded: true, faults: 2, responseMs: expect.any(Number) }])
  })

  it('takes the end of COMMAND as the mark of a VM that lives on', async () => {
    const here = await scene({ pages: 256 })
    const done = join(here.folder, 'done')
    const wait = `until [ -e ${done} ] || [ ! -d ${here.folder} ]; do sleep 0.02; done`
    const restore = new Cli(['restore', ...storeWords(here), '--', 'sh', '-c', wait])
    await restore.event('listening')
    await here.vmm.handshake(here.socketPath)
    await here.vmm.read(7, 3, 4)
    await writeFile(done, '')
    expect(await restore.event('learned')).toMatchObject({ written: [{ pageCount: 3 }] })
    await here.vmm.exit(0)
    expect(await restore.ended).toMatchObject({ code: 0, stderr: '' })
  })

  it('learns from a VM that it detaches, and nothing if COMMAND had not ended', async () => {
    const here = await scene({ pages: 256 })
    const done = join(here.folder, 'done')
    const wait = `until [ -e ${done} ] || [ ! -d ${here.folder} ]; do sleep 0.02; done`
    const unfinished = new Cli(['restore', ...storeWords(here), '--', 'sh', '-c', wait])
    await unfinished.event('listening')
    await here.vmm.handshake(here.socketPath)
    await here.vmm.read(7)
    await unfinished.event('connected')
    unfinished.kill('SIGINT')
    expect(await unfinished.exited).toMatchObject({ code: 0 })
    await writeFile(done, '')
    expect(await described(here)).toBeUndefined()

    const other = await scene({ pages: 256 })
    const alone = new Cli(['restore', ...storeWords(other)])
    await alone.event('listening')
    await other.vmm.handshake(other.socketPath)
    await other.vmm.read(7, 8)
    await alone.event('connected')
    alone.kill('SIGINT')
    expect(await alone.ended).toMatchObject({ code: 0 })
    expect(await described(other)).toMatchObject({ sets: [{ pageCount: 2 }] })
    expect(await other.vmm.verify(other.memoryFile)).toMatchObject({ wrongCount: 0 })
  })

  it.each([
    { name: 'whose VM has ended', end: 'exit 3' },
    { name: 'whose VM is killed', end: 'kill -9 $$' },
  ])('learns nothing from a COMMAND that fails, $name', async ({ end }) => {
    const here = await scene({ pages: 256 })
    const command = await script(here, '7 3 4 5 100')
    await writeFile(command, (await readFile(command, 'utf8')).replace('exit 0', end))
    const { code, stdout } = await run(['restore', ...storeWords(here), '--', command])
    expect(code).toBe(1)
    expect(errorIn(stdout).code).toBe('ERR_COMMAND_FAILED')
    expect(events(stdout).map(({ type }) => type)).not.toContain('learned')
    expect(await described(here)).toBeUndefined()
  })

  it('ends by Ctrl-C while another process holds what it wants to write', async () => {
    const here = await scene({ pages: 256 })
    await restored(here, '7 3')
    const { key } = await described(here)
    const lock = await tryLock(join(storeOf(here), 'snapshots', key, 'lock'))
    const restore = new Cli(['restore', ...storeWords(here)])
    await restore.event('listening')
    await here.vmm.handshake(here.socketPath)
    await here.vmm.read(7)
    await here.vmm.exit(0)
    await restore.event('closed')
    restore.kill('SIGINT')
    const { code, signal, stderr } = await restore.ended
    expect({ code, signal }).toEqual({ code: null, signal: 'SIGINT' })
    expect(stderr).toBe('what this restore taught is not saved\n')
    lock?.release()
    expect(await described(here)).toMatchObject({ restoreCount: 1 })
  })

  it('takes an id, a variant and a parent', async () => {
    const here = await scene({ pages: 256 })
    await restored(here, '7 3', '--snapshot-id', 'a', '--variant', 'GET /')
    const { key, history } = await described(here, 'a')
    expect(history).toMatchObject([{ variant: 'GET /' }])
    const child = await restored(here, '7 3', '--snapshot-id', 'b', '--parent', key)
    expect(child.find(({ type }) => type === 'prefetched')?.pageCount ?? 2).toBe(2)
    expect(await described(here, 'b')).toMatchObject({ parent: key })
  })

  it('keeps the response of a restore from the page cache', async () => {
    const here = await scene({ pages: 256 })
    await restored(here, '7 3')
    const words = ['--memory', here.memoryFile, '--backend', 'page-cache', '--json']
    const { code, stdout, stderr } = await run([
      ...['restore', ...words, '--store', storeOf(here)],
      ...['--', 'sh', '-c', 'echo >"$REAP_TRACE_READY"'],
    ])
    expect(code, stderr).toBe(0)
    const types = events(stdout).map(({ type }) => type)
    expect(types).toEqual(expect.arrayContaining(['planned', 'restoring', 'ready', 'learned']))
    const { history } = await described(here)
    expect(history[1]).toMatchObject({ backend: 'page-cache', responseMs: expect.any(Number) })
  })

  it('says that the page cache teaches no set', async () => {
    const here = await scene({ pages: 64 })
    const words = ['--memory', here.memoryFile, '--backend', 'page-cache', '--store', storeOf(here)]
    const { code, stdout } = await run(['restore', ...words, '--', 'true'])
    expect(code).toBe(0)
    expect(stdout).toMatch(/no set of this snapshot .*; only .*--backend uffd/)
  })

  it('carries out the plan of the backend "auto"', async () => {
    const here = await scene({ pages: 256 })
    await restored(here, '7 3')
    const command = `if [ $REAP_TRACE_BACKEND_TYPE = Uffd ]; then ${await script(here, '7 3')}; fi`
    const words = [...storeWords(here), '--backend', 'auto', '--', 'sh', '-c', command]
    const { code, stdout, stderr } = await run(['restore', ...words])
    expect(code, stderr).toBe(0)
    const all = events(stdout)
    const { backend } = all.find(({ type }) => type === 'planned')
    const began = backend === 'uffd' ? 'listening' : 'restoring'
    expect(all.map(({ type }) => type)).toEqual(expect.arrayContaining([began, 'learned']))
    expect((await described(here)).history[1]).toMatchObject({ backend })
  })

  it('does not become a store of another folder', async () => {
    const here = await scene({ pages: 64 })
    const { code, stdout, stderr } = await run([
      ...['restore', ...serveWords(here), '--store', here.folder],
    ])
    expect(code).toBe(1)
    expect(errorIn(stdout)).toMatchObject({ code: 'ERR_STORE_INVALID', check: 'store' })
    expect(stderr).toMatch(/^error: .* is not a store.*\nhint: /)
    expect((await readdir(here.folder)).sort()).toEqual(['memory'])
  })
})

describe('record --store', () => {
  it('restores on demand although there is a set, and adds what it sees', async () => {
    const here = await scene({ pages: 256 })
    await restored(here, '7 3')
    const command = await script(here, '7 3 9')
    const ended = await run(['record', ...storeWords(here), '--', command])
    expect(ended.code, ended.stderr).toBe(0)
    const all = events(ended.stdout)
    expect(all.find(({ type }) => type === 'recorded')).toMatchObject({
      pageCount: 3,
      bytes: 3 * 4096,
    })
    expect(all.map(({ type }) => type)).toContain('learned')
    expect((await described(here)).history).toMatchObject([
      { recorded: true, faults: 2 },
      { recorded: true, faults: 3 },
    ])
  })

  it('ends after --for', { retry: 2 }, async () => {
    const here = await scene({ pages: 256 })
    const record = new Cli(['record', ...storeWords(here), '--for', '2s'])
    await record.event('listening')
    await Promise.all([here.vmm.handshake(here.socketPath), here.vmm.read(9, 8, 200)])
    expect(await record.event('learned')).toMatchObject({ written: [{ pageCount: 3 }] })
    await here.vmm.exit(0)
    const { code, stdout, stderr } = await record.ended
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' })
    expect(events(stdout).map(({ type }) => type)).toContain('ready')
  })

  it('teaches nothing if the VM did not run or COMMAND failed', async () => {
    const here = await scene({ pages: 256 })
    const record = new Cli(['record', ...storeWords(here)])
    await record.event('listening')
    await here.vmm.handshake(here.socketPath)
    await record.event('connected')
    await here.vmm.exit(0)
    const { code, stderr } = await record.ended
    expect(code).toBe(1)
    expect(stderr).toMatch(/^error: .*touched no page.* learns nothing \[ERR_NOTHING_RECORDED\]/)
    const failed = await run([
      ...['record', ...storeWords(here), '--', await script(here, '7 3', 3)],
    ])
    expect(failed.stderr).toMatch(/exited with status 3: .*learns nothing \[ERR_COMMAND_FAILED\]/)
    expect(await described(here)).toBeUndefined()
  })
})

const touched = range(100, 60)

describe('store', () => {
  it('lists snapshots, and shows one by its key or its memory file', async () => {
    const s = await storeScene()
    const { snapshotKey } = await restoreOnce(s, touched)
    await restoreOnce(s, touched, { variant: 'GET /\u001b[31m' })
    const listed = await run(['store', 'ls', s.folder])
    expect(listed.stdout).toMatch(
      new RegExp(
        `^key .*\n${snapshotKey} +4 MiB +1 +60 .* 2 +\\d+ \\w+ ago +${s.memoryFile}\n\n1 snap`,
      ),
    )
    const [line] = events((await run(['store', 'ls', s.folder, '--json'])).stdout)
    expect(line).toMatchObject({ key: snapshotKey, restoreCount: 2, sets: [{ pageCount: 60 }] })

    const byKey = await run(['store', 'show', s.folder, snapshotKey])
    expect(byKey).toMatchObject({ code: 0, stderr: '' })
    expect(byKey.stdout).toMatch(/^snapshot {2}[0-9a-f]{16}$/m)
    expect(byKey.stdout).toMatch(/^\(common\) +60 +240 KiB +\d+ seconds? +2$/m)
    // A variant without a separate set.
    expect(byKey.stdout).toMatch(/^GET \/\\x1b\[31m +– +– +– +1$/m)
    expect(byKey.stdout).toMatch(/^now +[\d.–]+( %)? +/m)
    expect(byKey.stdout).toMatch(/ago +recorded +– +60 +– +– +[\d.]+ ms +[\d.]+ ms$/m)
    expect(byKey.stdout).toContain('GET /\\x1b[31m')
    const byFile = await run(['store', 'show', s.folder, '--memory', s.memoryFile, '--json'])
    const [shown] = events(byFile.stdout)
    expect(shown).toMatchObject({ key: snapshotKey, learned: { restoreCount: 2 } })
    expect(shown.history).toHaveLength(2)
  })

  it('forgets a snapshot', async () => {
    const s = await storeScene()
    const { snapshotKey } = await restoreOnce(s, touched)
    const words = ['store', 'forget', s.folder, '--memory', s.memoryFile, '--json']
    const { code, stdout } = await run(words)
    expect(code).toBe(0)
    expect(events(stdout)).toEqual([
      { type: 'forgotten', key: snapshotKey, bytes: expect.any(Number) },
    ])
    const again = await run(words)
    expect(again.code).toBe(1)
    expect(errorIn(again.stdout)).toMatchObject({ code: 'ERR_STORE_INVALID' })
    expect(again.stderr).toMatch(/has no snapshot of .*\nhint: "reap-trace store ls /)
    expect((await run(['store', 'ls', s.folder])).stdout).toBe('the store has no snapshots\n')
  })

  it('takes what it knows to another host', async () => {
    const s = await storeScene()
    const { snapshotKey } = await restoreOnce(s, touched)
    const file = join(s.folder, '..', 'vm.evidence')
    const exported = await run(['store', 'export', s.folder, snapshotKey, '-o', file])
    expect(exported).toMatchObject({ code: 0, stderr: '' })
    const [copy, other] = [join(s.folder, '..', 'copy'), join(s.folder, '..', 'other')]
    await copyFile(s.memoryFile, copy)
    const words = ['store', 'import', other, file, '--memory', copy]
    const imported = await run(words)
    expect(imported).toMatchObject({ code: 0, stderr: '' })
    expect(imported.stdout).toMatch(
      /^took .* as the snapshot [0-9a-f]{16}\nwrote a set of 60 pages$/m,
    )
    const again = await run([...words, '--json'])
    expect(again.code).toBe(1)
    expect(errorIn(again.stdout)).toMatchObject({ check: 'known-snapshot' })
    // It was not restored yet.
    const withId = await run([...words, '--snapshot-id', 'build-417'])
    expect(withId.code, withId.stderr).toBe(0)
    const listed = await run(['store', 'ls', other])
    expect(listed.stdout).toMatch(/ 0 +– +\S+copy\s/)
    expect(listed.stdout).toMatch(/ 0 +– +\S+copy \(build-417\)$/m)
    const shown = await run(['store', 'show', other, '--memory', copy])
    expect(shown.stdout).toMatch(/^restores {2}none yet; imported 20/m)
  })

  it.each([
    ['ls', []],
    ['show', ['0123456789abcdef']],
    ['forget', ['0123456789abcdef']],
    ['export', ['0123456789abcdef', '-o', 'x']],
  ])('makes no folder for a wrong path: %s', async (name, words) => {
    const { folder } = await scene({ pages: 1 })
    const path = join(folder, 'nowhere')
    const { code, stdout, stderr } = await run(['store', name, path, ...words, '--json'], {
      cwd: folder,
    })
    expect(code).toBe(1)
    expect(errorIn(stdout).code).toBe('ERR_STORE_IO')
    expect(stderr).toContain(path)
    expect(existsSync(path)).toBe(false)
    expect((await readdir(folder)).sort()).toEqual(['memory'])
  })

  it.each([
    ['a snapshot that it does not have', '0123456789abcdef', /has no snapshot 0123456789abcdef/],
  ])('refuses %s', async (_, key, message) => {
    const s = await storeScene()
    for (const words of [['show'], ['forget'], ['export', '-o', join(s.folder, '..', 'x')]]) {
      const [name, ...more] = words as [string, ...string[]]
      const { code, stderr } = await run(['store', name, s.folder, key, ...more])
      expect(code).toBe(1)
      expect(stderr).toMatch(message)
      expect(stderr).toMatch(/^hint: /m)
    }
  })
})
