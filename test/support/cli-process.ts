import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync } from 'node:fs'
import { chmod, readdir, stat, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'
import { expect, onTestFinished } from 'vitest'
import type { Scene } from './scratch.js'

const root = fileURLToPath(new URL('../..', import.meta.url))
export const cli = join(root, 'dist/cli.js')
export const guest = join(root, 'build/Release/reap-guest')

/** Time of the newest change below a folder. */
async function lastChange(folder: string): Promise<number> {
  const entries = await readdir(folder, { recursive: true })
  const times = await Promise.all(
    entries.map(async (name) => (await stat(join(folder, name))).mtimeMs),
  )
  return Math.max(...times)
}

/** Fails unless dist/ is newer than src/: these tests run the built program. */
export async function checkBuild(): Promise<void> {
  const isBuilt =
    existsSync(cli) && (await stat(cli)).mtimeMs > (await lastChange(join(root, 'src')))
  if (!isBuilt) throw new Error('dist/cli.js is older than src/: npm run build:ts comes first')
}

export interface Ended {
  readonly code: number | null
  readonly signal: NodeJS.Signals | null
  readonly stdout: string
  readonly stderr: string
}

/** The command-line program in a child process. */
export class Cli {
  readonly ended: Promise<Ended>
  /** As `ended`, without waiting for other processes that hold its output open. */
  readonly exited: Promise<Pick<Ended, 'code' | 'signal'>>
  /** Output so far. */
  stderr = ''
  stdout = ''
  readonly #child: ChildProcess
  readonly #lines: string[] = []
  #wake: () => void = () => {}

  constructor(words: readonly string[], options: { cwd?: string; env?: NodeJS.ProcessEnv } = {}) {
    const child = spawn(process.execPath, [cli, ...words], {
      stdio: ['ignore', 'pipe', 'pipe'],
      ...options,
      // Independent of the environment of the test run.
      env: { ...process.env, FORCE_COLOR: undefined, LC_ALL: 'C.UTF-8', ...options.env },
    })
    this.#child = child
    child.stdout?.setEncoding('utf8').on('data', (text: string) => {
      this.stdout += text
    })
    child.stderr?.setEncoding('utf8').on('data', (text: string) => {
      this.stderr += text
    })
    createInterface({ input: child.stdout! }).on('line', (line) => {
      this.#lines.push(line)
      this.#wake()
    })
    this.exited = once(child, 'exit').then(([code, signal]) => ({ code, signal }))
    this.ended = once(child, 'close').then(([code, signal]) => {
      this.#wake()
      return { code, signal, stdout: this.stdout, stderr: this.stderr }
    })
    onTestFinished(async () => {
      child.kill('SIGKILL')
      await this.ended
    })
  }

  /** Waits for the JSON event of this type. */
  async event<T = Record<string, unknown>>(type: string): Promise<T> {
    for (;;) {
      for (const line of this.#lines) {
        const { time: _, formatVersion: __, ...event } = JSON.parse(line)
        if (event.type === type) return event
      }
      if (this.#child.exitCode !== null || this.#child.signalCode !== null) {
        throw new Error(`no event ${type}: ${JSON.stringify(await this.ended)}`)
      }
      await new Promise<void>((resolve) => {
        this.#wake = resolve
      })
    }
  }

  kill(signal: NodeJS.Signals): void {
    this.#child.kill(signal)
  }

  closeStdout(): void {
    this.#child.stdout?.destroy()
  }
}

export const run = (
  words: readonly string[],
  options?: { cwd?: string; env?: NodeJS.ProcessEnv },
) => new Cli(words, options).ended

/** The objects that were printed as JSON, without the members that they all have. */
export const events = (stdout: string) =>
  stdout
    .trim()
    .split('\n')
    .map((line) => {
      const { time, atMs, formatVersion, ...event } = JSON.parse(line)
      expect({ time, atMs, formatVersion }).toEqual({
        time: expect.stringMatching(/^\d{4}-\d\d-\d\dT[\d:]{8}\.\d{3}Z$/),
        atMs: expect.any(Number),
        formatVersion: 1,
      })
      return event
    })

/** The error of a failed command, which prints exactly one. */
export const errorIn = (stdout: string): { readonly code?: string } => {
  const errors = events(stdout).filter(({ type }) => type === 'error')
  expect(errors).toHaveLength(1)
  return errors[0].error
}

/** Options that `record` and `restore` share. */
export const serveWords = ({
  memoryFile,
  socketPath,
}: Pick<Scene, 'memoryFile' | 'socketPath'>) => [
  '--memory',
  memoryFile,
  '--socket',
  socketPath,
  '--json',
]

/** Each command that serves, with its option for a working set. */
export const servingCommands = [
  ['record', '--output'],
  ['restore', '--working-set'],
] as const

/** Shell words that run a VMM, which hands over its memory and then obeys what `more` prints. */
export const shellVmm = (pages: number, more: string) =>
  `(printf 'map 4096 ${pages * 4096}\\nhandshake %s\\n' "$REAP_TRACE_SOCKET"; ${more}) | ${guest} vmm`

/** An executable file with these lines of shell. */
export async function shellScript(folder: string, ...lines: string[]): Promise<string> {
  const path = join(folder, 'invoke-once.sh')
  await writeFile(path, ['#!/bin/sh', ...lines].join('\n'))
  await chmod(path, 0o755)
  return path
}

/** A script for after `--` that restores the fake VMM and touches these pages. */
export const script = ({ folder, pages }: Scene, touched: string, status = 0): Promise<string> =>
  shellScript(folder, shellVmm(pages, `echo read ${touched}`), `exit ${status}`)

/** Records these pages into `vm.ws` of the scene's folder. */
export async function recorded(of: Scene, touched = '7 3 4 5 100'): Promise<string> {
  const output = join(of.folder, 'vm.ws')
  const command = await script(of, touched)
  const { code, stderr } = await run([
    'record',
    ...serveWords(of),
    '--output',
    output,
    '--',
    command,
  ])
  expect(code, stderr).toBe(0)
  return output
}
