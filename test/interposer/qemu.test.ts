import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from 'vitest'
import { interposerEnvironment, WorkingSet } from '../../src/index.js'
import { lacksFor, linuxGuest, type QemuGuest, QemuVm, realModeGuest } from '../support/qemu-vm.js'
import { expectBrought, serveScene } from '../support/scratch.js'

const guests = [
  { name: 'linux', make: linuxGuest },
  { name: 'real-mode', make: realModeGuest },
] as const

const said = (vm: QemuVm) => vm.stderr.split('\n').filter((line) => line.startsWith('reap-trace:'))

const because = (lacks: string) => (lacks === '' ? '' : `, skipped without ${lacks}`)

for (const { name, make } of guests) {
  const lacks = lacksFor(name)
  describe.skipIf(lacks !== '')(`stock QEMU with a ${name} guest${because(lacks)}`, () => {
    let folder = ''
    let memoryFile = ''
    let stateFile = ''
    let guest: QemuGuest

    beforeAll(async () => {
      folder = await mkdtemp(join(tmpdir(), 'reap-test-'))
      memoryFile = join(folder, 'vm.mem')
      stateFile = join(folder, 'vm.state')
      guest = make(folder)
      await QemuVm.snapshot(folder, guest, memoryFile, stateFile)
    }, 120_000)
    afterAll(() => rm(folder, { recursive: true, force: true }))

    async function restored(env?: NodeJS.ProcessEnv): Promise<QemuVm> {
      const vm = await QemuVm.restore(folder, guest, memoryFile, stateFile, env)
      onTestFinished(() => vm.kill())
      return vm
    }

    const at = (name: string) => ({ socketPath: join(folder, name), memoryFile })
    const environment = (name: string, onUnreachable?: 'file') =>
      interposerEnvironment({
        socketPath: join(folder, name),
        snapshot: { memoryFile },
        onUnreachable,
      })
    const permissions = async (vm: QemuVm) =>
      (await vm.mappings(memoryFile)).map((line) => line.split(' ')[1])

    test('is recorded, and the next restore finds its memory there', async () => {
      const recorder = await serveScene(at('record'))
      const first = await restored(environment('record'))
      await first.qmp('cont')
      await first.ask()
      const set = WorkingSet.fromTraces([recorder.stopRecording()])
      expect(recorder.stats().faults).toBeGreaterThanOrEqual(set.pageCount)
      await first.kill()

      const handler = await serveScene(at('serve'), { workingSet: set })
      const second = await restored(environment('serve'))
      await handler.prefetched
      await second.qmp('cont')
      await second.ask()
      const stats = handler.stats()
      expectBrought(stats, set.pageCount)
      expect(stats.residualFaults).toBeLessThan(set.pageCount / 5)
      expect(said(second)).toEqual([])
      expect(await permissions(second)).toEqual([])
      await second.kill()
      expect(await handler.closed).toMatchObject({ state: 'vm-exited' })
    })

    test('has every byte of its memory', async () => {
      const handler = await serveScene(at('all'))
      const vm = await restored(environment('all'))
      expect(await vm.differingPages(folder, memoryFile)).toEqual([])
      expect(handler.stats().faults).toBeGreaterThan(0)
    })

    test.each(['without variables', 'with those of another file'])(
      'is left alone by the library %s',
      async (which) => {
        const plain = await restored()
        const other = join(folder, 'other')
        await writeFile(other, Buffer.alloc(4096))
        const socketPath = join(folder, 'nobody')
        const { LD_PRELOAD, ...added } = interposerEnvironment({
          snapshot: { memoryFile: other },
          socketPath,
        })
        const vm = await restored(
          which === 'without variables' ? { LD_PRELOAD } : { LD_PRELOAD, ...added },
        )
        await vm.qmp('cont')
        await vm.ask()
        expect(await permissions(vm)).toEqual(['rw-p'])
        expect(await permissions(plain)).toEqual(['rw-p'])
        expect(vm.stderr).toBe(plain.stderr)
      },
    )

    test('starts from the plain file when nobody listens and the environment allows it', async () => {
      const vm = await restored(environment('nobody', 'file'))
      await vm.qmp('cont')
      await vm.ask()
      expect(await permissions(vm)).toEqual(['rw-p'])
      expect(said(vm)).toEqual([
        `reap-trace: ${memoryFile} is not served: no fault handler is at ${join(folder, 'nobody')}: No such file or directory; the plain file is mapped instead`,
      ])
    })

    test('does not start when nobody listens', async () => {
      await expect(restored(environment('nobody'))).rejects.toThrow(
        /ended \(69\): [\s\S]*reap-trace: .* this process ends/,
      )
    })
  })
}
