// Restores a Firecracker snapshot with reap-trace. The first run records a working set, later runs
// prefetch it.
//
//   node --experimental-strip-types examples/firecracker.ts \
//     FIRECRACKER VMSTATE MEMORY WORKING_SET [COMMAND …]
//
// FIRECRACKER is the binary, VMSTATE and MEMORY are the files of a full snapshot, WORKING_SET is the
// file to write or to use. COMMAND sends the request that the working set is recorded for; without
// one, the guest runs for two seconds. Node 22.18 and later need no flag.
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync } from 'node:fs'
import { mkdtemp, rm } from 'node:fs/promises'
import { request } from 'node:http'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { type FaultHandler, ReapTraceError, serve, WorkingSet } from 'reap-trace'

const START_TIMEOUT_MS = 5000
const startedAt = performance.now()

function phase(name: string, details = ''): void {
  const ms = (performance.now() - startedAt).toFixed(1).padStart(9)
  console.log(`${ms} ms  ${name.padEnd(11)} ${details}`.trimEnd())
}

/** One request on Firecracker's API socket. Rejects with its message when it says no. */
function send(socketPath: string, method: string, path: string, body: object): Promise<void> {
  return new Promise((resolve, reject) => {
    const bytes = Buffer.from(JSON.stringify(body))
    const headers = { 'Content-Type': 'application/json', 'Content-Length': bytes.length }
    const sent = request({ socketPath, method, path, headers }, (response) => {
      let text = ''
      response.setEncoding('utf8').on('error', reject)
      response.on('data', (part: string) => {
        text += part
      })
      response.on('end', () => {
        if (response.statusCode === 204) resolve()
        else reject(new Error(`${method} ${path}: ${response.statusCode} ${text}`))
      })
    })
    sent.on('error', reject)
    sent.end(bytes)
  })
}

/** Like {@link send}, and waits for the API socket, which appears after the process has started. */
async function api(socketPath: string, method: string, path: string, body: object): Promise<void> {
  for (;;) {
    try {
      return await send(socketPath, method, path, body)
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException
      const starting = code === 'ENOENT' || code === 'ECONNREFUSED'
      if (!starting || performance.now() - startedAt > START_TIMEOUT_MS) throw error
      await sleep(2)
    }
  }
}

async function callFunction([command, ...args]: readonly string[]): Promise<void> {
  if (command === undefined) return void (await sleep(2000))
  const [code, signal] = await once(spawn(command, args, { stdio: 'inherit' }), 'exit')
  if (code !== 0) throw new Error(`${command} ended with ${signal ?? `exit code ${code}`}`)
}

async function restore(
  firecracker: string,
  vmstate: string,
  memoryFile: string,
  workingSet: string,
  command: readonly string[],
): Promise<void> {
  const records = !existsSync(workingSet)
  const folder = await mkdtemp(join(tmpdir(), 'restore-'))
  const socketPath = join(folder, 'uffd.sock')
  const apiPath = join(folder, 'api.sock')
  // The VMM starts while the working set is read; only the load needs the handler's socket.
  const vmm = spawn(firecracker, ['--api-sock', apiPath], {
    stdio: ['ignore', 'inherit', 'inherit'],
  })
  const exited = once(vmm, 'exit')
  exited.catch(() => {})
  const interrupt = new AbortController()
  // Not once(): a signal that nobody listens to any more ends the process at once.
  process.on('SIGINT', () => interrupt.abort(new Error('interrupted')))
  let handler: FaultHandler | undefined

  const run = async (handler: FaultHandler) => {
    const backend = { backend_type: 'Uffd', backend_path: socketPath }
    const load = { snapshot_path: vmstate, mem_backend: backend, resume_vm: false }
    await api(apiPath, 'PUT', '/snapshot/load', load)
    phase('loaded')
    await api(apiPath, 'PATCH', '/vm', { state: 'Resumed' })
    phase('resumed')
    await callFunction(command)
    const { faults, lateFaults, residualFaults } = handler.stats()
    phase('answered', `${faults} faults (${lateFaults} late, ${residualFaults} residual)`)
    if (!records) return
    const trace = handler.takeTrace()
    const set = WorkingSet.fromTraces([trace])
    await set.write(workingSet, { memoryFile })
    phase('written', `${set.pages} pages in ${set.extents.length} extents to ${workingSet}`)
  }

  try {
    handler = await serve({
      socketPath,
      memoryFile,
      signal: interrupt.signal,
      ...(!records && { workingSet }),
      onEvent: (event) => {
        if (event.type === 'listening') phase('listening', records ? 'to record' : 'to prefetch')
        if (event.type === 'connected') phase('connected', `pid ${event.pid}`)
        if (event.type === 'prefetched' && !records) phase('prefetched', `${event.pages} pages`)
        if (event.type === 'warning') phase('warning', event.error.message)
      },
    })
    const session = handler
    const ended = exited.then(([code, signal]) => {
      throw new Error(`${firecracker} ended early with ${signal ?? `exit code ${code}`}`)
    })
    await Promise.race([run(session), ended]).catch(async (error: unknown) => {
      await session.close() // rejects with what ended the session, where that was the cause
      throw error
    })
  } finally {
    // A restored VM needs its handler for as long as it lives, so both end here.
    await handler?.close().catch(() => {})
    vmm.kill('SIGKILL')
    await rm(folder, { recursive: true, force: true })
  }
}

const [firecracker, vmstate, memoryFile, workingSet, ...command] = process.argv.slice(2)
if (!firecracker || !vmstate || !memoryFile || !workingSet) {
  console.error('usage: firecracker.ts FIRECRACKER VMSTATE MEMORY WORKING_SET [COMMAND …]')
  process.exit(2)
}
try {
  await restore(firecracker, resolve(vmstate), resolve(memoryFile), resolve(workingSet), command)
} catch (error) {
  const code = error instanceof ReapTraceError ? ` [${error.code}]` : ''
  console.error(`error: ${error instanceof Error ? error.message : error}${code}`)
  if (error instanceof ReapTraceError && error.hint) console.error(`hint: ${error.hint}`)
  process.exitCode = 1
}
