// Restores over and over through a store, until it is killed: `node store-writer.mjs STORE MEMORY
// GUEST SEED`. Prints a line for each restore; the evidence of the first one is saved by then.
import { spawn } from 'node:child_process'
import { createInterface } from 'node:readline'
import { openStore } from '../../dist/index.js'

const [folder, memoryFile, guest, seed] = process.argv.slice(2)
const child = spawn(guest, ['vmm'], { stdio: ['pipe', 'pipe', 'inherit'] })
const answers = createInterface({ input: child.stdout })[Symbol.asyncIterator]()
const run = async (command) => {
  if (command) child.stdin.write(`${command}\n`)
  const { value } = await answers.next()
  if (!JSON.parse(value).ok) throw new Error(`${command}: ${value}`)
}

let state = Number(seed)
const random = (below) => {
  state = (Math.imul(state, 1103515245) + 12345) >>> 0
  return Math.floor((state / 2 ** 32) * below)
}

await run()
const store = await openStore(folder)
for (let i = 0; ; i++) {
  // A working set that moves, so that sets are written again and again.
  const first = 20 * random(30)
  const pages = Array.from({ length: 60 + random(100) }, (_, page) => first + page)
  const socketPath = `${memoryFile}.${process.pid}.${i}`
  await run('map 4096 4194304')
  const restored = await store.restore({
    snapshot: { memoryFile },
    socketPath,
    backend: 'uffd',
    ...(random(3) > 0 && { variant: `variant ${random(20)}` }),
  })
  await run(`handshake ${socketPath}`)
  await run(`read ${pages.join(' ')}`)
  await restored.ready()
  await restored.close({ vm: 'leave' })
  await run('drop')
  // After the first, the store has the snapshot.
  if (i === 0 || random(2) > 0) await restored.learned
  process.stdout.write('restored\n')
}
