import { join } from 'node:path'
import { onTestFinished } from 'vitest'
import { MicroVm, microvmMissing, type Request } from '../../native/guest/driver/microvm.mjs'
import type { SnapshotFiles } from '../../native/guest/driver/microvm-snapshot.mjs'
import { type ServeOptions, WorkingSet } from '../../src/index.js'
import { scratchFolder, serveScene } from './scratch.js'

/** Why Firecracker itself cannot run here, printed once; empty if it can. */
export const missing = microvmMissing()
if (missing) console.log(`skipped: needs ${missing}`)

/** A Firecracker that is killed when the test ends. */
export async function microvm(options?: Parameters<typeof MicroVm.start>[0]): Promise<MicroVm> {
  const vm = await MicroVm.start(options)
  onTestFinished(() => vm.kill())
  return vm
}

export type Snapshot = Pick<SnapshotFiles, 'vmstate' | 'memoryFile'>

export const filesIn = (folder: string): Snapshot => ({
  vmstate: join(folder, 'vmstate'),
  memoryFile: join(folder, 'memory'),
})

/** Restores through a handler. The guest finds these requests on its console as soon as it runs. */
export async function restored(
  { vmstate, memoryFile }: Snapshot,
  requests = '',
  options: Partial<ServeOptions> = {},
  load: { readonly trackDirtyPages?: boolean; readonly resume?: boolean } = {},
) {
  const socketPath = join(await scratchFolder(), 'uffd.sock')
  const vm = await microvm()
  const handler = await serveScene({ socketPath, memoryFile }, options)
  for (const request of requests) vm.send(request as Request)
  await vm.load({ vmstate, uffdSocket: socketPath, ...load })
  return { vm, handler }
}

/**
 * Maximum number of pages that the guest touches for the first time after an answer, before it halts.
 * They are residual where a recording ends with the answer.
 */
export const PAGES_AFTER_ANSWER = 4

/** Writes the working set of these requests into a scratch folder. */
export async function recordedSet(snapshot: Snapshot, requests: string): Promise<string> {
  const { vm, handler } = await restored(snapshot, requests)
  for (const request of requests) await vm.answer(request as Request)
  // With another answer, the recording has what the guest touches after one.
  await vm.ask(requests.at(-1) as Request)
  const path = join(await scratchFolder(), 'working-set')
  const set = WorkingSet.fromTraces([handler.stopRecording()])
  await set.write(path, { snapshot: { memoryFile: snapshot.memoryFile } })
  await handler.close()
  await vm.kill()
  return path
}
