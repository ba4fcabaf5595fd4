import { join } from 'node:path'
import { expect, test } from 'vitest'
import {
  calibrateHost,
  interposerEnvironment,
  recordPageCache,
  serve,
  Trace,
  WorkingSet,
} from '../src/index.js'
import { calibrated } from './support/calibration.js'
import { scratchFolder } from './support/scratch.js'
import { failureOf, makeMemory } from './support/working-sets.js'

const trace = new Trace({
  pageSize: 4096,
  memoryBytes: 2 ** 20,
  pages: Uint32Array.of(3),
  timesUs: Uint32Array.of(0),
})
const set = WorkingSet.fromTraces([trace])
const snapshot = (memoryFile: string) => ({ memoryFile })
const socketPath = 's'

test.each<[string, string, (path: string) => Promise<unknown>]>([
  ['the memory file', 'serve()', (path) => serve({ snapshot: snapshot(path), socketPath })],
  [
    'the memory file',
    'interposerEnvironment()',
    async (path) => interposerEnvironment({ snapshot: snapshot(path), socketPath }),
  ],
  ['the memory file', 'recordPageCache()', (path) => recordPageCache({ snapshot: snapshot(path) })],
  ['the memory file', 'write()', (path) => set.write(`${path}.ws`, { snapshot: snapshot(path) })],
  ['the working-set file', 'WorkingSet.read()', (path) => WorkingSet.read(path)],
  ['the trace file', 'Trace.read()', (path) => Trace.read(path)],
])('%s that is missing has one style of message in %s', async (what, _, read) => {
  const path = join(await scratchFolder(), 'nowhere')
  const { message, hint } = await failureOf(read(path))
  expect(message).toMatch(/: (open|stat) failed with ENOENT$/)
  expect(message.startsWith(`cannot read ${what} ${path}: `)).toBe(true)
  expect(hint).toBe('The file does not exist.')
})

test('a file that cannot be written is named, and not the temporary one', async () => {
  const path = join(await scratchFolder(), 'nowhere/file')
  const memoryFile = makeMemory(256)
  for (const [what, write] of [
    ['trace', () => trace.write(path)],
    ['working-set', () => set.write(path, { snapshot: { memoryFile } })],
  ] as const) {
    const { message, hint } = await failureOf(write())
    expect(message).toBe(`cannot write the ${what} file ${path}: open failed with ENOENT`)
    expect(hint).toBe('The folder does not exist.')
  }
})

test('a folder for the calibration that does not exist is not created', async () => {
  calibrated()
  const folder = join(await scratchFolder(), 'nowhere')
  const failure = await failureOf(calibrateHost({ folder }))
  expect(failure.message).toBe(`cannot calibrate in ${folder}: mkdtemp failed with ENOENT`)
  expect(failure.code).toBe('ERR_CALIBRATION')
})

test('a file of another kind has a hint that asks whether it is one', async () => {
  const folder = await scratchFolder()
  const [memoryFile, traceFile] = [makeMemory(256), join(folder, 'trace')]
  await trace.write(traceFile)
  await set.write(join(folder, 'ws'), { snapshot: { memoryFile } })
  for (const use of [
    () => WorkingSet.read(memoryFile),
    () => WorkingSet.read(traceFile),
    () => Trace.read(join(folder, 'ws')),
    () => set.write(join(folder, 'other.ws'), { snapshot: { memoryFile: traceFile } }),
  ]) {
    expect((await failureOf(use())).hint).toMatch(/another file|guest memory file/)
  }
})
