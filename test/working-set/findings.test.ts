import { spawnSync } from 'node:child_process'
import {
  chmodSync,
  chownSync,
  existsSync,
  lstatSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  symlinkSync,
  unlinkSync,
  utimesSync,
  writeFileSync,
} from 'node:fs'
import { homedir } from 'node:os'
import { dirname, join } from 'node:path'
import { describe, expect, onTestFinished, test, vi } from 'vitest'
import type { FileStamp } from '../../src/snapshot/file-stamp.js'
import { proofFolder, remember, type SetState } from '../../src/working-set/findings.js'
import { copiedPair, identical, proven, restore, unproven } from '../support/proofs.js'
import { isRoot, scratchFolder } from '../support/scratch.js'

/** An environment variable for the rest of the test. */
function setEnv(name: string, value: string | undefined): void {
  const before = process.env[name]
  const set = (to: string | undefined) => {
    if (to === undefined) delete process.env[name]
    else process.env[name] = to
  }
  set(value)
  onTestFinished(() => set(before))
}

const ANOTHER = 12345
let serial = 0
/** States that no file has. */
const stampAt = (time: number): FileStamp => BigUint64Array.of(1n, 2n, 4096n, 5n, BigInt(time))
const memory = stampAt(6)

/** A folder for findings with one of a set. */
async function stored() {
  const parent = await scratchFolder()
  const folder = join(parent, 'cache', 'proofs')
  setEnv('REAP_TRACE_PROOFS', folder)
  const inode = BigInt(++serial)
  const set: SetState = {
    path: join(parent, 'vm.ws'),
    id: Uint8Array.from({ length: 16 }, (_, i) => i),
    stamp: BigUint64Array.of(77n, inode, 4096n, 8n, 9n),
  }
  const memoryFile = join(parent, 'memory')
  writeFileSync(memoryFile, 'memory')
  const finding = { memoryFile, how: 'compared', mismatchedPageCount: 0, mismatches: [] } as const
  await remember(set, memory, finding, synced)
  const file = join(folder, `77-${inode}.json`)
  return { parent, folder, file, set, finding }
}

const synced = async (): Promise<void> => {}

/** What is known of a set where nothing but the folder says so. */
async function foundElsewhere(set: SetState, of = memory) {
  vi.resetModules()
  const { findingOf } = await import('../../src/working-set/findings.js')
  return findingOf(set, of)
}

const modeOf = (path: string) => lstatSync(path).mode & 0o7777

describe('the folder of findings', () => {
  test('is made for its owner alone, and so are its files', async () => {
    const { folder, file, set, finding } = await stored()
    expect([dirname(folder), folder].map(modeOf)).toEqual([0o700, 0o700])
    expect(modeOf(file)).toBe(0o600)
    expect(readdirSync(folder)).toHaveLength(1)
    expect(await foundElsewhere(set)).toMatchObject({ ...finding, memory: '1:2:4096:5:6' })
  })

  test("is the one that is named, or one in the user's cache folder", () => {
    setEnv('REAP_TRACE_PROOFS', '/named')
    setEnv('XDG_CACHE_HOME', '/cache')
    expect(proofFolder()).toBe('/named')
    setEnv('REAP_TRACE_PROOFS', undefined)
    expect(proofFolder()).toBe('/cache/reap-trace/proofs')
    setEnv('XDG_CACHE_HOME', undefined)
    expect(proofFolder()).toBe(join(homedir(), '.cache/reap-trace/proofs'))
  })

  const others: { name: string; needsRoot?: true; change(folder: string): void }[] = [
    { name: 'that its group may write', change: (folder) => chmodSync(folder, 0o770) },
    { name: 'that others may write', change: (folder) => chmodSync(folder, 0o703) },
    {
      name: 'that is a link to one',
      change: (folder) => {
        renameSync(folder, `${folder}-other`)
        symlinkSync(`${folder}-other`, folder)
      },
    },
    {
      name: 'of another user',
      needsRoot: true,
      change: (folder) => chownSync(folder, ANOTHER, ANOTHER),
    },
  ]
  test.for(others)('$name is not used', async ({ needsRoot, change }, { skip }) => {
    skip(needsRoot === true && !isRoot, 'needs root to change an owner')
    const { folder, file, set, finding } = await stored()
    change(folder)
    const before = readFileSync(file)
    expect(await foundElsewhere(set)).toBeUndefined()
    await remember(set, stampAt(7), finding, synced)
    expect(readFileSync(file)).toEqual(before)
    expect(readdirSync(folder)).toHaveLength(1)
  })

  test('costs comparisons where it cannot be made, and nothing else', async () => {
    const pair = await copiedPair()
    setEnv('REAP_TRACE_PROOFS', join(pair.memoryFile, 'proofs'))
    expect(await restore(pair)).toMatchObject({
      ...unproven,
      compared: { ...identical, remembered: false },
      warnings: [],
    })
    expect(await restore(pair)).toMatchObject(proven('compared'))
  })

  test('loses the oldest half when there are too many, and what is not ours never', async () => {
    const { folder, set, finding } = await stored()
    const path = (i: number) => join(folder, `1-${i}.json`)
    for (let i = 0; i < 4096; i++) {
      writeFileSync(path(i), '')
      utimesSync(path(i), 1000 + i, 1000 + i)
    }
    const foreign = join(folder, 'notes.txt')
    writeFileSync(foreign, 'mine')
    utimesSync(foreign, 1, 1)
    await remember(set, stampAt(7), finding, synced)
    expect(readdirSync(folder)).toHaveLength(4098 - 2048)
    expect([path(0), path(2047), path(2048), path(4095)].map(existsSync)).toEqual([
      ...[false, false, true, true],
    ])
    expect(existsSync(foreign)).toBe(true)
    expect(await foundElsewhere(set, stampAt(7))).toMatchObject(finding)
  })
})

