import { performance } from 'node:perf_hooks'
import { GuestProcess } from '../demo/guest-process.js'
import { type Cache, setCache } from '../measure/page-cache.js'
import { randomNumbers, shuffle } from '../measure/random.mjs'
import { formatMs } from '../terminal/units.js'
import type { Arm } from './arms.js'
import { RunFailure, runOnce, type Sample, type Scene } from './run.js'

/** A measured restore, or one that is no sample of its arm and state. */
export interface Run {
  readonly arm: Arm
  readonly cache: Cache
  /** Number of its round, from 1. */
  readonly round: number
  readonly sample: Sample | undefined
  /** Why it is not counted. */
  readonly leftOut: string | undefined
}

/** Progress and failures of a comparison. */
export interface Listener {
  onStep(text: string): void
  /** The arm is left out of the comparison if this was its trial. */
  onFailure(arm: Arm, failure: RunFailure, isTrial: boolean): void
  /** No run can have this state of the page cache. */
  onStuck(cache: Cache, files: readonly string[]): void
}

/** Restores once by each arm, unmeasured, and returns the arms that work. Proofs remain. */
export async function tryArms(
  scene: Scene,
  arms: readonly Arm[],
  { onStep, onFailure }: Listener,
): Promise<readonly Arm[]> {
  const working: Arm[] = []
  for (const arm of arms) {
    onStep(`trial of ${arm}`)
    try {
      await runOnce(scene, arm, true)
      working.push(arm)
    } catch (error) {
      if (!(error instanceof RunFailure)) throw error
      onFailure(arm, error, true)
    }
  }
  return working
}

/**
 * Measures every arm once per round, in an order drawn from the seed. `runs` gets each run at its
 * end, so that those before an exception are known.
 */
export async function measureRounds(
  scene: Scene,
  arms: readonly Arm[],
  runs: Run[],
  listener: Listener,
): Promise<void> {
  const { args, signal } = scene
  const { rounds, caches } = args
  const random = randomNumbers(args.seed)
  const files = [args.memory, args.workingSet, ...args.disks]
  const total = caches.length * rounds * arms.length
  let skipped = 0
  const startedMs = performance.now()
  const guest = await GuestProcess.start()
  try {
    // Warm first: memory freed by an eviction is slow to allocate again for a while.
    for (const cache of ['warm', 'cold'] as const) {
      if (!caches.includes(cache)) continue
      // Before warm rounds too: a file that is read in one go from an empty cache gets large folios.
      const stuck = await setCache(guest, 'cold', files)
      if (cache === 'cold' && stuck.length > 0) {
        listener.onStuck(cache, stuck)
        skipped += rounds * arms.length
        continue
      }
      for (let round = 1; round <= rounds; round++) {
        const order = [...arms]
        shuffle(order, random)
        for (const arm of order) {
          signal.throwIfAborted()
          const eachMs = (performance.now() - startedMs) / runs.length
          const left =
            runs.length > 0 ? ` · ${formatMs(eachMs * (total - skipped - runs.length))} left` : ''
          listener.onStep(`${cache} page cache · round ${round} of ${rounds} · ${arm}${left}`)
          runs.push(await oneRun(scene, guest, { arm, cache, round }, files, listener))
        }
      }
    }
  } finally {
    await guest.kill()
  }
}

async function oneRun(
  scene: Scene,
  guest: GuestProcess,
  where: Pick<Run, 'arm' | 'cache' | 'round'>,
  files: readonly string[],
  { onFailure }: Listener,
): Promise<Run> {
  const others = await setCache(guest, where.cache, files)
  try {
    const sample = await runOnce(scene, where.arm)
    const leftOut = others.length > 0 ? `not ${where.cache}: ${others.join(', ')}` : undefined
    return { ...where, sample, leftOut }
  } catch (error) {
    if (!(error instanceof RunFailure)) throw error
    onFailure(where.arm, error, false)
    return { ...where, sample: undefined, leftOut: `failed: ${error.message}` }
  }
}
