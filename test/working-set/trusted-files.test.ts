import { chmod, chown, copyFile, symlink } from 'node:fs/promises'
import { join } from 'node:path'
import { beforeAll, describe, expect, test } from 'vitest'
import { planRestore, prefetchPageCache, restore, Trace, WorkingSet } from '../../src/index.js'
import { uncalibrated } from '../support/calibration.js'
import { checkBuild, run } from '../support/cli-process.js'
import { eventLog, isRoot, recordedSet, type Scene, scene, serveScene } from '../support/scratch.js'
import { failureOf } from '../support/working-sets.js'

uncalibrated()
const PAGES = 64
const ORDER = [7, 3, 4]

interface Harm {
  readonly name: string
  readonly check: 'owner' | 'mode'
  /** Returns the path to use. */
  readonly harm: (path: string) => Promise<string>
}

const mode = (bits: number) => async (path: string) => {
  await chmod(path, bits)
  return path
}
const owner = async (path: string) => {
  await chown(path, 12345, 12345)
  return path
}
const linkTo = (harm: Harm['harm']) => async (path: string) => {
  const link = `${path}.link`
  await symlink(await harm(path), link)
  return link
}

const harms: Harm[] = [
  { name: 'that everybody may write to', check: 'mode', harm: mode(0o666) },
  { name: 'that its group may write to', check: 'mode', harm: mode(0o664) },
  { name: 'behind a link, that others may write to', check: 'mode', harm: linkTo(mode(0o602)) },
]
const ownerHarms: Harm[] = [
  { name: 'of another user', check: 'owner', harm: owner },
  { name: 'of another user, behind a link', check: 'owner', harm: linkTo(owner) },
]

async function harmed({ harm }: Harm): Promise<Scene & { workingSet: string }> {
  const here = await scene({ pages: PAGES })
  return { ...here, workingSet: await harm(await recordedSet(here, ORDER)) }
}

function refuses(each: Harm): void {
  const { check } = each

  test('gives a guest nothing', async () => {
    const here = await harmed(each)
    const log = eventLog()
    const { workingSet } = here
    const handler = await serveScene(here, { workingSet, onEvent: log.onEvent })
    const error = { code: 'ERR_UNTRUSTED_FILE', check, path: workingSet }
    expect(log.events[0]).toMatchObject({ type: 'warning', error })
    await here.vmm.handshake(here.socketPath)
    expect(await handler.prefetched).toMatchObject({ pageCount: 0, complete: false })
    expect((await here.vmm.verify(here.memoryFile)).wrong).toEqual([])
  })

  test('is an error wherever one is asked for', async () => {
    const here = await harmed(each)
    const { workingSet } = here
    const snapshot = { memoryFile: here.memoryFile }
    const onBadWorkingSet = 'fail'
    for (const work of [
      () => serveScene(here, { workingSet, onBadWorkingSet }),
      () => planRestore({ snapshot, workingSet, onBadWorkingSet }),
      () => prefetchPageCache({ snapshot, workingSet }),
      () => WorkingSet.read(workingSet),
    ]) {
      const error = { code: 'ERR_UNTRUSTED_FILE', check, path: workingSet }
      expect(await failureOf(work())).toMatchObject(error)
    }
  })

  test('is used where the caller trusts those who may write to it', async () => {
    const here = await harmed(each)
    const { workingSet } = here
    const snapshot = { memoryFile: here.memoryFile }
    const trustWorkingSet = true
    const options = { snapshot, workingSet, trustWorkingSet }
    expect(await prefetchPageCache(options)).toMatchObject({ pageCount: 3, complete: true })
    const plan = await planRestore({ ...options, backend: 'uffd', onBadWorkingSet: 'fail' })
    await using restored = await restore(plan, { socketPath: here.socketPath })
    await here.vmm.handshake(here.socketPath)
    expect(await restored.prefetched).toMatchObject({ pageCount: 3, complete: true })
    // And not by anybody else of this process.
    expect(await failureOf(WorkingSet.read(workingSet))).toMatchObject({ check })
  })

  test('is used once it was read with trust', async () => {
    const here = await harmed(each)
    const set = await WorkingSet.read(here.workingSet, { trust: true })
    // The change of the mode has ended the proof.
    const { remembered } = await set.verify({ memoryFile: here.memoryFile })
    const source = remembered ? 'working-set' : 'memory-file'
    const handler = await serveScene(here, { workingSet: set, onBadWorkingSet: 'fail' })
    await here.vmm.handshake(here.socketPath)
    expect(await handler.prefetched).toMatchObject({ pageCount: 3, source })
  })
}

