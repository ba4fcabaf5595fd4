// @ts-check
// The store's learner, which is no public name: bundled from its source.
import { mkdir } from 'node:fs/promises'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import { build } from 'esbuild'
import { root } from '../lib/machine.mjs'

/** @returns {Promise<import('./replay.mjs').LearnerClass>} */
export async function loadLearner() {
  // One folder below the root as dist is, where the addon is looked for.
  const outfile = join(root, 'build', 'bench-learner.mjs')
  await mkdir(join(root, 'build'), { recursive: true })
  await build({
    entryPoints: [join(root, 'src/store/learner/learner.ts')],
    outfile,
    bundle: true,
    platform: 'node',
    format: 'esm',
    logLevel: 'silent',
  })
  const { Learner } = await import(pathToFileURL(outfile).href)
  return Learner
}
