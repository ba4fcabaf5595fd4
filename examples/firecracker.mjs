// @ts-check
// The whole life of a snapshot with stock Firecracker and reap-trace: boot, pause, snapshot; a restore
// that the store records; a restore that prefetches what it learned. Files of an earlier run are used
// again, so the first run does all three, and every later one the last.
//
//   node examples/firecracker.mjs FIRECRACKER FOLDER [options] [-- COMMAND …]
//
// FIRECRACKER is the binary. FOLDER gets the files `vmstate` and `memory`, and the folder `store`. To
// boot takes --kernel FILE, and --initrd FILE or --rootfs FILE; the snapshot is taken after
// --boot-seconds (5). COMMAND sends the request whose pages the store learns; without one, the guest
// runs for two seconds. Types are in comments, so that every Node runs it; `npx tsc` checks them.
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync } from 'node:fs'
import { mkdir, mkdtemp, rm } from 'node:fs/promises'
import { request } from 'node:http'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { text } from 'node:stream/consumers'
import { setTimeout as sleep } from 'node:timers/promises'
import { parseArgs } from 'node:util'
import { openStore, ReapTraceError } from 'reap-trace'

const START_TIMEOUT_MS = 10_000
const BOOT_ARGS = 'console=ttyS0 reboot=k panic=1 pci=off'
let startedAt = performance.now()

/** @param {string} name */
function phase(name, details = '') {
  const ms = (performance.now() - startedAt).toFixed(1).padStart(9)
  console.log(`${ms} ms  ${name.padEnd(11)} ${details}`.trimEnd())
}

/**
 * A request on Firecracker's API socket, which answers 204 when all is well.
 * @typedef {(method: 'PUT' | 'PATCH', path: string, body: object) => Promise<void>} Api
 */

/**
 * @typedef {object} Vm
 * @property {Api} api
 * @property {string} folder Where its sockets are.
 * @property {AbortSignal} signal Aborts when it ends, and at Ctrl-C.
 */

/**
 * @typedef {object} Snapshot
 * @property {string} vmstate
 * @property {string} memoryFile
 */

/**
 * @param {string} socketPath
 * @param {AbortSignal} signal
 * @param {Parameters<Api>} request
 */
async function send(socketPath, signal, ...[method, path, body]) {
  const bytes = Buffer.from(JSON.stringify(body))
  const headers = { 'Content-Type': 'application/json', 'Content-Length': bytes.length }
  const sent = request({ socketPath, method, path, headers, agent: false, signal })
  sent.end(bytes)
  const [response] = await once(sent, 'response')
  const said = await text(response)
  const { statusCode } = response
  if (statusCode !== 204) throw new Error(`${method} ${path}: ${statusCode} ${said}`)
}

/**
 * Runs `body` with a new Firecracker process, which is gone afterwards.
 * @param {string} binary
 * @template T
 * @param {(vm: Vm) => Promise<T>} body
 * @returns {Promise<T>}
 */
async function withFirecracker(binary, body) {
  startedAt = performance.now()
  const folder = await mkdtemp(join(tmpdir(), 'firecracker-'))
  const socketPath = join(folder, 'api.sock')
  const ended = new AbortController()
  const { signal } = ended
  const interrupt = () => ended.abort(new Error('interrupted'))
  process.on('SIGINT', interrupt)
  const args = ['--api-sock', socketPath, '--level', 'Error']
  const vmm = spawn(binary, args, { stdio: ['ignore', 'inherit', 'inherit'] })
  const exited = once(vmm, 'exit').then(([code, name]) => {
    ended.abort(new Error(`${binary} ended early with ${name ?? `exit code ${code}`}`))
  }, ended.abort.bind(ended))
  // The API socket appears after the process has started.
  /** @type {Api} */
  const api = async (...words) => {
    for (;;) {
      try {
        return await send(socketPath, signal, ...words)
      } catch (error) {
        const { code } = /** @type {NodeJS.ErrnoException} */ (error)
        const starting = code === 'ENOENT' || code === 'ECONNREFUSED'
        if (!starting || performance.now() - startedAt > START_TIMEOUT_MS) throw error
        await sleep(2, undefined, { signal })
      }
    }
  }
  try {
    return await body({ api, folder, signal })
  } catch (error) {
    throw error instanceof Error && error.name === 'AbortError' ? signal.reason : error
  } finally {
    vmm.kill('SIGKILL')
    await exited
    process.off('SIGINT', interrupt)
    await rm(folder, { recursive: true, force: true })
  }
}

/**
 * @param {Vm} vm
 * @param {Snapshot} snapshot
 * @param {typeof values} options
 */
