import { existsSync, readFileSync, statSync } from 'node:fs'
import { chown, copyFile } from 'node:fs/promises'
import { join } from 'node:path'
import { describe, expect, test } from 'vitest'
import { jailer } from '../../native/guest/driver/microvm.mjs'
import { cachedSnapshot } from '../../native/guest/driver/microvm-snapshot.mjs'
import { isRoot, scratchFolder, serveScene } from '../support/scratch.js'
import { microvm, missing, recordedSet } from '../support/stock-firecracker.js'

const UID = 12_345

const lacking = missing ?? (!existsSync(jailer) ? 'the jailer' : !isRoot && 'root, for the jailer')
if (lacking && !missing) console.log(`skipped: needs ${lacking}`)

/** A jailed Firecracker that has loaded nothing yet, and what it may read of a snapshot. */
async function jailed(newPidNamespace: boolean) {
  const folder = await scratchFolder()
  const vm = await microvm({ jail: { folder, id: 'vm-1', uid: UID, newPidNamespace } })
  const { vmstate, memoryFile } = await cachedSnapshot('plain')
  await copyFile(vmstate, join(vm.folder, 'vmstate'))
  await chown(join(vm.folder, 'vmstate'), UID, UID)
  return { vm, memoryFile, socketPath: join(vm.folder, 'uffd.sock') }
}

/** As that process sees it: the inode of its root, its uid, its number in each pid namespace. */
function seen(pid: number) {
  const status = readFileSync(`/proc/${pid}/status`, 'utf8')
  const field = (name: string) =>
    new RegExp(`^${name}:\\s+(.*)$`, 'm').exec(status)![1]!.split('\t')
  return {
    root: statSync(`/proc/${pid}/root`).ino,
    uid: Number(field('Uid')[0]),
    numbers: field('NSpid').map(Number),
  }
}

const inJail = { vmstate: '/vmstate', uffdSocket: '/uffd.sock' }

describe.skipIf(lacking)('a Firecracker in a jail', () => {
  test.each([
    ['in our pid namespace', false],
    ['in its own pid namespace', true],
  ])('is restored %s, as another uid and below another root', async (_, newPidNamespace) => {
    const { vm, memoryFile, socketPath } = await jailed(newPidNamespace)
    const { root, uid, numbers } = seen(vm.pid)
    expect({ root, uid }).toEqual({ root: statSync(vm.folder).ino, uid: UID })
    expect(numbers).toEqual(newPidNamespace ? [vm.pid, 1] : [vm.pid])

    const workingSet = await recordedSet(await cachedSnapshot('plain'), 'm')
    const handler = await serveScene({ socketPath, memoryFile }, { workingSet, peerUid: UID })
    vm.send('m')
    await vm.load(inJail)
    expect((await handler.connected).pid).toBe(vm.pid)
    expect(await vm.answer('m')).toEqual({ requests: 3 })
    expect(handler.stats().residualFaults).toBe(0)
    await vm.ask('l')
    expect(await handler.close()).toMatchObject({ state: 'vm-killed' })
    await vm.exited
  })

  test('is refused without peerUid, and reports the refusal', async () => {
    const { vm, memoryFile, socketPath } = await jailed(false)
    const handler = await serveScene({ socketPath, memoryFile })
    await expect(vm.load(inJail)).rejects.toMatchObject({
      status: 400,
      message: expect.stringContaining('Permission denied (os error 13)'),
    })
    await vm.exited
    expect(await handler.close()).toMatchObject({ state: 'closed' })
  })
})