describe.each(harms)('a working set $name', refuses)
describe.skipIf(!isRoot).each(ownerHarms)(
  'a working set $name (needs root for the other user)',
  refuses,
)

test('a working set that others may only read is used', async () => {
  const here = await scene({ pages: PAGES })
  const workingSet = await mode(0o644)(await recordedSet(here, ORDER))
  const handler = await serveScene(here, { workingSet, onBadWorkingSet: 'fail' })
  await here.vmm.handshake(here.socketPath)
  expect(await handler.prefetched).toMatchObject({ pageCount: 3, complete: true })
})

test('a set in memory gives no bytes of a file that others have been allowed to write to', async () => {
  const here = await scene({ pages: PAGES })
  const path = await recordedSet(here, ORDER)
  const set = await WorkingSet.read(path)
  await chmod(path, 0o666)
  const handler = await serveScene(here, { workingSet: set })
  await here.vmm.handshake(here.socketPath)
  expect(await handler.prefetched).toMatchObject({ pageCount: 3, source: 'memory-file' })
})

describe('a trace', () => {
  async function trace(): Promise<string> {
    const { folder } = await scene({ pages: 1 })
    const path = join(folder, 'run.trace')
    const times = new Uint32Array([0])
    const pages = new Uint32Array([0])
    await new Trace({ pageSize: 4096, memoryBytes: 4096, pages, timesUs: times }).write(path)
    return path
  }

  async function expectRefused({ harm, check }: Harm): Promise<void> {
    const path = await harm(await trace())
    const error = {
      code: 'ERR_UNTRUSTED_FILE',
      check,
      path,
      hint: expect.stringMatching('trust: true'),
    }
    expect(await failureOf(Trace.read(path))).toMatchObject(error)
    expect((await Trace.read(path, { trust: true })).pages).toHaveLength(1)
    await expect(Trace.read(path, { trust: 'yes' as never })).rejects.toThrow(TypeError)
  }

  test.each(harms)('$name is refused unless it is trusted', expectRefused)
  test.skipIf(!isRoot).each(ownerHarms)(
    '$name is refused unless it is trusted (needs root for the other user)',
    expectRefused,
  )
})

describe('the command line', () => {
  beforeAll(checkBuild)

  test('refuses a set that others may write to, shows it, and takes --trust-working-set', async () => {
    const here = await harmed(harms[0]!)
    const trusted = join(here.folder, 'copy')
    await copyFile(here.workingSet, trusted)
    await chmod(trusted, 0o600)
    const words = [here.workingSet, '--memory', here.memoryFile]
    const refused = await run(['advise', ...words, '--no-calibrate'])
    expect(refused).toMatchObject({ code: 1, stderr: expect.stringMatching('ERR_UNTRUSTED_FILE') })
    expect(refused.stderr).toContain('--trust-working-set')
    for (const args of [
      ['advise', ...words, '--no-calibrate', '--trust-working-set'],
      ['advise', trusted, '--memory', here.memoryFile, '--no-calibrate'],
      ['inspect', here.workingSet],
      ['verify', ...words],
    ]) {
      expect(await run(args)).toMatchObject({ code: 0, stderr: '' })
    }
  })
})
