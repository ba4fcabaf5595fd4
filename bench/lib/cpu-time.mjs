// @ts-check
import { readdirSync, readFileSync } from 'node:fs'

/**
 * CPU time of a process's threads in milliseconds, including a guest's vCPUs: the first figure of
 * each thread's schedstat, in nanoseconds (the clock ticks of stat are 10 ms). Threads that have
 * exited do not count.
 *
 * @param {number} pid
 */
export function cpuMsOf(pid) {
  const tasks = `/proc/${pid}/task`
  return readdirSync(tasks).reduce((sum, task) => {
    try {
      return sum + Number.parseInt(readFileSync(`${tasks}/${task}/schedstat`, 'utf8'), 10) / 1e6
    } catch {
      return sum // it has exited since
    }
  }, 0)
}

/** The same for this process, including threads that have exited. */
export function ownCpuMs() {
  const { user, system } = process.cpuUsage()
  return (user + system) / 1000
}