describe('findings in a file', () => {
  const json = (change: (content: Record<string, unknown>) => void) => (file: string) => {
    const content = JSON.parse(readFileSync(file, 'utf8'))
    change(content)
    writeFileSync(file, JSON.stringify(content))
  }
  const inFinding = (fields: object) =>
    json((content) => {
      const [finding] = content.findings as object[]
      content.findings = [{ ...finding, ...fields }]
    })
  const bad: { name: string; needsRoot?: true; change(file: string): void }[] = [
    { name: 'that is not there', change: unlinkSync },
    { name: 'that its group may write', change: (file) => chmodSync(file, 0o620) },
    { name: 'that others may write', change: (file) => chmodSync(file, 0o602) },
    {
      name: 'of another user',
      needsRoot: true,
      change: (file) => chownSync(file, ANOTHER, ANOTHER),
    },
    {
      name: 'that is a link',
      change: (file) => {
        renameSync(file, `${file}.other`)
        symlinkSync(`${file}.other`, file)
      },
    },
    {
      name: 'that is a named pipe',
      change: (file) => {
        unlinkSync(file)
        expect(spawnSync('mkfifo', ['-m', '600', file]).status).toBe(0)
      },
    },
    {
      name: 'that is cut short',
      change: (file) => writeFileSync(file, readFileSync(file).subarray(0, -1)),
    },
    { name: 'that is empty', change: (file) => writeFileSync(file, '') },
    { name: 'that is no JSON', change: (file) => writeFileSync(file, 'findings') },
    { name: 'that is another JSON', change: (file) => writeFileSync(file, '[null]') },
    { name: 'that says nothing', change: (file) => writeFileSync(file, 'null') },
    {
      name: 'of more than 1 MiB',
      change: json((content) => {
        content.more = ' '.repeat(2 ** 20)
      }),
    },
    {
      name: 'of a set with another id',
      change: json((content) => {
        content.id = 'ff'.repeat(16)
      }),
    },
    {
      name: 'of another state of the set',
      change: json((content) => {
        content.stamp = `${content.stamp}1`
      }),
    },
    { name: 'of another state of the memory file', change: inFinding({ memory: '1:2:4096:5:7' }) },
    { name: 'found in another way', change: inFinding({ how: 'guessed' }) },
    { name: 'without a count', change: inFinding({ mismatchedPageCount: undefined }) },
    { name: 'with half a page', change: inFinding({ mismatchedPageCount: 0.5 }) },
    { name: 'without a list', change: inFinding({ mismatches: undefined }) },
  ]
  test.each(bad)(
    '$name are no proof, and the next replaces them',
    async ({ needsRoot, change }) => {
      if (needsRoot && !isRoot) return void console.log('skipped: needs root to change an owner')
      const { folder, file, set, finding } = await stored()
      expect(await foundElsewhere(set)).toMatchObject(finding)
      change(file)
      const other = existsSync(`${file}.other`) ? readFileSync(`${file}.other`) : undefined
      expect(await foundElsewhere(set)).toBeUndefined()

      vi.resetModules()
      const proof = await import('../../src/working-set/findings.js')
      await proof.remember(set, stampAt(7), finding, synced)
      expect(await foundElsewhere(set, stampAt(7))).toMatchObject(finding)
      expect(lstatSync(file).isFile()).toBe(true)
      expect(modeOf(file)).toBe(0o600)
      if (other) expect(readFileSync(`${file}.other`)).toEqual(other)
      rmSync(folder, { recursive: true })
    },
  )

  test('are those of the last 16 memory files', async () => {
    const { set, finding } = await stored()
    for (let time = 100; time < 120; time++) {
      await remember(
        set,
        stampAt(time),
        { ...finding, memoryFile: `${finding.memoryFile}${time}` },
        synced,
      )
    }
    vi.resetModules()
    const { findingsOf } = await import('../../src/working-set/findings.js')
    const states = (await findingsOf(set)).map((one) => one.memory)
    expect(states).toEqual(Array.from({ length: 16 }, (_, i) => stampAt(119 - i).join(':')))
  })

  test('of one memory file twice are the later', async () => {
    const { set, finding } = await stored()
    await remember(set, stampAt(5), finding, synced)
    expect(await foundElsewhere(set)).toBeUndefined()
    await remember(set, memory, { ...finding, mismatchedPageCount: 2, mismatches: [4, 7] }, synced)
    expect(await foundElsewhere(set)).toMatchObject({ mismatchedPageCount: 2, mismatches: [4, 7] })
  })

  test('go when the set is written anew in the same inode', async () => {
    const { set, finding } = await stored()
    const [device, inode] = set.stamp as unknown as [bigint, bigint]
    const anew = { ...set, stamp: BigUint64Array.of(device, inode, 4096n, 80n, 90n) }
    await remember(anew, stampAt(7), finding, synced)
    expect(await foundElsewhere(set)).toBeUndefined()
    expect(await foundElsewhere(anew)).toBeUndefined()
    expect(await foundElsewhere(anew, stampAt(7))).toMatchObject(finding)
  })
})
