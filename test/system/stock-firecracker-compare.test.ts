import { chmodSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { beforeAll, describe, expect, it } from 'vitest'
import { firecracker } from '../../native/guest/driver/microvm.mjs'
import type { Comparison } from '../../src/index.js'
import { uncalibrated } from '../support/calibration.js'
import { checkBuild, events, run } from '../support/cli-process.js'
import { scratchFolder } from '../support/scratch.js'
import { missing, PAGES_AFTER_ANSWER } from '../support/stock-firecracker.js'

const restoreAndInvoke = `#!/bin/sh
set -e
here=$(dirname "$0")
scratch=$(mktemp -d)
trap 'kill -9 $vmm; rm -rf "$scratch"' EXIT
mkfifo "$scratch/in" "$scratch/out"
exec 3<>"$scratch/in" 4<>"$scratch/out"
# Firecracker makes its console non-blocking: it opens its output itself.
${firecracker} --api-sock "$scratch/api" --level Error <&3 >"$scratch/out" 2>&1 &
vmm=$!
until [ -S "$scratch/api" ]; do sleep 0.001; done
printf m >&3
curl --silent --show-error --fail-with-body --unix-socket "$scratch/api" \\
  -X PUT http://localhost/snapshot/load -d '{
    "snapshot_path": "'"$here"'/guest.vmstate", "resume_vm": true,
    "mem_backend": {
      "backend_type": "'"$REAP_TRACE_BACKEND_TYPE"'", "backend_path": "'"$REAP_TRACE_BACKEND_PATH"'"
    } }'
until [ "\${answer%% *}" = m ]; do read -r answer <&4; done
echo >"$REAP_TRACE_READY"
`

uncalibrated()

describe.skipIf(missing)('compare', () => {
  beforeAll(checkBuild)

  it('measures a script that restores Firecracker, with each backend', async () => {
    const folder = await scratchFolder()
    const demo = ['--firecracker', firecracker, '--memory-size', '128M', '--rounds', '1']
    expect((await run(['demo', ...demo, '--keep', folder])).code).toBe(0)
    const script = join(folder, 'restore-and-invoke.sh')
    writeFileSync(script, restoreAndInvoke)
    chmodSync(script, 0o755)
    const files = ['--memory', join(folder, 'guest.mem'), '--working-set', join(folder, 'guest.ws')]
    const words = ['--rounds', '1', '--warm', '--json', '--', script]
    const { code, stdout, stderr } = await run(['compare', ...files, ...words])
    expect(code, stderr).toBe(0)
    const { warm } = events(stdout).at(-1) as Comparison
    const faults = Object.fromEntries(warm.map((row) => [row.arm, row.faults]))
    expect(faults).toMatchObject({ 'kernel-file': null, 'page-cache': null, auto: null })
    expect(faults['on-demand']).toBeGreaterThanOrEqual(7680)
    const { residualFaults } = warm.find(({ arm }) => arm === 'working-set')!
    expect(residualFaults).toBeLessThanOrEqual(PAGES_AFTER_ANSWER)
  })
})
