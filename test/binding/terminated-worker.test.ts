import { execFile } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { expect, test } from 'vitest'
import { makeMemory, write } from '../support/working-sets.js'

const fixture = fileURLToPath(new URL('../support/fixtures/worker-opens.mjs', import.meta.url))

test.each(['plan', 'recording', 'prefetch', 'handler'])(
  'a worker thread that is terminated leaves no file open and no thread: %s',
  async (way) => {
    const memoryFile = makeMemory(256)
    const path = await write(memoryFile, [1, 5, 9])
    const { stdout } = await promisify(execFile)(process.execPath, [fixture, way, memoryFile, path])
    const { before, after } = JSON.parse(stdout)
    expect(after.files).toBe(before.files)
    // Threads that opened files end when they have been idle.
    expect(after.threads).toBeLessThanOrEqual(before.threads)
  },
)
