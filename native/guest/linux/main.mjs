#!/usr/bin/env node
// @ts-check
// Builds the guests' snapshots into the cache, for the bench and the tests.
import { parseArgs } from 'node:util'
import { defaultCacheFolder, diskFunctionNames, functionNames, prepareGuests } from './index.mjs'

const usage = `usage: node native/guest/linux/main.mjs [--functions a,b] [--cache DIR] [--kvm]

functions: ${functionNames.join(', ')};
           when named, ${diskFunctionNames.join(', ')}
cache:     ${defaultCacheFolder}
`
const failWith = (/** @type {unknown} */ error) => {
  process.stderr.write(`error: ${error instanceof Error ? error.message : error}\n`)
}

/** @param {string[]} args */
function readOptions(args) {
  const { values } = parseArgs({
    args,
    options: {
      functions: { type: 'string' },
      cache: { type: 'string' },
      kvm: { type: 'boolean', default: false },
      help: { type: 'boolean', short: 'h', default: false },
    },
  })
  return values
}

async function main() {
  /** @type {ReturnType<typeof readOptions>} */
  let options
  try {
    options = readOptions(process.argv.slice(2))
  } catch (error) {
    failWith(error)
    process.stderr.write(usage)
    return 2
  }
  if (options.help) {
    process.stdout.write(usage)
    return 0
  }
  const interrupted = new AbortController()
  for (const signal of /** @type {const} */ (['SIGINT', 'SIGTERM'])) {
    process.once(signal, () => interrupted.abort(new Error(`stopped by ${signal}`)))
  }
  try {
    await prepareGuests({
      ...(options.functions && { functions: options.functions.split(',') }),
      ...(options.cache && { cacheFolder: options.cache }),
      accelerator: options.kvm ? 'kvm' : 'tcg',
      signal: interrupted.signal,
      onProgress: ({ name, step, ms }) => {
        const took = step === 'built' ? ` in ${(ms / 1000).toFixed(1)} s` : ''
        process.stderr.write(`${name}: ${step}${took}\n`)
      },
    })
    return 0
  } catch (error) {
    failWith(error)
    return 1
  }
}

process.exitCode = await main()
