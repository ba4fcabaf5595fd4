// Runs one Node.js function for the host, as agent.py does for Python.
import { constants, createReadStream } from 'node:fs'
import { open } from 'node:fs/promises'
import { createInterface } from 'node:readline'

const [name, mode] = process.argv.slice(2)
const { handle, inputs } = await import(`./functions/${name}.mjs`)

async function call(request) {
  const started = process.hrtime.bigint()
  const answer = await handle(request)
  return { answer, us: Number((process.hrtime.bigint() - started) / 1000n) }
}

async function serve() {
  const port = await open('/dev/vport0p1', constants.O_RDWR)
  const send = (message) => port.writeFile(`${JSON.stringify(message)}\n`)
  await send({ ready: name })
  const requests = createReadStream('', { fd: port, autoClose: false })
  for await (const line of createInterface({ input: requests })) {
    try {
      await send(await call(JSON.parse(line).input))
    } catch (error) {
      await send({ error: error.stack })
    }
  }
}

async function reference() {
  const answered = []
  for (const [input, request] of Object.entries(inputs)) {
    answered.push({ name: input, request, answer: await handle(request) })
  }
  process.stdout.write(
    JSON.stringify({ inputs: answered, files: [], executable: process.execPath }),
  )
}

await (mode === '--reference' ? reference() : serve())
