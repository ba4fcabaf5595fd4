// One restore of a Linux guest, in four ways. All times are milliseconds of one clock,
// performance.now() of this process, from the restore request.
import { readFileSync } from 'node:fs'
import { performance } from 'node:perf_hooks'
import { interposerEnvironment, serve } from '../../dist/index.js'
import { ReapHandler } from '../lib/reap-handler.mjs'

export const arms = ['kernel-file', 'on-demand', 'reap', 'working-set']
export const caches = ['cold', 'warm']

/** Files of a function's snapshot and of its record, whose place in the page cache is part of a sample. */
export const filesOf = ({ guest, record }) => [
  guest.memoryFile,
  guest.stateFile,
  ...guest.diskImages,
  record.workingSet,
  record.reapPages,
]

// Page faults that the kernel has counted for a process: fields minflt and majflt of its stat, which
// follow the name in parentheses.
function kernelFaults(pid) {
  const stat = readFileSync(`/proc/${pid}/stat`, 'utf8')
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
  return Number(fields[7]) + Number(fields[9])
}

/** Restores, invokes once with `input`, and says what that cost. */
async function invokeRestored({ guest, input, signal }, env, startedAt) {
  const vm = await guest.restore({ env, signal })
  try {
    const faultsBefore = kernelFaults(vm.pid)
    await vm.resume()
    const { answer, us } = await vm.invoke(input.request)
    const responseMs = performance.now() - startedAt
    const faults = kernelFaults(vm.pid) - faultsBefore
    const { spawned, qmp, loaded, resumed, answered } = vm.phases
    const phases = {
      startMs: qmp - spawned,
      loadMs: loaded - qmp,
      resumeMs: resumed - loaded,
      invokeMs: answered - resumed,
    }
    return {
      vm,
      right: isSame(answer, input.answer),
      responseMs,
      functionMs: us / 1000,
      phases,
      faults,
    }
  } catch (error) {
    await vm.stop()
    throw error
  }
}

const isSame = (a, b) => JSON.stringify(a) === JSON.stringify(b)

const sampleOf = ({ vm: _, phases, ...rest }, more) => ({
  ...rest,
  lateFaults: 0,
  residualFaults: 0,
  ...more,
  phases: { ...phases, ...more.phases },
})

async function kernelFile(run) {
  const done = await invokeRestored(run, {}, performance.now())
  await done.vm.stop()
  return sampleOf(done, {})
}

/** What a VMM of `run` connects to, and with which environment. */
const backend = ({ guest, socketPath }) => ({
  socketPath,
  memoryFile: guest.memoryFile,
})
const vmmEnvironment = (run) => interposerEnvironment({ ...backend(run), whenUnreachable: 'stop' })

async function throughOurs(run, options) {
  const startedAt = performance.now()
  let prefetchedAt
  const handler = await serve({
    ...backend(run),
    ...options,
    onBadWorkingSet: 'fail',
    onEvent: ({ type }) => {
      if (type === 'prefetched') prefetchedAt = performance.now()
    },
  })
  try {
    const done = await Promise.race([
      invokeRestored(run, vmmEnvironment(run), startedAt),
      handler.closed.then(() => new Promise(() => {})),
    ])
    const trace = options.record ? handler.takeTrace() : undefined
    const { faults, lateFaults, residualFaults } = handler.stats()
    const { fetchMs, installMs, pages } = await handler.prefetched
    await done.vm.stop()
    const brought = options.workingSet
      ? { fetchMs, installMs, prefetchedMs: prefetchedAt - startedAt }
      : {}
    const counts = {
      faults,
      lateFaults,
      residualFaults,
      prefetched: options.workingSet ? pages : 0,
    }
    return { ...sampleOf(done, { ...counts, phases: brought }), trace }
  } finally {
    await handler.close().catch(() => {})
  }
}

async function reap(run) {
  // Its orchestrator is there already: the clock starts when the handler does, not its process.
  const handler = await ReapHandler.start({
    ...backend(run),
    pageList: run.record.pageList,
    pages: run.record.reapPages,
    fetch: run.cache === 'warm' ? 'cached' : 'direct',
    signal: run.signal,
  })
  try {
    const startedAt = handler.listeningAt
    await handler.fetched
    const done = await invokeRestored(run, vmmEnvironment(run), startedAt)
    await done.vm.stop()
    const { fetchedAt, installMs, installedAt, faults } = await handler.end()
    const phases = {
      fetchMs: fetchedAt - startedAt,
      installMs,
      prefetchedMs: installedAt - startedAt,
    }
    return sampleOf(done, { faults, residualFaults: faults, phases })
  } finally {
    await handler.stop()
  }
}

/** Restores a function on demand and records it: `{ trace, ...sample }`. */
export const record = (run) => throughOurs(run, { record: true })

const restores = {
  'kernel-file': kernelFile,
  'on-demand': (run) => throughOurs(run, { record: false }),
  reap,
  'working-set': (run) => throughOurs(run, { workingSet: run.record.workingSet }),
}

/** `run` is `{ guest, record, input, cache, socketPath, signal }`. */
export const restore = (arm, run) => restores[arm](run)

/** What a call costs in a VM that has answered it before: the median of a few, in milliseconds. */
export async function warmCalls({ guest, input, signal }, calls = 5) {
  const vm = await guest.restore({ signal })
  try {
    await vm.resume()
    await vm.invoke(input.request)
    const times = []
    for (let i = 0; i < calls; i++) times.push((await vm.invoke(input.request)).ms)
    return times
  } finally {
    await vm.stop()
  }
}
