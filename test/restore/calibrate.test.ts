import { execFileSync } from 'node:child_process'
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import { describe, expect, onTestFinished, test } from 'vitest'
import { kvmMissing } from '../../native/guest/driver/kvm-guest.mjs'
import { calibrateHost, hostCalibration } from '../../src/index.js'
import { calibrated, uncalibrated } from '../support/calibration.js'
import { scratchFolder } from '../support/scratch.js'
import { failureOf } from '../support/working-sets.js'

uncalibrated()

describe.skipIf(process.arch !== 'x64')('the calibration of a host', () => {
  test('finds what a page costs each kind of guest, and keeps it', async () => {
    const folder = await scratchFolder()
    const path = join(folder, 'kept/calibration.json')
    process.env.REAP_TRACE_CALIBRATION = path
    const shares: number[] = []
    const found = await calibrateHost({ onProgress: ({ share }) => shares.push(share) })
    expect(Object.keys(found.guests)).toEqual(kvmMissing() ? ['threads'] : ['threads', 'kvm'])
    for (const { reads, writes } of Object.values(found.guests)) {
      for (const { mappedUs, installedUs } of [reads, writes]) {
        expect(mappedUs).toBeGreaterThan(0)
        expect(installedUs).toBeGreaterThan(0)
      }
    }
    expect(JSON.parse(readFileSync(path, 'utf8'))).toEqual(found)
    expect(await hostCalibration()).toEqual(found)
    // Nothing else is left.
    expect(readdirSync(join(folder, 'kept'))).toEqual(['calibration.json'])
    expect(shares[0]).toBe(0)
    expect(shares.at(-1)).toBe(1)
    expect(shares).toEqual([...shares].sort((a, b) => a - b))
  })

  test.each([0, 0.3, 0.9])(
    'ends with its signal after a share of %f, and leaves nothing',
    async (at) => {
      const folder = await scratchFolder()
      const path = calibrated('as it was')
      const controller = new AbortController()
      const reason = new Error('enough')
      let isAborted = false
      const ended = calibrateHost({
        folder,
        signal: controller.signal,
        onProgress: ({ share }) => {
          if (share < at || isAborted) return
          isAborted = true
          // In the middle of what comes next, not between.
          setImmediate(() => controller.abort(reason))
        },
      })
      await expect(ended).rejects.toBe(reason)
      expect(readdirSync(folder)).toEqual([])
      expect(readFileSync(path, 'utf8')).toBe('as it was')
    },
  )

  test('does not begin when its signal is aborted', async () => {
    const folder = join(await scratchFolder(), 'new')
    const reason = new Error('enough')
    const signal = AbortSignal.abort(reason)
    await expect(calibrateHost({ folder, signal })).rejects.toBe(reason)
    expect(existsSync(folder)).toBe(false)
  })

  test.skipIf(!existsSync('/dev/shm'))('takes a folder in memory, as snapshots do', async () => {
    calibrated('as it was')
    const folder = mkdtempSync('/dev/shm/reap-test-')
    onTestFinished(() => rmSync(folder, { recursive: true }))
    const found = await calibrateHost({ folder })
    expect(found.guests.threads!.writes.mappedUs).toBeGreaterThan(0)
    expect(readdirSync(folder)).toEqual([])
  })
})

test('a folder that cannot be written to is refused, with its name', async () => {
  const folder = await scratchFolder()
  const file = join(folder, 'file')
  writeFileSync(file, '')
  expect(await failureOf(calibrateHost({ folder: join(file, 'below') }))).toMatchObject({
    code: 'ERR_CALIBRATION',
    path: join(file, 'below'),
    syscall: 'mkdtemp',
    hint: expect.any(String),
  })
  // So it is, and before anything is measured, where the calibration is to be kept.
  process.env.REAP_TRACE_CALIBRATION = join(file, 'below/calibration.json')
  const shares: number[] = []
  const failure = await failureOf(
    calibrateHost({ folder, onProgress: ({ share }) => shares.push(share) }),
  )
  expect(failure).toMatchObject({
    code: 'ERR_CALIBRATION',
    path: join(file, 'below/calibration.json'),
    hint: expect.stringContaining('REAP_TRACE_CALIBRATION'),
  })
  expect(failure.message).toContain('cannot be saved')
  expect(shares).toEqual([])
  expect(readdirSync(folder)).toEqual(['file'])
})

test.each([
  ['a pipe, which would be replaced', (path: string) => execFileSync('mkfifo', [path])],
  ['a folder', (path: string) => mkdirSync(path)],
])('a path that leads to %s is refused before anything is measured', async (_, make) => {
  const path = join(await scratchFolder(), 'calibration')
  make(path)
  process.env.REAP_TRACE_CALIBRATION = path
  const failure = await failureOf(calibrateHost())
  expect(failure).toMatchObject({ code: 'ERR_CALIBRATION', path })
  expect(failure.message).toMatch(/: it is not a regular file$/)
  expect(await hostCalibration({ trust: true })).toBeUndefined()
  expect(await hostCalibration()).toBeUndefined()
})

test('a folder whose path is too long for a socket is refused', async () => {
  const folder = join(await scratchFolder(), 'd'.repeat(90))
  mkdirSync(folder)
  const error = { code: 'ERR_CALIBRATION', check: 'path-length', path: folder }
  expect(await failureOf(calibrateHost({ folder }))).toMatchObject(error)
  expect(readdirSync(folder)).toEqual([])
})

test('a folder that can never be made is refused, and does not hang', async () => {
  process.env.REAP_TRACE_CALIBRATION = '/proc/nowhere/below/calibration.json'
  expect(await failureOf(calibrateHost())).toMatchObject({ code: 'ERR_CALIBRATION' })
})

test.each([
  ['no options', null, /calibrateHost\(\) expects an options object/],
  ['an empty folder', { folder: '' }, /"folder" of calibrateHost\(\)/],
  ['no listener', { onProgress: 1 }, /"onProgress" of calibrateHost\(\) to be a function/],
  ['another spelling', { onprogress: () => {} }, /did you mean "onProgress"\?/],
])('misuse is a TypeError: %s', async (_, options, message) => {
  const misuse = calibrateHost(options as never)
  await expect(misuse).rejects.toThrow(TypeError)
  await expect(misuse).rejects.toThrow(message)
})