async function makeSnapshot(vm, snapshot, options) {
  const { api, signal } = vm
  const { kernel, initrd, rootfs } = options
  if (!kernel) throw new Error('there is no snapshot yet: --kernel FILE boots a guest to make one')
  await api('PUT', '/boot-source', {
    kernel_image_path: resolve(kernel),
    boot_args: BOOT_ARGS,
    ...(initrd && { initrd_path: resolve(initrd) }),
  })
  if (rootfs) {
    const drive = { drive_id: 'rootfs', path_on_host: resolve(rootfs), is_root_device: true }
    await api('PUT', '/drives/rootfs', { ...drive, is_read_only: true })
  }
  await api('PUT', '/machine-config', { vcpu_count: 1, mem_size_mib: 256 })
  await api('PUT', '/actions', { action_type: 'InstanceStart' })
  await sleep(Number(options['boot-seconds']) * 1000, undefined, { signal })
  phase('booted')
  await api('PATCH', '/vm', { state: 'Paused' })
  const { vmstate, memoryFile } = snapshot
  await api('PUT', '/snapshot/create', { snapshot_path: vmstate, mem_file_path: memoryFile })
  phase('snapshot', memoryFile)
}

/**
 * @param {readonly string[]} command
 * @param {AbortSignal} signal
 */
async function callFunction(command, signal) {
  const [name, ...args] = command
  if (name === undefined) return void (await sleep(2000, undefined, { signal }))
  const [code, killedBy] = await once(spawn(name, args, { stdio: 'inherit', signal }), 'exit')
  if (code !== 0) throw new Error(`${name} ended with ${killedBy ?? `exit code ${code}`}`)
}

/**
 * @param {Vm} vm
 * @param {Snapshot} snapshot
 * @param {import('reap-trace').Store} store
 * @param {readonly string[]} command
 * @returns {Promise<boolean>} Whether there was a set to prefetch.
 */
async function restore(vm, snapshot, store, command) {
  const { vmstate, memoryFile } = snapshot
  // The VMM starts while the working set is read; only the load needs the handler's socket.
  const restored = await store.restore({
    snapshot: { memoryFile },
    socketPath: join(vm.folder, 'uffd.sock'),
    backend: 'uffd',
    // A restore whose command fails teaches nothing.
    waitForReady: true,
    onEvent: (event) => {
      if (event.type === 'connected') phase('connected', `pid ${event.pid}`)
      if (event.type === 'prefetched') phase('prefetched', `${event.pageCount} pages`)
      if (event.type === 'warning') phase('warning', event.error.message)
      if (event.type === 'drift') phase('drift', event.kind)
    },
  })
  const isKnown = restored.plan.workingSet !== undefined
  try {
    phase('listening', isKnown ? 'to prefetch' : 'to record')
    const load = { snapshot_path: vmstate, mem_backend: restored.memBackend }
    await vm.api('PUT', '/snapshot/load', load)
    phase('loaded')
    await vm.api('PATCH', '/vm', { state: 'Resumed' })
    phase('resumed')
    await callFunction(command, vm.signal)
    const stats = restored.handler?.stats()
    phase(
      'answered',
      `${stats?.faults} faults (${stats?.lateFaults} late, ${stats?.residualFaults} residual)`,
    )
    await restored.ready()
  } finally {
    // A restored VM needs its handler for as long as it lives: both end here.
    await restored.close()
    // Rejects with what ended the session, where it ended by itself.
    await restored.handler?.closed
  }
  const learned = await restored.learned
  for (const { pageCount } of learned?.written ?? [])
    phase('written', `a set of ${pageCount} pages`)
  return isKnown
}

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    kernel: { type: 'string' },
    initrd: { type: 'string' },
    rootfs: { type: 'string' },
    'boot-seconds': { type: 'string', default: '5' },
    help: { type: 'boolean', default: false },
  },
})
const [firecracker, folder, ...command] = positionals
if (values.help || !firecracker || !folder) {
  console.error('usage: firecracker.mjs FIRECRACKER FOLDER [--kernel FILE …] [-- COMMAND …]')
  process.exit(values.help ? 0 : 2)
}
const snapshot = {
  vmstate: resolve(folder, 'vmstate'),
  memoryFile: resolve(folder, 'memory'),
}
try {
  await mkdir(folder, { recursive: true })
  if (!existsSync(snapshot.vmstate)) {
    await withFirecracker(firecracker, (vm) => makeSnapshot(vm, snapshot, values))
  }
  const store = await openStore(resolve(folder, 'store'))
  const restoreOnce = () =>
    withFirecracker(firecracker, (vm) => restore(vm, snapshot, store, command))
  const isKnown = await restoreOnce()
  if (!isKnown) await restoreOnce()
} catch (error) {
  const code = error instanceof ReapTraceError ? ` [${error.code}]` : ''
  console.error(`error: ${error instanceof Error ? error.message : error}${code}`)
  if (error instanceof ReapTraceError && error.hint) console.error(`hint: ${error.hint}`)
  process.exitCode = 1
}
