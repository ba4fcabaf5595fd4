import { statSync } from 'node:fs'
import { resolve } from 'node:path'
import { nativePath } from '../binding/native-path.js'
import { ReapTraceError } from '../errors.js'
import { checkOptions, type OptionRule, oneOf, required, rules } from '../options.js'
import { checkShape, readError } from '../snapshot/memory-file.js'
import { checkSnapshot, type Snapshot, snapshotRule } from '../snapshot/snapshot.js'
import { pathForVmm } from './socket-path.js'

/** Options of {@link interposerEnvironment}. */
export interface InterposerOptions {
  /** The snapshot whose memory file the VMM maps as guest memory, the same as for `serve()`. */
  readonly snapshot: Snapshot
  /**
   * Path of the socket on which `serve()` listens, at most 107 bytes. The VMM gets its absolute path,
   * or, if that is longer, this one, which it must then find from its working directory.
   */
  readonly socketPath: string
  /**
   * What the VMM does if it cannot be served: no handler listens, it cannot create a userfaultfd,
   * or the file cannot be served.
   * - `'file'`: writes the reason to stderr and continues with a plain mapping of the file,
   * - `'stop'`: writes the reason to stderr and exits with status 69.
   * @default 'stop'
   */
  readonly onUnreachable?: 'file' | 'stop' | undefined
  /**
   * Environment of the VMM; an `LD_PRELOAD` in it is kept.
   * @default process.env
   */
  readonly env?: Readonly<Record<string, string | undefined>> | undefined
}

const interposerRules: Record<keyof InterposerOptions, OptionRule> = {
  snapshot: snapshotRule,
  socketPath: required(rules.socketPath),
  onUnreachable: oneOf('file', 'stop'),
  env: {
    expected: 'an object of strings',
    accepts: (value) => typeof value === 'object' && value !== null,
  },
}

/**
 * Environment variables that make an unmodified VMM, which maps its memory file, use a handler of
 * `serve()`. The VMM must be dynamically linked.
 *
 * The variables preload a library that intercepts the private, writable mapping of the memory file.
 * It registers the mapping with a userfaultfd and sends the same handshake as Firecracker. Child
 * processes inherit the environment, so a script may start the VMM.
 *
 * @returns the variables to add to the environment, including `LD_PRELOAD`.
 * @throws TypeError for invalid options.
 * @throws ReapTraceError
 * - `ERR_SOURCE_READ`: the memory file cannot be found, or is not a memory file,
 * - `ERR_NATIVE_UNAVAILABLE`: there is no library for this machine, or `LD_PRELOAD` cannot contain
 *   its path.
 *
 * @example
 * const handler = await serve({ snapshot, socketPath })
 * const added = interposerEnvironment({ snapshot, socketPath })
 * const vmm = spawn('qemu-system-x86_64', args, { env: { ...process.env, ...added } })
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
    REAP_TRACE_SOCKET: pathForVmm(options.socketPath),
    REAP_TRACE_WHEN_UNREACHABLE: onUnreachable,
  }
}

function libraryPath(): string {
  const path = nativePath('reap-interposer.so')
  if (!/[\s:]/.test(path)) return path
  throw new ReapTraceError(
    'ERR_NATIVE_UNAVAILABLE',
    `LD_PRELOAD cannot contain ${path}, which has a space or a colon`,
    { path, hint: 'Install reap-trace in a folder without them.' },
  )
}
