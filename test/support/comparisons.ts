import { makeReport } from '../../src/cli/compare/report.js'
import type { Run } from '../../src/cli/compare/rounds.js'
import type { Comparison } from '../../src/index.js'
import { madeRecord } from './restore-records.js'

/** Milliseconds of each arm in a round, without noise. */
const typical = {
  cold: { 'kernel-file': 500, 'on-demand': 740, 'working-set': 60, auto: 62 },
  warm: { 'kernel-file': 80, 'on-demand': 450, 'working-set': 90, auto: 82 },
} as const
type Arm = keyof (typeof typical)['cold']

function runOf(arm: Arm, cache: 'cold' | 'warm', round: number): Run {
  const stats = { ...madeRecord().stats!, residualFaults: 5 + round, stalledMs: 3 + round / 10 }
  const noise = 1 + ((round * 7) % 11) / 40
  const hasHandler = arm === 'on-demand' || arm === 'working-set'
  return {
    ...{ arm, cache, round, leftOut: undefined },
    sample: {
      ms: typical[cache][arm] * noise,
      until: 'ready',
      backend: hasHandler ? 'uffd' : arm === 'auto' ? 'page-cache' : 'kernel-file',
      stats: hasHandler ? stats : undefined,
    },
  }
}

/**
 * A comparison of four arms, with an outlier in the last round of `kernel-file`, a run of
 * `working-set` that is not counted, and one of `on-demand` that failed.
 */
export function madeComparison(
  rounds = 10,
  caches: readonly ('cold' | 'warm')[] = ['cold', 'warm'],
): Comparison {
  const runs = caches.flatMap((cache) =>
    Array.from({ length: rounds }, (_, i) =>
      (Object.keys(typical[cache]) as Arm[]).map((arm) => runOf(arm, cache, i + 1)),
    ).flat(),
  )
  const changed = runs.map((run): Run => {
    const is = (arm: Arm, round: number) => run.arm === arm && run.round === round
    if (rounds < 5) return run
    if (is('kernel-file', rounds)) return { ...run, sample: { ...run.sample!, ms: 9000 } }
    if (is('working-set', 3)) return { ...run, leftOut: `not ${run.cache}: vm.mem` }
    if (is('on-demand', 4)) return { ...run, sample: undefined, leftOut: 'failed: status 3' }
    return run
  })
  return makeReport({
    ...{ complete: true, command: ['./invoke.sh'], memory: '/snapshots/vm.mem' },
    ...{ workingSet: '/snapshots/vm.ws', rounds, seed: 7, runs: changed },
  })
}
