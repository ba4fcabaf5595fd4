import { truncateSync, writeFileSync } from 'node:fs'
import { readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { beforeAll, describe, expect, it } from 'vitest'
import {
  Cli,
  checkBuild,
  errorIn,
  events,
  guest,
  run,
  script,
  serveWords,
  servingCommands,
  shellScript,
  shellVmm,
} from '../support/cli-process.js'
import { type Scene, scene } from '../support/scratch.js'

beforeAll(checkBuild)

/** A script that is a VMM: it touches page 1, and page 60 once there is a file `gate`. */
const vmmScript = ({ folder, pages }: Scene): Promise<string> => {
  const wait = `until [ -e ${folder}/gate ] || [ ! -d ${folder} ]; do sleep 0.02; done`
  return shellScript(folder, shellVmm(pages, `echo read 1; ${wait}; echo read 60`))
}

describe.each(servingCommands)('%s of a VM that has to be killed', (name, set) => {
  it.each([['--json'], []])('says why, though its command fails by that (%s)', async (...flags) => {
    const one = async () => {
      const here = await scene({ pages: 64 })
      const words = serveWords(here).filter((word) => word !== '--json')
      const command = await vmmScript(here)
      const cli = new Cli([name, ...words, ...flags, set, join(here.folder, 'ws'), '--', command])
      await expect.poll(() => cli.stdout).toContain('connected')
      truncateSync(here.memoryFile, 4096)
      writeFileSync(join(here.folder, 'gate'), '')
      const { code, stdout, stderr } = await cli.ended
      expect(code).toBe(1)
      expect(stderr).toMatch(/; the VM \(pid \d+\) was killed \[ERR_SOURCE_READ\]/)
      expect(stderr).not.toContain('ERR_COMMAND_FAILED')
      if (flags.length > 0) expect(errorIn(stdout).code).toBe('ERR_SOURCE_READ')
    }
    await Promise.all([one(), one(), one()])
  })

  it('says why, even if that is in its handshake', async () => {
    const one = async () => {
      const here = await scene({ pages: 64 })
      const pipe = join(here.folder, 'pipe')
      const command = await shellScript(
        here.folder,
        `mkfifo ${pipe}`,
        // Of another size than the memory file.
        `(printf 'map 4096 4096\\nhandshake %s\\n' "$REAP_TRACE_SOCKET"; exec sleep 5) >${pipe} 2>&1 &`,
        `exec ${guest} vmm <${pipe}`,
      )
      const words = [...serveWords(here), set, join(here.folder, 'ws'), '--', command]
      const { code, stdout, stderr } = await run([name, ...words])
      expect(code).toBe(1)
      expect(stderr).toMatch(/; the VM \(pid \d+\) was killed \[ERR_HANDSHAKE_INVALID\]/)
      expect(stderr).not.toContain('ERR_COMMAND_FAILED')
      expect(errorIn(stdout)).toMatchObject({ code: 'ERR_HANDSHAKE_INVALID', check: 'memory-size' })
    }
    await Promise.all([one(), one(), one()])
  })
})

describe('a command that reports success', () => {
  it('is no recording where the guest touched hardly a page, and an older set stays', async () => {
    const here = await scene({ pages: 4096 })
    const output = join(here.folder, 'vm.ws')
    await writeFile(output, 'what was there')
    const words = [...serveWords(here), '--output', output, '--']
    const quiet = await run(['record', ...words, await script(here, '7 3')])
    expect(quiet.code).toBe(1)
    expect(quiet.stderr).toMatch(
      /^error: the guest touched only 2 pages .* \[ERR_NOTHING_RECORDED\]/m,
    )
    expect(errorIn(quiet.stdout).code).toBe('ERR_NOTHING_RECORDED')
    expect(await readFile(output, 'utf8')).toBe('what was there')
  })

  it('is no restore where the VM exits before it touches a page', async () => {
    const here = await scene({ pages: 64 })
    const command = await shellScript(here.folder, shellVmm(64, 'true'))
    const words = [...serveWords(here), '--working-set', join(here.folder, 'none')]
    const { code, stdout } = await run(['restore', ...words, '--', command])
    expect(code).toBe(1)
    expect(events(stdout).at(-2)).toMatchObject({ type: 'closed', state: 'vm-exited' })
    expect(errorIn(stdout).code).toBe('ERR_VM_DID_NOT_RUN')
  })
})

it.each(servingCommands)(
  '%s gives a command whose guest never answers --command-timeout',
  // A busy machine may take as long for the handshake.
  { retry: 2 },
  async (name, set) => {
    const here = await scene({ pages: 64 })
    const words = [...serveWords(here), set, join(here.folder, 'ws')]
    const cli = new Cli([name, ...words, '--command-timeout', '2s', '--', 'sleep', '100'])
    await cli.event('listening')
    await here.vmm.handshake(here.socketPath)
    const { code, stdout, stderr } = await cli.ended
    expect(code).toBe(1)
    expect(stderr).toMatch(
      /sleep had not ended after 2\.00 s .*\) was killed \[ERR_COMMAND_FAILED\]/,
    )
    expect(events(stdout).at(-2)).toMatchObject({ type: 'closed', state: 'vm-killed' })
    expect(await here.vmm.exited).toMatchObject({ signal: 'SIGKILL' })
  },
)

describe('with --json', () => {
  const ioCode = 'ERR_WORKING_SET_IO'
  it.each([
    [['record', '--memory', 'm', '--json'], 2, 'ERR_USAGE'],
    [['nonsense', '--json'], 2, 'ERR_USAGE'],
    [['inspect', '--json', '/nowhere'], 1, 'ERR_WORKING_SET_IO'],
    [['verify', '--json', '/nowhere', '--memory', '/nowhere'], 1, 'ERR_WORKING_SET_IO'],
    [
      ['advise', '--json', '/nowhere', '--memory', '/nowhere', '--no-calibrate'],
      1,
      'ERR_SOURCE_READ',
    ],
    [['demo', '--json', '--keep', '/dev/null/nowhere'], 1, 'ERR_SYSTEM'],
    [['demo', '--json', '--keep', '/proc/nowhere'], 1, 'ERR_SYSTEM'],
    [['record', '--json', '--memory', 'm', '--socket', 's', '--output', '/proc/ws'], 1, ioCode],
    [['demo', '--json', '--firecracker', '/nowhere'], 1, 'ERR_DEMO_FAILED'],
  ])('a failure of %s is an object too', async (words, status, code) => {
    const { code: exitCode, stdout, stderr } = await run(words)
    expect(exitCode).toBe(status)
    expect(events(stdout)).toEqual([{ type: 'error', error: expect.objectContaining({ code }) }])
    expect(stderr).toMatch(/^error: /)
  })

  it('so is a temporary folder whose path is too long for a socket', async () => {
    const TMPDIR = `/tmp/${'d'.repeat(90)}`
    const { code, stdout } = await run(['demo', '--json'], { env: { TMPDIR } })
    expect(code).toBe(1)
    expect(errorIn(stdout)).toMatchObject({
      code: 'ERR_MACHINE_UNFIT',
      hint: expect.stringContaining('TMPDIR'),
    })
  })

  it('wrong usage stays text where only the command has the word', async () => {
    const { code, stdout } = await run(['record', '--', 'curl', '--json'])
    expect({ code, stdout }).toEqual({ code: 2, stdout: '' })
  })
})
