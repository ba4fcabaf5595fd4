// @ts-check
import { readdirSync, readFileSync } from 'node:fs'

/**
 * Milliseconds that the threads of a process have run, those of a guest's vCPUs included: the first
 * figure of each one's schedstat, in nanoseconds where the clock ticks of its stat are 10 ms. A thread
 * that has ended does not count.
 *
 * @param {number} pid
 */
export function cpuMsOf(pid) {
  const tasks = `/proc/${pid}/task`
  return readdirSync(tasks).reduce((sum, task) => {
    try {
      return sum + Number.parseInt(readFileSync(`${tasks}/${task}/schedstat`, 'utf8'), 10) / 1e6
    } catch {
      return sum // it has ended since
    }
  }, 0)
}

/** The same of this process, and with the threads that have ended. */
export function ownCpuMs() {
  const { user, system } = process.cpuUsage()
  return (user + system) / 1000
}
