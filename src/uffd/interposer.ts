import { statSync } from 'node:fs'
import { resolve } from 'node:path'
import { nativePath } from '../binding/native-path.js'
import { ReapTraceError } from '../errors.js'
import { checkOptions, type OptionRule, oneOf, required, rules } from '../options.js'
import { checkShape, readError } from '../snapshot/memory-file.js'
import { checkSnapshot, type Snapshot, snapshotRule } from '../snapshot/snapshot.js'

export interface InterposerOptions {
  /** The snapshot whose memory file the VMM maps as guest memory, the same as for `serve()`. */
  readonly snapshot: Snapshot
  /** Where `serve()` listens. */
  readonly socketPath: string
  /**
   * What the VMM does when it cannot be served: nobody listens, it gets no userfaultfd, or the file is one
   * that cannot be served.
   * - `'file'`: writes the reason to stderr, and goes on with a plain mapping of the file,
   * - `'stop'`: writes the reason to stderr, and ends with status 69.
   * @default 'stop'
   */
  readonly onUnreachable?: 'file' | 'stop' | undefined
  /**
   * The environment to add to, of which `LD_PRELOAD` is kept.
   * @default process.env
   */
  readonly env?: Readonly<Record<string, string | undefined>> | undefined
}

const interposerRules: Record<keyof InterposerOptions, OptionRule> = {
  snapshot: snapshotRule,
  socketPath: required({
    expected: 'a non-empty path of at most 107 bytes',
    accepts: (value) => rules.path.accepts(value) && Buffer.byteLength(resolve(`${value}`)) <= 107,
  }),
  onUnreachable: oneOf('file', 'stop'),
  env: {
    expected: 'an object of strings',
    accepts: (value) => typeof value === 'object' && value !== null,
  },
}

/**
 * The environment in which a VMM that maps its memory file gives that memory to a handler of
 * `serve()`: any dynamically linked VMM, with no word about reap-trace in it.
 *
 * A library that is loaded into the VMM waits for the private, writable mapping of the memory file.
 * It makes it memory that is registered with a userfaultfd, and announces that as Firecracker does.
 * Children of the process inherit the environment, so a script that starts the VMM can have it too.
 *
 * @returns The variables to add to an environment, `LD_PRELOAD` among them.
 * @throws TypeError for options that make no sense.
 * @throws ReapTraceError
 * - `ERR_SOURCE_READ`: the memory file cannot be found, or is no memory file,
 * - `ERR_NATIVE_UNAVAILABLE`: there is no library for this machine, or it is in a folder that
 *   `LD_PRELOAD` cannot name.
 *
 * @example
 * const handler = await serve({ snapshot, socketPath })
 * const added = interposerEnvironment({ snapshot, socketPath })
 * const vmm = spawn('qemu-system-x86_64', words, { env: { ...process.env, ...added } })
 */
export function interposerEnvironment(options: InterposerOptions): Record<string, string> {
  checkOptions('interposerEnvironment()', options, interposerRules)
  checkSnapshot('interposerEnvironment()', options.snapshot)
  const { onUnreachable = 'stop', env = process.env } = options
  const memoryFile = resolve(options.snapshot.memoryFile)
  try {
    checkShape(memoryFile, statSync(memoryFile, { bigint: true }))
  } catch (error) {
    throw readError(memoryFile, error)
  }
  return {
    LD_PRELOAD: [libraryPath(), env.LD_PRELOAD].filter(Boolean).join(':'),
    REAP_TRACE_MEMORY: memoryFile,
    REAP_TRACE_SOCKET: resolve(options.socketPath),
    REAP_TRACE_WHEN_UNREACHABLE: onUnreachable,
  }
}

function libraryPath(): string {
  const path = nativePath('reap-interposer.so')
  if (!/[\s:]/.test(path)) return path
  throw new ReapTraceError(
    'ERR_NATIVE_UNAVAILABLE',
    `LD_PRELOAD cannot name ${path}, which has a space or a colon in it`,
    { path, hint: 'Install reap-trace in a folder without them.' },
  )
}
