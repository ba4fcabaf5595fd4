import { join } from 'node:path'
import { beforeAll, describe, expect, it } from 'vitest'
import {
  Cli,
  checkBuild,
  errorIn,
  events,
  serveWords,
  servingCommands,
} from '../support/cli-process.js'
import { hangingScene } from '../support/hanging-folder.js'

beforeAll(checkBuild)

describe.each(servingCommands)('%s from storage that hangs', (name, set) => {
  const begun = async (skip: (why: string) => void, ...flags: string[]) => {
    const [s, folder] = await hangingScene(skip)
    const memoryFile = folder.file(0)
    const words = [...serveWords({ ...s, memoryFile }), set, join(s.folder, 'vm.ws')]
    const cli = new Cli([name, ...words, '--read-timeout', '100ms', ...flags])
    await cli.event('listening')
    await s.vmm.handshake(s.socketPath)
    await cli.event('connected')
    await folder.hold('read')
    const hangs = { code: 'ERR_SOURCE_READ', check: 'hangs', path: memoryFile }
    return { ...s, folder, cli, hangs, verified: s.vmm.verify(s.memoryFile) }
  }

  it('warns after --read-timeout that the guest waits, and serves it when the read returns', async ({
    skip,
  }) => {
    const { vmm, folder, cli, hangs, verified } = await begun(skip)
    const warning = /has not returned for 100 ms; the guest waits for its pages \[ERR_SOURCE_READ\]/
    await expect.poll(() => cli.stderr).toMatch(warning)
    await folder.release()
    expect((await verified).wrong).toEqual([])
    await vmm.exit(0)
    const { code, stdout } = await cli.ended
    expect(code).toBe(0)
    expect(events(stdout)).toContainEqual({
      type: 'warning',
      error: expect.objectContaining(hangs),
    })
  })

  it('ends with --on-read-timeout fail, and kills the VM', async ({ skip }) => {
    const { vmm, cli, hangs, verified } = await begun(skip, '--on-read-timeout', 'fail')
    verified.catch(() => {})
    const { code, stdout, stderr } = await cli.ended
    expect(code).toBe(1)
    expect(errorIn(stdout)).toMatchObject(hangs)
    expect(stderr).toMatch(/ 100 ms; the VM \(pid \d+\) was killed \[ERR_SOURCE_READ\]/)
    expect(await vmm.exited).toMatchObject({ signal: 'SIGKILL' })
  })
})
