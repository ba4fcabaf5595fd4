import { spawnSync } from 'node:child_process'
import { mkdir, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { beforeAll, describe, expect, test } from 'vitest'
import { WorkingSet } from '../../src/index.js'
import { checkBuild, errorIn, events, guest, run, serveWords } from '../support/cli-process.js'
import { makeMemoryFile } from '../support/fake-vmm.js'
import { scratchFolder } from '../support/scratch.js'

const PAGES = 64

beforeAll(checkBuild)

async function place() {
  const folder = await scratchFolder()
  const memoryFile = join(folder, 'memory')
  await makeMemoryFile(memoryFile, PAGES)
  const output = join(folder, 'vm.ws')
  return { folder, memoryFile, output, socketPath: join(folder, 'uffd.sock') }
}

/** A command that maps the memory file as a VMM does, and touches these pages. */
const vmm = (pages: string) => [
  'sh',
  '-c',
  `printf "map-file $REAP_TRACE_MEMORY 0 ${PAGES * 4096}\\nread ${pages}\\nverify $REAP_TRACE_MEMORY\\n" | ${guest} vmm`,
]

describe('--interpose', () => {
  test('records and restores a VMM that maps its memory file', async () => {
    const here = await place()
    const recording = [...serveWords(here), '--output', here.output, '--interpose']
    const first = await run(['record', ...recording, '--', ...vmm('7 3 5')])
    expect(first, first.stderr).toMatchObject({ code: 0 })
    expect(first.stderr).toContain('"wrongCount":0')
    const set = await WorkingSet.read(here.output)
    expect(set.pageCount).toBe(PAGES)

    const restoring = [...serveWords(here), '--working-set', here.output, '--interpose']
    const second = await run(['restore', ...restoring, '--', ...vmm('9')])
    expect(second, second.stderr).toMatchObject({ code: 0 })
    expect(second.stderr).toContain('"wrongCount":0')
    const closed = events(second.stdout).find(({ type }) => type === 'closed')
    expect(closed).toMatchObject({ state: 'vm-exited', stats: { residualFaults: 0 } })
  })

  test('works with a short socket path in a folder with a long one', async () => {
    const here = await place()
    const cwd = join(here.folder, 'f'.repeat(120))
    await mkdir(cwd)
    const words = [...serveWords({ ...here, socketPath: 's' }), '--output', here.output]
    const { code, stderr } = await run(['record', ...words, '--interpose', '--', ...vmm('7 3 5')], {
      cwd,
    })
    expect(code, stderr).toBe(0)
    expect(stderr).toContain('"wrongCount":0')
  })

  test('needs a command', async () => {
    const here = await place()
    const words = ['record', ...serveWords(here), '--output', here.output, '--interpose']
    const { code, stderr } = await run(words)
    expect(code).toBe(2)
    expect(stderr).toMatch(/^error: --interpose needs a command after --\nhint: /)
  })

  test('says what a VMM must be when none has connected', async () => {
    const here = await place()
    const words = ['record', ...serveWords(here), '--output', here.output, '--interpose']
    const { code, stderr } = await run([...words, '--', 'true'])
    expect(code).toBe(1)
    expect(stderr).toMatch(/\[ERR_HANDSHAKE_TIMEOUT\]\nhint: .*dynamically linked.*share=off/)
  })

  test.each([
    ['stop', {}],
    ['stop', { REAP_TRACE_WHEN_UNREACHABLE: 'else' }],
    ['file', { REAP_TRACE_WHEN_UNREACHABLE: 'file' }],
  ])('gives COMMAND its variables: %s with %o', async (policy, env) => {
    const here = await place()
    const words = ['record', ...serveWords(here), '--output', here.output, '--interpose']
    const file = join(here.folder, 'environment')
    await run([...words, '--', 'sh', '-c', `env > ${file}`], { env })
    const variables = (await readFile(file, 'utf8')).split('\n')
    expect(variables).toContain(`REAP_TRACE_WHEN_UNREACHABLE=${policy}`)
    expect(variables).toContain(`REAP_TRACE_MEMORY=${here.memoryFile}`)
    expect(variables).toContain(`REAP_TRACE_SOCKET=${here.socketPath}`)
    expect(variables.find((line) => line.startsWith('LD_PRELOAD='))).toMatch(/reap-interposer\.so/)
  })
})

const hasCompiler = spawnSync('cc', ['--version']).status === 0

test.skipIf(!hasCompiler).each(['EPERM', 'ENOSYS'])(
  'the doctor and the demo name the filter that forbids userfaultfd with %s (skipped without cc)',
  async (errno) => {
    const { folder } = await place()
    const library = join(folder, 'without-userfaultfd.so')
    const source = fileURLToPath(
      new URL('../support/fixtures/without-userfaultfd.c', import.meta.url),
    )
    const words = ['-shared', '-fPIC', `-DDENIED=${errno}`, '-o', library, source]
    const { stderr } = spawnSync('cc', words)
    expect(`${stderr}`).toBe('')
    const env = { LD_PRELOAD: library }
    const { stdout } = await run(['doctor', '--json'], { env })
    const [{ checks }] = events(stdout) as unknown as [{ checks: { name: string }[] }]
    expect(checks.find(({ name }) => name === 'interposer')).toMatchObject({
      status: 'warn',
      detail: expect.stringMatching(/is not served: no userfaultfd.*: [A-Z][a-z ]+$/),
      remedy: expect.not.stringContaining('report'),
    })
    for (const name of ['uffd, VMM', 'uffd, demo']) {
      const { remedy } = checks.find((check) => check.name === name) as { remedy?: string }
      expect(remedy).toMatch(/ seccomp filter /)
    }
    expect(checks.find(({ name }) => name === 'uffd, features')).toMatchObject({ status: 'skip' })
    const demo = await run(['demo', '--json'], { env })
    expect(errorIn(demo.stdout)).toMatchObject({
      code: 'ERR_UFFD_UNAVAILABLE',
      hint: expect.stringContaining('seccomp filter'),
    })
  },
)
