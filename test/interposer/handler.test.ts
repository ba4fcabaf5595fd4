import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { chmod, readFile } from 'node:fs/promises'
import { connect } from 'node:net'
import { join } from 'node:path'
import { describe, expect, onTestFinished, test } from 'vitest'
import { interposerEnvironment } from '../../src/index.js'
import { makeMemoryFile } from '../support/fake-vmm.js'
import { fakeVmm, isRoot, scratchFolder, serveScene } from '../support/scratch.js'

const PAGES = 64

async function place() {
  const folder = await scratchFolder()
  const memoryFile = join(folder, 'memory')
  await makeMemoryFile(memoryFile, PAGES)
  return { folder, memoryFile, socketPath: join(folder, 'uffd.sock') }
}

type Place = Awaited<ReturnType<typeof place>>

async function interposed({ memoryFile, socketPath }: Place, uid?: number) {
  const env = interposerEnvironment({
    snapshot: { memoryFile },
    socketPath,
    onUnreachable: 'file',
    env: {},
  })
  return fakeVmm({ env, ...(uid === undefined ? {} : { uid }) })
}

const mapping = ({ memoryFile }: Place) => `map-file ${memoryFile} 0 ${PAGES * 4096}`

/** A process that listens and never accepts, until it is asked to end. */
async function deafListener({ socketPath }: Place) {
  const script = `
    const { readSync, writeSync } = require('node:fs')
    require('node:net').createServer().listen({ path: process.argv[1], backlog: 1 }, () => {
      writeSync(1, 'listening')
      readSync(0, Buffer.alloc(1))
      process.exit()
    })`
  const child = spawn(process.execPath, ['-e', script, socketPath], {
    stdio: ['pipe', 'pipe', 'inherit'],
  })
  onTestFinished(() => void child.kill('SIGKILL'))
  await once(child.stdout, 'data')
  return {
    async end() {
      child.stdin.end()
      await once(child, 'exit')
    },
  }
}

/** Ends of connections that a socket has, those that nobody has accepted among them. */
async function connections({ socketPath }: Place): Promise<number> {
  const lines = (await readFile('/proc/net/unix', 'utf8')).split('\n')
  return lines.filter((line) => line.endsWith(` ${socketPath}`)).length - 1
}

describe('a handler that never reads the message', () => {
  test.each(['has not accepted', 'has a full backlog'])(
    'is given up in the end when it %s',
    async (how) => {
      const here = await place()
      await deafListener(here)
      if (how === 'has a full backlog') {
        for (let i = 0; i < 2; i++) {
          const socket = connect(here.socketPath)
          onTestFinished(() => void socket.destroy())
          await once(socket, 'connect')
        }
      }
      const vmm = await interposed(here)
      expect(await vmm.send(mapping(here))).toMatchObject({ mapping: `rw-p ${here.memoryFile}` })
      expect(await vmm.verify(here.memoryFile)).toMatchObject({ wrongCount: 0 })
      await vmm.kill()
      expect(vmm.stderr).toBe(
        `reap-trace: ${here.memoryFile} is not served: no fault handler has read its message at ${here.socketPath}: Connection timed out; the plain file is mapped instead\n`,
      )
    },
  )

  test('is given up at once when it closes its listener', async () => {
    const here = await place()
    const listener = await deafListener(here)
    const vmm = await interposed(here)
    await vmm.bg('map', mapping(here))
    await expect.poll(() => connections(here)).toBe(1)
    await listener.end()
    expect(await vmm.wait('map')).toMatchObject({ mapping: `rw-p ${here.memoryFile}` })
    expect(await vmm.verify(here.memoryFile)).toMatchObject({ wrongCount: 0 })
    await vmm.kill()
    expect(vmm.stderr).toContain('it was refused by the fault handler at')
  })

  test.skipIf(!isRoot)(
    'is given up at once when it refuses the user (skipped without root)',
    async () => {
      const here = await place()
      await chmod(here.folder, 0o755)
      await chmod(here.memoryFile, 0o666)
      const handler = await serveScene(here)
      handler.connected.catch(() => {})
      await chmod(here.socketPath, 0o777)
      const vmm = await interposed(here, 65534)
      expect(await vmm.send(mapping(here))).toMatchObject({ mapping: `rw-p ${here.memoryFile}` })
      expect(await vmm.verify(here.memoryFile)).toMatchObject({ wrongCount: 0 })
      await expect(handler.connected).rejects.toMatchObject({ code: 'ERR_PEER_REFUSED' })
      await vmm.kill()
      expect(vmm.stderr).toContain('it was refused by the fault handler at')
    },
  )
})
