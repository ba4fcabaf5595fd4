import { execFile, spawnSync } from 'node:child_process'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { interposerEnvironment } from '../../src/index.js'
import { makeMemoryFile } from '../support/fake-vmm.js'

const hasCompiler = spawnSync('cc', ['--version']).status === 0
const source = fileURLToPath(new URL('../support/fixtures/odd-vmm.c', import.meta.url))

describe.skipIf(!hasCompiler)('the library in a VMM (skipped without cc)', () => {
  let folder = ''
  let memoryFile = ''

  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), 'reap-test-'))
    memoryFile = join(folder, 'memory')
    await makeMemoryFile(memoryFile, 64)
    const words = ['-O1', '-fno-builtin', '-o', join(folder, 'vmm'), source, '-pthread']
    await promisify(execFile)('cc', words)
  })
  afterAll(() => rm(folder, { recursive: true, force: true }))

  const unserved = () =>
    `reap-trace: ${memoryFile} is not served: no fault handler is at ${join(folder, 'none')}: No such file or directory; the plain file is mapped instead\n`
  const shared = () =>
    `reap-trace: ${memoryFile} is mapped shared, and only a private mapping can be served (share=off, MAP_PRIVATE)\n`

  test.each([
    ['locale', 'allocates nothing, in any language', unserved],
    ['cancel', 'is no cancellation point', unserved],
    ['pipe', 'raises no SIGPIPE', () => ''],
    ['child', 'takes a child for the VMM whose parent only shares', () => shared() + unserved()],
  ])('%s: %s', async (habit, _, said) => {
    const added = interposerEnvironment({
      snapshot: { memoryFile },
      socketPath: join(folder, 'none'),
      onUnreachable: 'file',
      env: {},
    })
    const env = { ...process.env, ...added }
    // A VMM that waits for itself takes no other signal.
    const limits = { env, timeout: 50_000, killSignal: 'SIGKILL' } as const
    const vmm = promisify(execFile)(join(folder, 'vmm'), [habit, memoryFile], limits)
    expect(await vmm).toEqual({ stdout: 'mapped\n', stderr: said() })
  })
})
