import { existsSync } from 'node:fs'
import { readdir } from 'node:fs/promises'
import { join } from 'node:path'
import { beforeAll, describe, expect, it } from 'vitest'
import { firecracker } from '../../native/guest/driver/microvm.mjs'
import { Cli, checkBuild, events, run } from '../support/cli-process.js'
import { scratchFolder } from '../support/scratch.js'
import { missing, PAGES_AFTER_ANSWER } from '../support/stock-firecracker.js'

const words = ['demo', '--firecracker', firecracker, '--memory-size', '128M']

describe.skipIf(missing)('demo --firecracker', () => {
  beforeAll(checkBuild)

  it('compares the three ways in a microVM, whose guest finds every page right', async () => {
    const folder = await scratchFolder()
    const { code, stdout, stderr } = await run([...words, '--rounds', '1', '--json'], {
      env: { TMPDIR: folder },
    })
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' })
    const [report] = events(stdout)
    expect(report).toMatchObject({
      vmm: expect.stringMatching(/^Firecracker \d+\.\d+/),
      memoryBytes: 2 ** 27,
      identical: true,
    })
    expect(report.workingSet.pages).toBeGreaterThanOrEqual(7680)
    expect(report.arms['kernel-file'].warm.faults).toBeGreaterThan(0)
    expect(report.arms['on-demand'].warm.faults).toBeGreaterThanOrEqual(7680)
    expect(report.arms['working-set'].warm.residualFaults).toBeLessThanOrEqual(PAGES_AFTER_ANSWER)
    expect(report.otherInput).toMatchObject({ identical: true })
    // The guest walks 128 other pages in order: one fault each for the first 16.
    expect(report.otherInput.residualFaults).toBeGreaterThanOrEqual(16)
    expect(await readdir(folder)).toEqual([])
  })

  it('leaves nothing behind at Ctrl-C', async () => {
    const folder = await scratchFolder()
    const demo = new Cli([...words, '--rounds', '50'], { env: { TMPDIR: folder } })
    const made = async () => {
      const [scratch] = await readdir(folder)
      return scratch !== undefined && existsSync(join(folder, scratch, 'guest.ws'))
    }
    await expect.poll(made, { timeout: 50_000 }).toBe(true)
    demo.kill('SIGINT')
    expect(await demo.ended).toMatchObject({ signal: 'SIGINT', stderr: 'nothing is left behind\n' })
    expect(await readdir(folder)).toEqual([])
  })

  it('says what it cannot start', async () => {
    const { code, stderr } = await run(['demo', '--firecracker', '/no/firecracker'])
    expect(code).toBe(1)
    expect(stderr).toMatch(/^error: \/no\/firecracker cannot be started: .*ENOENT.*\nhint: /)
  })
})
