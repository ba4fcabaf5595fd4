import { accessSync, constants } from 'node:fs'
import { type MemBackend, programPath } from '../../index.js'
import { CliError } from '../terminal/failure.js'
import { formatBytes } from '../terminal/units.js'
import { measure, record, type Scene, type Subject, setCacheOrFail, withGuest } from './arms.js'
import { FirecrackerProcess } from './firecracker-process.js'

/** A request that walks 30 MiB, and one that also touches 128 other pages. */
const INPUT = 'm'
const OTHER_INPUT = 'mo'

/** A guest in Firecracker, without a kernel, that checks the pages that each request touches. */
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
      withFirecracker(binary, scene, (vm) =>
        record(scene, (backend) => request(vm, scene, input, backend)),
      ),
    sample: (scene, arm, cache, input) =>
      withFirecracker(binary, scene, async (vm) => {
        const { memoryFile, workingSet, signal } = scene
        await withGuest(signal, (helper) => setCacheOrFail(helper, cache, [memoryFile, workingSet]))
        return measure(scene, arm, vm.pid, (backend) => request(vm, scene, input, backend))
      }),
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
    return {
      vmm,
      description: `a guest of ${vmm} with ${formatBytes(scene.memoryBytes)} of memory`,
    }
  })
}

const vmstateOf = ({ memoryFile }: Scene): string => memoryFile.replace(/mem$/, 'vmstate')

/** Answers to these requests of one character each. */
async function answers(vm: FirecrackerProcess, input: string, send: boolean): Promise<string> {
  if (send) vm.send(input)
  const lines: string[] = []
  for (const key of input) lines.push(`${key} ${await vm.line(`${key} `)}`)
  return lines.join(', ')
}

/** Restores with this backend; the requests are already on the console. */
async function request(
  vm: FirecrackerProcess,
  scene: Scene,
  input: string,
  mem_backend: MemBackend,
): Promise<string> {
  vm.send(input)
  await vm.call('PUT', '/snapshot/load', {
    snapshot_path: vmstateOf(scene),
    mem_backend,
    resume_vm: true,
  })
  return answers(vm, input, false)
}
