// @ts-check
// Writes linux-trace.json, the source of the Linux replays:
//
//   node bench/replay/record-linux-trace.mjs FUNCTION
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { WorkingSet } from '../../dist/index.js'
import { prepareGuests } from '../../native/guest/linux/index.mjs'
import { record } from '../guests/arms.mjs'

const [name = 'pyaes'] = process.argv.slice(2)
const [guest] = await prepareGuests({ functions: [name] })
if (!guest) throw new Error(`no guest ${name}`)
const folder = await mkdtemp(join(tmpdir(), 'reap-trace-'))
try {
  const socketPath = join(folder, 'uffd.sock')
  const { trace } = await record({ guest, input: guest.inputs[0], socketPath })
  const runs = [...WorkingSet.fromTraces([trace]).extents]
    .sort((a, b) => a.rank - b.rank)
    .map(({ firstPage, pageCount }) => [firstPage, pageCount])
  const from = `the first call of ${name} in a Linux guest of ${guest.memoryBytes / 2 ** 20} MiB, native/guest/linux`
  const file = new URL('linux-trace.json', import.meta.url)
  await writeFile(file, `${JSON.stringify({ from, runs })}\n`)
} finally {
  await rm(folder, { recursive: true, force: true })
}
