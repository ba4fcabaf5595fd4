// @ts-check
// The available functions, and the host's facts about each: inputs, answers, files.
import { execFile } from 'node:child_process'
import { readdirSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'

export const guestFolder = fileURLToPath(new URL('guest', import.meta.url))

const runtimes = {
  '.py': {
    agent: 'agent.py',
    // Only with its standard library: no site packages, no environment, no .pyc written.
    flags: ['-I', '-S', '-B'],
    memoryBytes: 256 * 2 ** 20,
    command: (/** @type {import('./packages.mjs').Parts} */ parts) => parts.python,
  },
  '.mjs': {
    agent: 'agent.mjs',
    flags: [],
    memoryBytes: 512 * 2 ** 20,
    command: () => process.execPath,
  },
}

/** @typedef {(typeof runtimes)['.py' | '.mjs']} Runtime */
/** @typedef {{ name: string, file: string, runtime: Runtime, onDisk: boolean }} GuestFunction */
/** @typedef {{ name: string, request: any, answer: any }} Input */

/**
 * By name; the name tells where a guest has its root: `disk_…` on a disk, others in memory.
 * @type {ReadonlyMap<string, GuestFunction>}
 */
export const guestFunctions = new Map(
  readdirSync(join(guestFolder, 'functions'))
    .sort()
    .flatMap((file) => {
      const [, name, extension] = /^(\w+)(\.py|\.mjs)$/.exec(file) ?? []
      if (!name) return []
      const runtime = runtimes[/** @type {keyof typeof runtimes} */ (extension)]
      const onDisk = name.startsWith('disk_')
      return [[name, { name, file: `functions/${file}`, runtime, onDisk }]]
    }),
)

/**
 * Runs the function on the host, with the runtime that the guest gets. So the answers do not come
 * from a guest, and the files are the ones that it takes to answer both inputs.
 * @param {GuestFunction} guestFunction
 * @param {import('./packages.mjs').Parts} parts
 * @param {{ dataFolder?: string | undefined, signal?: AbortSignal | undefined }} [options]  the function makes its data in `dataFolder`
 * @returns {Promise<{ inputs: Input[], files: string[], executable: string }>}
 */
export async function askReference({ name, runtime }, parts, { dataFolder, signal } = {}) {
  const { LD_PRELOAD, NODE_OPTIONS, ...env } = process.env
  const reference = ['--reference', ...(dataFolder ? [dataFolder] : [])]
  const args = [...runtime.flags, join(guestFolder, runtime.agent), name, ...reference]
  const options = { signal, env, maxBuffer: 64 * 2 ** 20, timeout: 60_000 }
  const { stdout } = await promisify(execFile)(runtime.command(parts), args, options)
  return JSON.parse(stdout)
}
