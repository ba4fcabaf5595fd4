// How long a restore of the embedded guest takes, arm by arm: many runs of `reap-trace demo`, each in
// a process of its own, so that no run profits from what another has warmed up.
//
//   npm run bench [-- --runs 15 --memory-size 256M --json]
//
// Prints median, spread and p99 of the runs' medians; --json prints the samples and the machine.
import { spawnSync } from 'node:child_process'
import { cpus, release } from 'node:os'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'

const { values: options } = parseArgs({
  options: {
    runs: { type: 'string', default: '15' },
    'memory-size': { type: 'string', default: '256M' },
    json: { type: 'boolean', default: false },
  },
})
const runs = Number(options.runs)
if (!Number.isSafeInteger(runs) || runs < 1) {
  process.stderr.write('error: --runs takes a whole number from 1\n')
  process.exit(2)
}
const root = fileURLToPath(new URL('..', import.meta.url))
const cli = fileURLToPath(new URL('../dist/cli.js', import.meta.url))
const git = spawnSync('git', ['rev-parse', '--short', 'HEAD'], { cwd: root, encoding: 'utf8' })

const samples = []
for (let run = 1; run <= runs; run++) {
  if (process.stderr.isTTY) process.stderr.write(`\rrun ${run} of ${runs} `)
  const args = [cli, 'demo', '--json', '--rounds', '1', '--memory-size', options['memory-size']]
  const { status, stdout, stderr } = spawnSync(process.execPath, args, { encoding: 'utf8' })
  if (status !== 0) {
    process.stderr.write(stderr)
    process.exit(1)
  }
  samples.push(JSON.parse(stdout))
}
if (process.stderr.isTTY) process.stderr.write('\r\x1b[K')

const at = (sorted, share) => sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))]
function summary(values) {
  const sorted = values.filter((value) => value !== undefined).sort((a, b) => a - b)
  if (sorted.length === 0) return undefined
  return {
    median: at(sorted, 0.5),
    p25: at(sorted, 0.25),
    p75: at(sorted, 0.75),
    p99: at(sorted, 0.99),
  }
}

const results = {}
for (const arm of Object.keys(samples[0].arms)) {
  for (const cache of ['cold', 'warm']) {
    const of = (field) => summary(samples.map(({ arms }) => arms[arm][cache]?.[field]))
    results[`${arm}, ${cache}`] = { responseMs: of('responseMs'), faults: of('faults') }
  }
}
const ratio = (cache) =>
  summary(
    samples.map(({ arms }) => {
      const [onDemand, ours] = [arms['on-demand'][cache], arms['working-set'][cache]]
      return onDemand && ours ? onDemand.responseMs / ours.responseMs : undefined
    }),
  )
const ratios = { onDemandOverOursCold: ratio('cold'), onDemandOverOursWarm: ratio('warm') }
const machine = {
  kernel: release(),
  cpu: `${cpus().length} × ${cpus()[0]?.model}`,
  node: process.version,
  commit: git.stdout?.trim(),
  date: new Date().toISOString(),
}

if (options.json) {
  process.stdout.write(`${JSON.stringify({ machine, runs, results, ratios, samples })}\n`)
} else {
  const line = (name, { median, p25, p75, p99 }, unit) =>
    `${name.padEnd(24)}${[median, p25, p75, p99].map((n) => n.toFixed(1).padStart(10)).join('')} ${unit}\n`
  process.stdout.write(
    `${''.padEnd(24)}${['median', 'p25', 'p75', 'p99'].map((n) => n.padStart(10)).join('')}\n`,
  )
  for (const [name, { responseMs }] of Object.entries(results)) {
    if (responseMs) process.stdout.write(line(name, responseMs, 'ms'))
  }
  for (const [name, value] of Object.entries(ratios)) {
    if (value) process.stdout.write(line(name, value, '×'))
  }
  process.stdout.write(`${runs} runs, ${Object.values(machine).join(', ')}\n`)
}
