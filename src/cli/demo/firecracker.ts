import { accessSync, constants } from 'node:fs'
import { performance } from 'node:perf_hooks'
import { programPath, serve } from '../../index.js'
import { CliError } from '../terminal/failure.js'
import { formatBytes } from '../terminal/units.js'
import {
  type Arm,
  type Cache,
  noFaults,
  prefetching,
  type Sample,
  type Scene,
  type Subject,
  setCache,
  whileServed,
  withGuest,
} from './arms.js'
import { FirecrackerProcess } from './firecracker-process.js'

/** Walks 30 MiB of pages, and 128 pages that no other request asks for. */
const INPUT = 'm'
const OTHER_INPUT = 'mo'

/** A guest without a kernel in a Firecracker, which says of each request whether its pages were right. */
export function firecrackerSubject(binary: string): Subject {
  if (process.arch !== 'x64') {
    throw new CliError(
      'ERR_DEMO_FAILED',
      `the guest for Firecracker is for x64, not ${process.arch}`,
    )
  }
  try {
    accessSync('/dev/kvm', constants.R_OK | constants.W_OK)
  } catch (error) {
    const { message } = error as Error
    throw new CliError('ERR_DEMO_FAILED', `Firecracker needs KVM: ${message}`)
  }
  return {
    inputs: [INPUT, OTHER_INPUT],
    build: (scene) => build(binary, scene),
    record: (scene, input) =>
      withFirecracker(binary, scene, async (vm) => {
        const socketPath = scene.socketPath()
        const handler = await serve({
          socketPath,
          snapshot: { memoryFile: scene.memoryFile },
          record: true,
        })
        return whileServed(handler, async () => {
          const response = await request(vm, scene, input, ['Uffd', socketPath])
          return { trace: handler.stopRecording(), response }
        })
      }),
    sample: (scene, arm, cache, input) => sample(binary, scene, arm, cache, input),
  }
}

async function withFirecracker<T>(
  binary: string,
  scene: Scene,
  body: (vm: FirecrackerProcess) => Promise<T>,
): Promise<T> {
  const { signal } = scene
  signal.throwIfAborted()
  const vm = await FirecrackerProcess.start(binary, `${scene.socketPath()}.api`)
  const onAbort = () => vm.stop()
  signal.addEventListener('abort', onAbort)
  try {
    return await body(vm)
  } finally {
    signal.removeEventListener('abort', onAbort)
    await vm.kill()
  }
}

function build(binary: string, scene: Scene) {
  return withFirecracker(binary, scene, async (vm) => {
    const mib = scene.memoryBytes / 2 ** 20
    await vm.call('PUT', '/machine-config', { vcpu_count: 1, mem_size_mib: mib })
    const kernel = programPath('reap-microvm')
    await vm.call('PUT', '/boot-source', { kernel_image_path: kernel, boot_args: 'console=ttyS0' })
    await vm.call('PUT', '/actions', { action_type: 'InstanceStart' })
    await vm.line('ready')
    await answers(vm, OTHER_INPUT, true)
    await vm.call('PATCH', '/vm', { state: 'Paused' })
    await vm.call('PUT', '/snapshot/create', {
      snapshot_path: vmstateOf(scene),
      mem_file_path: scene.memoryFile,
    })
    const vmm = `Firecracker ${vm.version}`
    return { vmm, says: `a guest of ${vmm} with ${formatBytes(scene.memoryBytes)} of memory` }
  })
}

const vmstateOf = ({ memoryFile }: Scene): string => memoryFile.replace(/mem$/, 'vmstate')

/** The answers to these requests, one character each. */
async function answers(vm: FirecrackerProcess, input: string, send: boolean): Promise<string> {
  if (send) vm.send(input)
  const lines: string[] = []
  for (const one of input) lines.push(`${one} ${await vm.line(`${one} `)}`)
  return lines.join(', ')
}

/** Restores through this backend, with the request waiting on the console. */
async function request(
  vm: FirecrackerProcess,
  scene: Scene,
  input: string,
  [backend_type, backend_path]: ['File' | 'Uffd', string],
): Promise<string> {
  vm.send(input)
  await vm.call('PUT', '/snapshot/load', {
    snapshot_path: vmstateOf(scene),
    mem_backend: { backend_type, backend_path },
    resume_vm: true,
  })
  return answers(vm, input, false)
}

function sample(
  binary: string,
  scene: Scene,
  arm: Arm,
  cache: Cache,
  input: string,
): Promise<Sample> {
  const { memoryFile, workingSet, signal } = scene
  return withFirecracker(binary, scene, async (vm) => {
    await withGuest(signal, (helper) => setCache(helper, cache, [memoryFile, workingSet]))
    if (arm === 'kernel-file') {
      const before = await vm.kernelFaults()
      const start = performance.now()
      const response = await request(vm, scene, input, ['File', memoryFile])
      const responseMs = performance.now() - start
      const faults = (await vm.kernelFaults()) - before
      return { ...noFaults, responseMs, faults, response, digest: '' }
    }
    const socketPath = scene.socketPath()
    const start = performance.now()
    const handler = await serve({
      socketPath,
      snapshot: { memoryFile },
      ...(arm === 'working-set' ? prefetching(workingSet) : { record: false }),
    })
    return whileServed(handler, async () => {
      const response = await request(vm, scene, input, ['Uffd', socketPath])
      const responseMs = performance.now() - start
      const { faults, lateFaults, residualFaults } = handler.stats()
      await handler.prefetched
      return { responseMs, faults, lateFaults, residualFaults, response, digest: '' }
    })
  })
}
