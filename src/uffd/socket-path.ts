import { resolve } from 'node:path'
import { rules } from '../options.js'

/**
 * Path of a socket for a process that starts in this process's folder: absolute, or as given if the
 * absolute one is too long for a socket address.
 */
export function pathForVmm(socketPath: string): string {
  const absolute = resolve(socketPath)
  return rules.socketPath.accepts(absolute) ? absolute : socketPath
}
