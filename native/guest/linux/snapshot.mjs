// @ts-check
// Boots a guest with one function, waits until it is ready and idle, and saves its memory and
// state.
import { appendFileSync } from 'node:fs'
import { mkdir, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { askReference, guestFolder } from './functions.mjs'
import { buildDisk, buildDiskLoader, buildImage } from './image.mjs'
import { Machine, machineArguments } from './qemu.mjs'

/** By then the kernel's work after the agent's start, such as freeing memory, has ended. */
const idleMs = 1000

const kernelCommandLine = [
  'console=ttyS0 quiet',
  'panic=-1', // QEMU gets -no-reboot, so that a failing guest exits
  'mitigations=off nokaslr audit=0 apparmor=0 ipv6.disable=1',
  'random.trust_cpu=on', // nothing waits for entropy
  'no5lvl no_timer_check tsc=reliable 8250.nr_uarts=1',
].join(' ')

/**
 * Leaves `memory` and `state` in the folder, and `disk` for a function on a disk.
 * @param {import('./functions.mjs').GuestFunction} guestFunction
 * @param {{ parts: import('./packages.mjs').Parts, folder: string, consoleLog: string, accelerator: string, signal?: AbortSignal | undefined }} options
 * @returns {Promise<import('./functions.mjs').Input[]>}
 */
export async function takeSnapshot(guestFunction, options) {
  const { parts, folder, consoleLog, accelerator, signal } = options
  const { runtime, onDisk } = guestFunction
  const initramfs = join(folder, 'initramfs')
  const rootDisk = onDisk ? join(folder, 'disk') : undefined
  const inputs = await makeRoot(guestFunction, { parts, folder, initramfs, rootDisk, signal })
  await writeFile(consoleLog, '')
  const memoryFile = join(folder, 'memory')
  const machine = new Machine({
    qemu: parts.qemu,
    folder,
    signal,
    onConsole: (chunk) => appendFileSync(consoleLog, chunk),
    args: [
      ...machineArguments({
        memoryFile,
        memoryBytes: runtime.memoryBytes,
        shared: true,
        accelerator,
        rootDisk,
      }),
      ...['-kernel', parts.kernel, '-initrd', 'initramfs'],
      ...['-append', kernelCommandLine],
    ],
  })
  try {
    await machine.connect()
    const ready = machine.heard('the agent to be ready', 120_000)
    await Promise.all([ready, machine.execute('cont')])
    await sleep(idleMs, undefined, { signal })
    await machine.execute('stop')
    await machine.migrate('migrate', 'exec:cat > state')
    await machine.quit() // cat(1) has written everything by then
  } finally {
    await machine.stop()
  }
  await rm(initramfs)
  return inputs
}

/**
 * @param {import('./functions.mjs').GuestFunction} guestFunction
 * @param {{ parts: import('./packages.mjs').Parts, folder: string, initramfs: string, rootDisk: string | undefined, signal: AbortSignal | undefined }} options
 */
async function makeRoot(guestFunction, { parts, folder, initramfs, rootDisk, signal }) {
  const { name, file, runtime } = guestFunction
  const dataFolder = join(folder, 'data')
  const stagingFolder = join(folder, 'root')
  for (const path of rootDisk ? [dataFolder, stagingFolder] : []) await mkdir(path)
  const asked = { dataFolder: rootDisk && dataFolder, signal }
  const { inputs, files, executable } = await askReference(guestFunction, parts, asked)
  const userland = {
    parts,
    guestFolder,
    guestFiles: ['init', runtime.agent, file],
    command: [executable, ...runtime.flags, `/${runtime.agent}`, name],
    files,
  }
  if (rootDisk) {
    await buildDisk(userland, { disk: rootDisk, dataFolder, stagingFolder, signal })
    for (const path of [dataFolder, stagingFolder]) await rm(path, { recursive: true })
  }
  const archive = rootDisk ? buildDiskLoader(userland) : buildImage(userland)
  await writeFile(initramfs, archive, { signal })
  return inputs
}
