// One restore of a Linux guest with each of six arms. All times are milliseconds of
// performance.now() in this process, from the restore request.
import { readFileSync } from 'node:fs'
import { performance } from 'node:perf_hooks'
import {
  interposerEnvironment,
  planRestore,
  prefetchPageCache,
  recordPageCache,
  restore as restorePlanned,
  serve,
} from '../../dist/index.js'
import { ReapHandler } from '../lib/reap-handler.mjs'
import { Warnings } from '../lib/warnings.mjs'

export const arms = ['kernel-file', 'on-demand', 'reap', 'working-set', 'page-cache', 'auto']
export const caches = ['cold', 'half-warm', 'warm']

/**
 * Files of a function's snapshot and recording, whose residency in the page cache is part of a
 * sample.
 */
export const filesOf = ({ guest, record }) => [
  guest.memoryFile,
  guest.stateFile,
  ...guest.diskImages,
  record.workingSet,
  record.reapPages,
]

// Page faults of a process, counted by the kernel: fields minflt and majflt of its stat, which
// follow the name in parentheses.
function kernelFaults(pid) {
  const stat = readFileSync(`/proc/${pid}/stat`, 'utf8')
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
  return Number(fields[7]) + Number(fields[9])
}

/** Restores, invokes once with `input`, and returns the measured times. */
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

const snapshotOf = ({ memoryFile, diskImages }) => ({ memoryFile, diskImages })

/** Socket and environment for the VMM of `run`. */
const backend = ({ guest, socketPath }) => ({ socketPath, snapshot: snapshotOf(guest) })
const vmmEnvironment = (run) => interposerEnvironment(backend(run))

/**
 * Completion of a prefetch that runs beside a VM; its failure is reported only to an awaiting
 * caller.
 */
function watchPrefetch(prefetched, startedAt) {
  const watched = { prefetchedMs: undefined }
  prefetched.then(
    () => (watched.prefetchedMs = performance.now() - startedAt),
    () => {},
  )
  return watched
}

/** Restores without a handler, beside a prefetch into the page cache. */
async function mapped(run, startedAt, prefetched, warnings) {
  const watched = prefetched && watchPrefetch(prefetched, startedAt)
  const done = await invokeRestored(run, {}, startedAt)
  await done.vm.stop()
  if (!prefetched) return sampleOf(done, {})
  const result = await prefetched
  warnings.expectComplete(result)
  const { pageCount, completedMs } = result
  return sampleOf(done, { prefetched: pageCount, phases: { fetchMs: completedMs, ...watched } })
}

/** Restores with a reap-trace handler, and takes its trace if it records. */
async function served(run, startedAt, handler, { records = false, brings = false }) {
  const watched = watchPrefetch(handler.prefetched, startedAt)
  const done = await Promise.race([
    invokeRestored(run, vmmEnvironment(run), startedAt),
    handler.closed.then(() => new Promise(() => {})),
  ])
  const trace = records ? handler.stopRecording() : undefined
  const { faults, lateFaults, residualFaults } = handler.stats()
  const { fetchMs, installMs, pageCount } = await handler.prefetched
  await done.vm.stop()
  const phases = brings ? { fetchMs, installMs, ...watched } : {}
  const counts = { faults, lateFaults, residualFaults, prefetched: brings ? pageCount : 0 }
  return { ...sampleOf(done, { ...counts, phases }), trace }
}

const kernelFile = (run) => mapped(run, performance.now())

async function throughOurs(run, options) {
  const startedAt = performance.now()
  const handler = await serve({ ...backend(run), ...options, onBadWorkingSet: 'fail' })
  try {
    const kind = { records: options.record, brings: options.workingSet !== undefined }
    return await served(run, startedAt, handler, kind)
  } finally {
    await handler.close()
  }
}

async function pageCache(run) {
  const startedAt = performance.now()
  const ending = new AbortController()
  const warnings = new Warnings()
  const prefetched = prefetchPageCache({
    snapshot: snapshotOf(run.guest),
    workingSet: run.record.workingSet,
    signal: ending.signal,
    onEvent: warnings.onEvent,
  })
  try {
    return await mapped(run, startedAt, prefetched, warnings)
  } finally {
    ending.abort()
    await prefetched.catch(() => {})
  }
}

async function auto(run) {
  const startedAt = performance.now()
  const { socketPath, snapshot } = backend(run)
  const warnings = new Warnings()
  const plan = await planRestore({
    snapshot,
    workingSet: run.record.workingSet,
    vcpus: 'threads',
    onBadWorkingSet: 'fail',
  })
  const restored = await restorePlanned(plan, { socketPath, onEvent: warnings.onEvent })
  const prepareMs = performance.now() - startedAt
  const { handler, prefetched, disksPrefetched } = restored
  const { backend: choice, reason, residency } = plan
  try {
    const sample = handler
      ? await served(run, startedAt, handler, { brings: true })
      : await mapped(run, startedAt, prefetched, warnings)
    const disks = await disksPrefetched
    if (disks) warnings.expectComplete(disks)
    return { ...sample, prepareMs, choice, reason, residency, disksMs: disks?.completedMs }
  } finally {
    await restored.close()
  }
}

async function reap(run) {
  // Its orchestrator runs already: the clock starts with the handler, not with its process.
  const handler = await ReapHandler.start({
    socketPath: run.socketPath,
    memoryFile: run.guest.memoryFile,
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

/**
 * Restores a function on demand and records its memory, page by page; then, for one whose root is a
 * disk, without a handler, and records the pages that enter the page cache: `{ trace, disks, right
 * }`.
 */
export async function record(run) {
  const { trace, right } = await throughOurs(run, { record: true })
  const snapshot = snapshotOf(run.guest)
  if (snapshot.diskImages.length === 0) return { trace, disks: [], right }
  const recording = await recordPageCache({ snapshot })
  try {
    const { vm, right: again } = await invokeRestored(run, {}, performance.now())
    const { disks } = await recording.stop().finally(() => vm.stop())
    return { trace, disks, right: right && again }
  } finally {
    await recording.stop()
  }
}

const restores = {
  'kernel-file': kernelFile,
  'on-demand': (run) => throughOurs(run, { record: false }),
  reap,
  'working-set': (run) => throughOurs(run, { workingSet: run.record.workingSet }),
  'page-cache': pageCache,
  auto,
}

/** `run` is `{ guest, record, input, cache, socketPath, signal }`. */
export const restore = (arm, run) => restores[arm](run)

/**
 * Time of a warm call, in a VM that has answered it before: the median of a few, in milliseconds.
 */
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
