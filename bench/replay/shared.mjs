// @ts-check
// Memory of concurrent restores of one snapshot that have finished. A page shared by several
// processes counts once.
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { performance } from 'node:perf_hooks'
import { planRestore, restore } from '../../dist/index.js'
import { KvmGuest } from '../../native/guest/driver/kvm-guest.mjs'
import { onOurClock } from '../lib/reap-handler.mjs'

/** @type {import('./sample.mjs').Request & { shared: number }} */
const { scene, arm, folder, shared } = JSON.parse(process.argv[2] ?? '{}')
const { memoryFile, workingSet, trace } = scene
const backend = arm === 'page-cache' ? 'page-cache' : 'uffd'

/** Proportional set size of a process: shared bytes are divided by the number of sharers. */
function proportionalBytes(/** @type {number | undefined} */ pid) {
  const found = /^Pss:\s+(\d+) kB/m.exec(readFileSync(`/proc/${pid}/smaps_rollup`, 'utf8'))
  return Number(found?.[1]) * 1024
}

const guests = Array.from(
  { length: shared },
  () => new KvmGuest({ memoryFile, trace, threads: true, pause: ['ready', 'done'] }),
)
try {
  await Promise.all(guests.map((guest) => guest.event('ready')))
  const total = () => guests.reduce((sum, { pid }) => sum + proportionalBytes(pid), 0)
  const before = total()
  const startedAt = performance.now()
  const restores = await Promise.all(
    guests.map(async (guest, i) => {
      const socketPath = join(folder, `shared-${i}.sock`)
      const plan = await planRestore({ snapshot: { memoryFile }, workingSet, backend })
      const restored = await restore(plan, { socketPath })
      guest.go(backend === 'uffd' ? `socket ${socketPath}` : 'file')
      return restored
    }),
  )
  const done = await Promise.all(guests.map((guest) => guest.event('done')))
  await Promise.all(restores.map(({ prefetched }) => prefetched))
  const sample = {
    responseMs: Math.max(...done.map(onOurClock)) - startedAt,
    wrong: done.reduce((sum, { wrong = 0 }) => sum + wrong, 0),
    memoryBytes: total() - before,
  }
  await Promise.all(restores.map((restored) => restored.close()))
  process.stdout.write(`${JSON.stringify(sample)}\n`)
} finally {
  await Promise.all(guests.map((guest) => guest.kill()))
}
