import { execFileSync, spawn } from 'node:child_process'
import { mkdirSync } from 'node:fs'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'
import { onTestFinished } from 'vitest'
import { type Scene, scene, scratchFolder } from './scratch.js'

const source = fileURLToPath(new URL('fixtures/hanging-folder.c', import.meta.url))

export type HeldCall = 'lookup' | 'open' | 'read' | 'flush'

/** A folder on FUSE whose files hang on command. */
export interface HangingFolder {
  /** What the machine lacks, or empty. */
  readonly missing: string
  /** Paths of files with the bytes of the memory file. */
  file(number: number): string
  /** Leaves such calls unanswered from now on. */
  hold(call: HeldCall): Promise<void>
  release(): Promise<void>
  /** Lets a millisecond bring so many KiB from now on. */
  slow(kib: number): Promise<void>
  /** Waits until this many calls are unanswered. */
  untilHeld(count: number): Promise<void>
}

export async function hangingFolder(memoryFile: string): Promise<HangingFolder> {
  const folder = await scratchFolder()
  const [binary, mount] = [join(folder, 'server'), join(folder, 'mount')]
  mkdirSync(mount)
  execFileSync('cc', ['-O1', '-o', binary, source])
  const server = spawn(binary, [mount, memoryFile], { stdio: ['pipe', 'pipe', 'inherit'] })
  const lines = createInterface({ input: server.stdout })[Symbol.asyncIterator]()
  const next = async () => (await lines.next()).value as string
  const ask = (command: string) => {
    server.stdin.write(`${command}\n`)
    return next()
  }
  const mounted = await next()
  const ended = new Promise((resolve) => server.once('close', resolve))
  onTestFinished(async () => {
    if (mounted === 'mounted') await ask('release')
    server.stdin.end()
    await ended
  })
  return {
    missing: mounted === 'mounted' ? '' : mounted,
    file: (number) => join(mount, `f${number}`),
    hold: async (call) => void (await ask(`hold ${call}`)),
    release: async () => void (await ask('release')),
    slow: async (kib) => void (await ask(`slow ${kib}`)),
    untilHeld: async (count) => {
      while (Number(await ask('held')) < count)
        await new Promise((resolve) => setTimeout(resolve, 5))
    },
  }
}

/** A scene of 256 pages whose memory file is also in a hanging folder. */
export async function hangingScene(skip: (why: string) => void): Promise<[Scene, HangingFolder]> {
  const s = await scene({ pages: 256, holes: false })
  const folder = await hangingFolder(s.memoryFile)
  if (folder.missing) skip(folder.missing)
  return [s, folder]
}
