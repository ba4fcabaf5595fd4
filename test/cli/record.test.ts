import { existsSync } from 'node:fs'
import { mkdir, readdir, readFile, stat, symlink, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { beforeAll, describe, expect, it } from 'vitest'
import { WorkingSet } from '../../src/index.js'
import {
  Cli,
  checkBuild,
  errorIn,
  events,
  run,
  script,
  serveWords,
  shellScript,
  shellVmm,
} from '../support/cli-process.js'
import { scene } from '../support/scratch.js'

beforeAll(checkBuild)

/** Option of tests of --for, which may expire before a guest gets a core on a busy machine. */
const again = { retry: 2 }

const counters = [
  'faults',
  'residualFaults',
  'installed',
  'present',
  'deferred',
  'discarded',
  'removed',
  'zero',
]

describe('record', () => {
  it('tells its command a socket path that fits, in a folder whose path is too long', async () => {
    const here = await scene({ pages: 64 })
    const cwd = join(here.folder, 'f'.repeat(120))
    await mkdir(cwd)
    const words = [...serveWords({ ...here, socketPath: 's' }), '--output', 'vm.ws']
    const command = await script(here, '7')
    const { code, stderr } = await run(['record', ...words, '--', command], { cwd })
    expect(code, stderr).toBe(0)
    expect((await WorkingSet.read(join(cwd, 'vm.ws'))).pageCount).toBe(1)
  })

  it('records until the command ends, and says so event by event', async () => {
    const here = await scene({ pages: 256 })
    const output = join(here.folder, 'vm.ws')
    const command = await script(here, '7 3 4 5 100')
    const { code, stdout, stderr } = await run([
      'record',
      ...serveWords(here),
      ...['--output', output, '--label', 'v7', '--snapshot-id', 'vm-7', '--', command],
    ])
    expect(code, stderr).toBe(0)
    // The command's own stdout makes room for ours.
    expect(stderr).toContain('"digests"')
    const [listening, connected, recordedEvent, closed, ...more] = events(stdout)
    expect(more).toEqual([])
    expect(listening).toEqual({
      type: 'listening',
      socketPath: here.socketPath,
    })
    expect(connected).toEqual({
      type: 'connected',
      pid: expect.any(Number),
      pageSize: 4096,
      memoryBytes: 256 * 4096,
      regions: [{ baseAddress: expect.any(Number), size: 256 * 4096, offset: 0 }],
    })
    expect(recordedEvent).toEqual({
      type: 'recorded',
      path: output,
      pageCount: 5,
      extentCount: 3,
      bytes: 5 * 4096,
    })
    expect(closed).toMatchObject({ type: 'closed', state: 'vm-exited', stats: { faults: 5 } })
    for (const name of counters) expect(closed.stats).toHaveProperty(name, expect.any(Number))

    const set = await WorkingSet.read(output)
    expect([...set.order.pages]).toEqual([7, 3, 4, 5, 100])
    expect(set.manifest).toMatchObject({
      label: 'v7',
      snapshotId: 'vm-7',
      memoryFile: 'memory',
    })
    expect((await stat(output)).mode & 0o777).toBe(0o600)
  })

  it('writes nothing when the command fails, and leaves an older file as it is', async () => {
    const here = await scene({ pages: 256 })
    const output = join(here.folder, 'vm.ws')
    await writeFile(output, 'what was there')
    const command = await script(here, '7 3', 3)
    const { code, stdout, stderr } = await run([
      'record',
      ...serveWords(here),
      ...['--output', output, '--', command],
    ])
    expect(code).toBe(1)
    expect(stderr).toMatch(/^error: .* exited with status 3: .* \[ERR_COMMAND_FAILED\]\nhint: /m)
    const types = events(stdout).map(({ type }) => type)
    expect(types).toEqual(['listening', 'connected', 'closed', 'error'])
    expect(errorIn(stdout).code).toBe('ERR_COMMAND_FAILED')
    expect(await readFile(output, 'utf8')).toBe('what was there')
  })

  it('kills the VM of a command that fails while the VM lives', async () => {
    const here = await scene({ pages: 64 })
    const gate = join(here.folder, 'gate')
    const wait = `until [ -e ${gate} ] || [ ! -d ${here.folder} ]; do sleep 0.02; done; exit 3`
    const record = new Cli([
      'record',
      ...serveWords(here),
      ...['--output', join(here.folder, 'vm.ws'), '--', 'sh', '-c', wait],
    ])
    await record.event('listening')
    await here.vmm.handshake(here.socketPath)
    await record.event('connected')
    await writeFile(gate, '')
    const { code, stderr, stdout } = await record.ended
    expect(code).toBe(1)
    expect(stderr).toMatch(new RegExp(`the VM \\(pid ${here.vmm.pid}\\) was killed`))
    expect(events(stdout).at(-2)).toMatchObject({ type: 'closed', state: 'vm-killed' })
    expect(await here.vmm.exited).toMatchObject({ signal: 'SIGKILL' })
  })

  it('says when the command ended and no VM had connected', async () => {
    const here = await scene({ pages: 64 })
    const words = [...serveWords(here), '--output', join(here.folder, 'vm.ws')]
    const { code, stderr } = await run(['record', ...words, '--', 'true'])
    expect(code).toBe(1)
    expect(stderr).toMatch(/^error: true exited before a VM .* \[ERR_HANDSHAKE_TIMEOUT\]\nhint: /)
  })

  it('says when the command cannot be started', async () => {
    const here = await scene({ pages: 64 })
    const words = [...serveWords(here), '--output', join(here.folder, 'vm.ws')]
    const { code, stderr } = await run(['record', ...words, '--', './nowhere.sh'])
    expect(code).toBe(1)
    expect(stderr).toMatch(
      /^error: \.\/nowhere\.sh cannot be started.* \[ERR_COMMAND_FAILED\]\nhint: /,
    )
    expect(existsSync(here.socketPath)).toBe(false)
  })

  it('leaves a command that is the VMM to itself when it detaches', again, async () => {
    const here = await scene({ pages: 64 })
    const alive = join(here.folder, 'alive')
    const wait = `until [ -e ${alive}.go ] || [ ! -d ${here.folder} ]; do sleep 0.02; done`
    const vmm = shellVmm(64, `echo read 1 2; ${wait}; echo 'verify ${here.memoryFile}'`)
    const command = await shellScript(here.folder, `${vmm} | grep -c '"wrongCount":0' > ${alive}`)
    const words = [...serveWords(here), '--output', join(here.folder, 'vm.ws')]
    const record = new Cli(['record', ...words, '--for', '2s', '--', command])
    await record.event('recorded')
    record.kill('SIGINT')
    const exit = await record.exited
    expect(exit).toEqual({ code: 0, signal: null })
    await writeFile(`${alive}.go`, '')
    await expect.poll(() => readFile(alive, 'utf8')).toBe('1\n')
  })

  it('ends after --for, serves on, and detaches at Ctrl-C', again, async () => {
    const here = await scene({ pages: 256 })
    const output = join(here.folder, 'vm.ws')
    const record = new Cli(['record', ...serveWords(here), '--output', output, '--for', '2s'])
    await record.event('listening')
    // Both at once: the VMM needs nobody to begin with the second.
    await Promise.all([here.vmm.handshake(here.socketPath), here.vmm.read(9, 8, 200)])
    expect(await record.event('recorded')).toMatchObject({ pageCount: 3 })
    await here.vmm.read(50)
    record.kill('SIGINT')
    const { code, signal, stdout, stderr } = await record.ended
    expect({ code, signal }, stderr).toEqual({ code: 0, signal: null })
    expect(events(stdout).at(-1)).toMatchObject({ type: 'closed', state: 'detached' })
    expect([...(await WorkingSet.read(output)).order.pages]).toEqual([9, 8, 200])
    // Alive, and with all of its memory.
    expect(await here.vmm.verify(here.memoryFile)).toMatchObject({ wrongCount: 0, pages: 256 })
  })

  it('ends the recording at the first Ctrl-C and detaches at the second', async () => {
    const here = await scene({ pages: 256 })
    const output = join(here.folder, 'vm.ws')
    const record = new Cli(['record', ...serveWords(here), '--output', output])
    await record.event('listening')
    await here.vmm.handshake(here.socketPath)
    await here.vmm.read(1, 2, 3)
    await record.event('connected')
    record.kill('SIGINT')
    expect(await record.event('recorded')).toMatchObject({
      path: output,
      pageCount: 3,
      extentCount: 1,
    })
    await here.vmm.read(77)
    record.kill('SIGINT')
    expect(await record.ended).toMatchObject({ code: 0, signal: null, stderr: '' })
    expect(await here.vmm.verify(here.memoryFile)).toMatchObject({ wrongCount: 0, pages: 256 })
  })

  it('ends with the times of its steps', async () => {
    const here = await scene({ pages: 256 })
    const words = ['--memory', here.memoryFile, '--socket', here.socketPath]
    const { stdout } = await run([
      'record',
      ...[...words, '--output', join(here.folder, 'vm.ws'), '--', await script(here, '7 3 4')],
    ])
    const steps = [...stdout.matchAll(/^ +[\d.]+ m?s {2}(.*)$/gm)].map(([, name]) => name)
    const names = ['listening', 'VMM connected', 'handshake complete', 'first fault', 'end']
    expect(steps).toEqual(names)
    expect(stdout).toMatch(/^ {2}the guest waited for pages for [\d.]+ m?s$/m)
  })

  it('records until the VM exits when nothing else ends it', async () => {
    const here = await scene({ pages: 64 })
    const output = join(here.folder, 'vm.ws')
    const record = new Cli(['record', ...serveWords(here), '--output', output])
    await record.event('listening')
    await here.vmm.handshake(here.socketPath)
    await here.vmm.read(5, 6)
    await here.vmm.exit(0)
    const { code, stdout } = await record.ended
    expect(code).toBe(0)
    expect(events(stdout).map(({ type }) => type)).toEqual([
      'listening',
      'connected',
      'recorded',
      'closed',
    ])
  })

  it('refuses to write a recording of nothing', async () => {
    const here = await scene({ pages: 64 })
    const output = join(here.folder, 'vm.ws')
    const record = new Cli(['record', ...serveWords(here), '--output', output])
    await record.event('listening')
    await here.vmm.handshake(here.socketPath)
    await record.event('connected')
    await here.vmm.exit(0)
    const { code, stderr } = await record.ended
    expect(code).toBe(1)
    expect(stderr).toMatch(/^error: .*touched no page.* \[ERR_NOTHING_RECORDED\]\nhint: .*\n$/)
    expect(existsSync(output)).toBe(false)
  })

  it('tries the folder that a link as its output leads to', async () => {
    const here = await scene({ pages: 64 })
    const [output, missing] = [join(here.folder, 'vm.ws'), join(here.folder, 'missing')]
    await symlink(join(missing, 'vm.ws'), output)
    const { code, stderr } = await run(['record', ...serveWords(here), '--output', output])
    expect(code).toBe(1)
    expect(stderr).toContain(`the folder ${missing} does not exist`)
  })

  it('ends like the signal at Ctrl-C before anybody connects', async () => {
    const here = await scene({ pages: 64 })
    const words = [...serveWords(here), '--output', join(here.folder, 'vm.ws')]
    const record = new Cli(['record', ...words])
    await record.event('listening')
    record.kill('SIGINT')
    const { code, signal, stderr } = await record.ended
    expect({ code, signal }).toEqual({ code: null, signal: 'SIGINT' })
    expect(stderr).toBe('no VM had connected\n')
    expect(existsSync(here.socketPath)).toBe(false)
  })

  it.each([
    { words: [], state: 'vm-killed', said: 'was killed' },
    { words: ['--leave-vm'], state: 'vm-left', said: 'will freeze at its next fault' },
  ])('at SIGTERM says what becomes of the VM: $state', async ({ words, state, said }) => {
    const here = await scene({ pages: 64 })
    const output = join(here.folder, 'vm.ws')
    const record = new Cli(['record', ...serveWords(here), '--output', output, ...words])
    await record.event('listening')
    await here.vmm.handshake(here.socketPath)
    await record.event('connected')
    record.kill('SIGTERM')
    const { signal, stdout, stderr } = await record.ended
    expect(signal).toBe('SIGTERM')
    expect(stderr).toContain(`the VM (pid ${here.vmm.pid}) `)
    expect(stderr).toContain(said)
    expect(events(stdout).at(-2)).toMatchObject({ type: 'closed', state })
    const error = { code: 'ERR_INTERRUPTED', signal: 'SIGTERM', message: stderr.trim() }
    expect(errorIn(stdout)).toEqual(error)
    if (state === 'vm-killed') expect(await here.vmm.exited).toMatchObject({ signal: 'SIGKILL' })
    else expect(await here.vmm.fds()).toBeGreaterThan(0)
    expect(await readdir(here.folder)).toEqual(['memory'])
  })

  it('goes on serving when nobody reads its stdout any more', async () => {
    const here = await scene({ pages: 64 })
    const output = join(here.folder, 'vm.ws')
    const record = new Cli(['record', ...serveWords(here), '--output', output])
    await record.event('listening')
    record.closeStdout()
    await here.vmm.handshake(here.socketPath)
    await here.vmm.read(1, 2)
    await here.vmm.exit(0)
    expect(await record.ended).toMatchObject({ code: 0, stderr: '' })
    expect((await WorkingSet.read(output)).pageCount).toBe(2)
  })

  it('gives up after --connect-timeout', async () => {
    const here = await scene({ pages: 64 })
    const words = [...serveWords(here), '--output', join(here.folder, 'vm.ws')]
    const { code, stderr } = await run(['record', ...words, '--connect-timeout', '50ms'])
    expect(code).toBe(1)
    expect(stderr).toMatch(/^error: no VMM connected .* \[ERR_HANDSHAKE_TIMEOUT\]\nhint: /)
  })

  it.each([
    ['a folder that is not there', 'nowhere/vm.ws', /nowhere does not exist/],
    ['a folder', '.', /is not a file/],
    ['the memory file', 'memory', /it is the memory file/],
  ])('refuses %s as output before it listens', async (_, output, message) => {
    const here = await scene({ pages: 64 })
    const words = [...serveWords(here), '--output', join(here.folder, output)]
    const { code, stdout, stderr } = await run(['record', ...words])
    expect(code).toBe(1)
    expect(errorIn(stdout).code).toBe('ERR_WORKING_SET_IO')
    expect(stderr).toMatch(/^error: .* \[ERR_WORKING_SET_IO\]\nhint: /)
    expect(stderr).toMatch(message)
  })

  it('says which memory file is missing', async () => {
    const here = await scene({ pages: 64 })
    const memoryFile = join(here.folder, 'nowhere')
    const words = [...serveWords({ ...here, memoryFile }), '--output', join(here.folder, 'vm.ws')]
    const { code, stderr } = await run(['record', ...words])
    expect(code).toBe(1)
    expect(stderr).toMatch(/^error: .*nowhere.* \[ERR_SOURCE_READ\]/)
  })
})
