import { type ChildProcess, execFileSync, spawn } from 'node:child_process'
import { mkdtemp, rm } from 'node:fs/promises'
import { availableParallelism, loadavg, tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it, onTestFinished, type TestContext } from 'vitest'
import { Trace, type Verdict, WorkingSet } from '../../src/index.js'
import { checkBuild, cli, events, guest, run, shellScript } from '../support/cli-process.js'
import { hangingFolder } from '../support/hanging-folder.js'

/**
 * Minimum number of right verdicts of each kind, and maximum of wrong ones. Other work of the machine
 * is a cause, too; with REAP_TRACE_VERDICTS, the number of restores on a quiet machine, nine of ten
 * must be right.
 */
const named = process.env.REAP_TRACE_VERDICTS
const RIGHT = named ? Math.ceil(0.9 * Number(named)) : 3
const WRONG = named ? Number(named) - RIGHT : 9
const MEMORY = 128 * 2 ** 20

let folder: string
let memoryFile: string
let recorded: WorkingSet
let workingSet: string

/**
 * A command that restores the embedded guest, sends it a request, and marks its answer. `before` and
 * `after` run before the restore and before the mark.
 */
const command = ({ before = ':', after = ':' } = {}) =>
  shellScript(
    folder,
    before,
    `cd ${folder} && rm -f in out && mkfifo in out`,
    `${guest} vmm <in >out &`,
    'exec 4>in 5<out',
    `echo "invoke uffd $REAP_TRACE_SOCKET ${MEMORY} one" >&4`,
    'until echo "$line" | grep -q response; do read -r line <&5; done',
    after,
    'if [ "$REAP_TRACE_READY" ]; then echo >"$REAP_TRACE_READY"; fi',
    'exec 4>&-',
    'wait',
  )

beforeAll(async () => {
  await checkBuild()
  folder = await mkdtemp(join(tmpdir(), 'reap-verdict-'))
  memoryFile = join(folder, 'memory')
  workingSet = join(folder, 'vm.ws')
  execFileSync(guest, ['build', '--memory-size', `${MEMORY}`, '--snapshot', memoryFile])
  const files = ['--memory', memoryFile, '--socket', join(folder, 'uffd.sock')]
  const words = ['record', ...files, '--output', workingSet, '--', await command()]
  execFileSync(process.execPath, [cli, ...words], { stdio: 'pipe' })
  recorded = await WorkingSet.read(workingSet)
})
afterAll(() => rm(folder, { recursive: true, force: true }))

async function verdictOf(
  set: string,
  invoke: string,
  memory = memoryFile,
): Promise<Verdict | undefined> {
  const files = ['--memory', memory, '--socket', join(folder, 'uffd.sock')]
  const words = [...files, '--working-set', set, '--backend', 'uffd', '--json', '--', invoke]
  const { code, stdout, stderr } = await run(['restore', ...words])
  expect(code, stderr).toBe(0)
  return events(stdout).find(({ type }) => type === 'closed').verdict
}

/** On a machine with twice as much to run as it has cores, that is the cause of what is slow. */
const isBusy = () => loadavg()[0]! > 2 * availableParallelism()

async function expectVerdict(
  { skip }: TestContext,
  kind: Verdict['kind'],
  restore: (run: number) => Promise<Verdict | undefined>,
): Promise<void> {
  const verdicts: Verdict[] = []
  const right = () => verdicts.filter((verdict) => verdict.kind === kind).length
  while (right() < RIGHT && verdicts.length - right() <= WRONG) {
    const verdict = await restore(verdicts.length)
    expect(verdict).toMatchObject({ kind: expect.any(String), sentence: expect.any(String) })
    verdicts.push(verdict!)
  }
  if (right() < RIGHT && isBusy() && !named) skip('needs a machine that has less to do')
  expect(right(), JSON.stringify(verdicts, null, 2)).toBe(RIGHT)
}

/** A working set of these pages. */
async function setOf(name: string, pages: readonly number[]): Promise<string> {
  const path = join(folder, name)
  const trace = new Trace({
    pageSize: 4096,
    memoryBytes: MEMORY,
    pages: Uint32Array.from(pages),
    timesUs: new Uint32Array(pages.length),
  })
  await WorkingSet.fromTraces([trace]).write(path, { snapshot: { memoryFile } })
  return path
}

describe('the verdict on a restore that is slow on purpose', { timeout: 120_000 }, () => {
  it('names a set that lacks 90 % of the pages', async (context) => {
    const set = await setOf(
      'tenth.ws',
      [...recorded.order.pages].filter((_, i) => i % 10 === 0),
    )
    const invoke = await command()
    await expectVerdict(context, 'set-does-not-fit', () => verdictOf(set, invoke))
  })

  it('names a set that is ten times too large', async (context) => {
    const needed = [...recorded.order.pages].filter((page) => page < MEMORY / 4096)
    const rest = Array.from({ length: MEMORY / 4096 }, (_, page) => page)
    const others = rest.filter((page) => !needed.includes(page))
    const set = await setOf('large.ws', [...needed, ...others])
    const invoke = await command()
    await expectVerdict(context, 'set-too-large', () => verdictOf(set, invoke))
  })

  it('names a set that does not exist', async (context) => {
    const invoke = await command()
    await expectVerdict(context, 'set-missing', () => verdictOf(join(folder, 'none.ws'), invoke))
  })

  it('is printed with its remedy below the steps', { retry: 4 }, async () => {
    const files = ['--memory', memoryFile, '--socket', join(folder, 'uffd.sock')]
    const words = [...files, '--working-set', join(folder, 'none.ws'), '--backend', 'uffd']
    const { stdout } = await run(['restore', ...words, '--', await command()])
    expect(stdout).toMatch(
      / until it was ready\nNothing was prefetched: .*\nRecord a working set .*\n$/,
    )
  })

  it('names a command that sleeps before it loads the snapshot', async (context) => {
    const invoke = await command({ before: 'sleep 0.4' })
    await expectVerdict(context, 'vmm', () => verdictOf(workingSet, invoke))
  })

  it('names an application that takes its time', async (context) => {
    const invoke = await command({ after: 'sleep 0.6' })
    await expectVerdict(context, 'application', () => verdictOf(workingSet, invoke))
  })

  it('names a slow disk', async (context) => {
    const disk = await hangingFolder(memoryFile)
    if (disk.missing) context.skip(disk.missing)
    await disk.slow(64)
    const invoke = await command()
    // Each restore takes another file, since those of earlier ones are in the page cache.
    await expectVerdict(context, 'disk', (i) => verdictOf(workingSet, invoke, disk.file(i)))
  })

  it('names cores that are busy with other work', async (context) => {
    const hogs: ChildProcess[] = []
    onTestFinished(() => {
      for (const hog of hogs) hog.kill('SIGKILL')
    })
    for (let i = 0; i < availableParallelism(); i++)
      hogs.push(spawn('sh', ['-c', 'while :; do :; done']))
    const invoke = await command()
    await expectVerdict(context, 'cores', () => verdictOf(workingSet, invoke))
  })
})
