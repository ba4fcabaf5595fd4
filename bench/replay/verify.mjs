// @ts-check
// One comparison of a working set with its memory file, as in `WorkingSet.verify()`, in a process
// that has made one before.
import { performance } from 'node:perf_hooks'
import { WorkingSet } from '../../dist/index.js'

/** @type {{ scene: import('./scene.mjs').Scene, warmUp: import('./scene.mjs').Scene }} */
const { scene, warmUp } = JSON.parse(process.argv[2] ?? '{}')

const other = await WorkingSet.read(warmUp.workingSet)
await other.verify({ memoryFile: warmUp.memoryFile })

const set = await WorkingSet.read(scene.workingSet)
const startedAt = performance.now()
const { identical, pageCount } = await set.verify({ memoryFile: scene.memoryFile })
const verifyMs = performance.now() - startedAt
if (!identical || pageCount !== scene.pages) throw new Error('the set is not of its memory file')
process.stdout.write(`${JSON.stringify({ verifyMs })}\n`)
