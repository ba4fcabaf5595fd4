// @ts-check
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { availableParallelism } from 'node:os'
import { join } from 'node:path'
import { root } from './machine.mjs'

const program = join(root, 'build/Release/reap-bench')

/**
 * Starts one endless loop per core, which ends with this process. Resolves to a function that ends
 * them earlier.
 */
export async function keepCoresBusy() {
  const loops = Array.from({ length: availableParallelism() }, () =>
    spawn(program, ['spin'], { stdio: ['ignore', 'pipe', 'inherit'] }),
  )
  const ended = loops.map((loop) => new Promise((resolve) => loop.once('close', resolve)))
  const stop = async () => {
    for (const loop of loops) loop.kill('SIGKILL')
    await Promise.all(ended)
  }
  try {
    // A loop that has not started by then never will.
    await Promise.all(loops.map((loop) => once(loop.stdout, 'data')))
    return stop
  } catch (error) {
    await stop()
    throw error
  }
}
