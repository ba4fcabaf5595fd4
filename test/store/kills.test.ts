import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { readdir } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { expect, onTestFinished, test } from 'vitest'
import { openStore, WorkingSet } from '../../src/index.js'
import { range } from '../support/scratch.js'
import { restoreOnce, storeScene } from '../support/stores.js'

/** REAP_TRACE_STORE_KILLS=200 for more. */
const kills = Number(process.env.REAP_TRACE_STORE_KILLS ?? 12)

const writer = fileURLToPath(new URL('../support/store-writer.mjs', import.meta.url))
const guest = fileURLToPath(new URL('../../build/Release/reap-guest', import.meta.url))

test('a store that loses its process at any moment opens, and brings no wrong byte', async () => {
  const s = await storeScene()
  const start = (seed: number): ChildProcess =>
    spawn(process.execPath, [writer, s.folder, s.memoryFile, guest, `${seed}`], {
      stdio: ['ignore', 'pipe', 'inherit'],
    })
  let restores = 0
  const warnings: Error[] = []
  for (let kill = 0; kill < kills; kill++) {
    // Two processes with one store; both lose the race for its lock now and then.
    const writers = [start(2 * kill), start(2 * kill + 1)]
    onTestFinished(() => {
      for (const each of writers) each.kill('SIGKILL')
    })
    for (const { stdout } of writers)
      stdout!.on('data', (text) => (restores += `${text}`.split('\n').length - 1))
    // A writer that cannot start ends its output without a line.
    await Promise.race(
      writers.map(({ stdout }) => Promise.race([once(stdout!, 'data'), once(stdout!, 'end')])),
    )
    expect(restores).toBeGreaterThan(kill)
    await sleep(Math.random() * 300)
    for (const each of writers) {
      const exited = once(each, 'exit')
      each.kill('SIGKILL')
      expect(await exited).toEqual([null, 'SIGKILL'])
    }
    const store = await openStore(s.folder)
    const [known] = await store.snapshots()
    expect(known?.restoreCount).toBeGreaterThan(0)
    // Every set that the store lists is whole, and of this memory file.
    for (const { path } of known!.sets) {
      const set = await WorkingSet.read(path)
      expect(await set.verify({ memoryFile: s.memoryFile })).toMatchObject({ identical: true })
    }
    // Compares the whole memory.
    await restoreOnce({ ...s, store }, range((3 * kill) % 900, 100), {
      variant: 'variant 3',
      onEvent: (event) => {
        if (event.type === 'warning') warnings.push(event.error)
      },
    })
    await store.settled()
    expect(warnings).toEqual([])
    const names = await readdir(join(s.folder, 'snapshots', known!.key))
    expect(names.filter((name) => name.endsWith('.tmp'))).toEqual([])
  }
  expect(restores).toBeGreaterThan(kills)
}, 600_000)
