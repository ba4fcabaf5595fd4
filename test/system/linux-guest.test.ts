import { spawn } from 'node:child_process'
import { createCipheriv, createHash } from 'node:crypto'
import { createReadStream, existsSync } from 'node:fs'
import { copyFile, readdir, readFile, truncate, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { pipeline } from 'node:stream/promises'
import { fileURLToPath } from 'node:url'
import { describe, expect, onTestFinished, test } from 'vitest'
import { PageCache } from '../../native/guest/driver/page-cache.mjs'
import {
  diskFunctionNames,
  functionNames,
  Guest,
  MissingPackages,
  prepareGuests,
} from '../../native/guest/linux/index.mjs'
import { findParts } from '../../native/guest/linux/packages.mjs'
import { probeUserfaultfd } from '../../src/binding/userfaultfd.js'
import { interposerEnvironment, WorkingSet } from '../../src/index.js'
import { Cli, checkBuild, serveWords } from '../support/cli-process.js'
import { expectBrought, scratchFolder, serveScene } from '../support/scratch.js'
import { checkTrace } from '../support/trace-events.js'

// A guest that has to be built boots under emulation, on a machine that may be busy.
const buildMs = 180_000

function whatIsMissing(): string | undefined {
  try {
    findParts()
    return undefined
  } catch (error) {
    return (error as Error).message
  }
}
const missing = whatIsMissing()
if (missing) process.stderr.write(`skipped, the Linux guest: ${missing}\n`)

async function digest(path: string): Promise<string> {
  const hash = createHash('sha256')
  await pipeline(createReadStream(path), hash)
  return hash.digest('hex')
}

async function restore(guest: Guest, options?: Parameters<Guest['restore']>[0]) {
  const vm = await guest.restore(options)
  onTestFinished(() => vm.stop())
  return vm
}

async function helloworld(): Promise<Guest> {
  const [guest] = await prepareGuests({ functions: ['helloworld'] })
  return guest!
}

const isRunning = (pid: number) => existsSync(`/proc/${pid}/exe`)

test('one apt line for all the packages that are missing', () => {
  const error = new MissingPackages([
    { package: 'busybox-static', problem: 'no statically linked busybox' },
    { package: 'python3', problem: 'no /usr/bin/python3' },
  ])
  expect(error.message.split('\n')).toEqual([
    'busybox-static: no statically linked busybox',
    'python3: no /usr/bin/python3',
    'To get them: sudo apt-get install -y busybox-static python3',
  ])
})

test('an unknown function is named, with those there are', async () => {
  await expect(prepareGuests({ functions: ['helowrld'] })).rejects.toThrow(
    /no function "helowrld"; there are .*helloworld/,
  )
  await expect(prepareGuests({ functions: ['disk_modal'] })).rejects.toThrow('disk_model')
  expect(functionNames).toContain('helloworld')
  expect(functionNames).not.toContain('disk_model')
})

describe.skipIf(missing)('a Linux guest', { timeout: buildMs }, () => {
  test('answers in every VM that is restored, and its memory file stays as it is', async () => {
    const guests = await prepareGuests({ functions: ['helloworld', 'pyaes'] })
    expect(guests.map(({ name }) => name)).toEqual(['helloworld', 'pyaes'])
    for (const guest of guests) {
      const before = await Promise.all([guest.memoryFile, guest.stateFile].map(digest))
      expect(guest.diskImages).toEqual([])
      expect(guest.inputs).toHaveLength(2)
      expect(guest.inputs[0]!.answer).not.toEqual(guest.inputs[1]!.answer)
      // At the same time, and twice in each: a VM shares nothing with the others.
      const vms = await Promise.all(guest.inputs.map(() => restore(guest)))
      const answers = vms.map(async (vm, index) => {
        const { request } = guest.inputs[index]!
        await vm.resume()
        return [(await vm.invoke(request)).answer, (await vm.invoke(request)).answer]
      })
      expect(await Promise.all(answers)).toEqual(guest.inputs.map(({ answer }) => [answer, answer]))
      const { spawned, qmp, loaded, resumed, answered } = vms[0]!.phases
      const phases = [spawned, qmp, loaded, resumed, answered]
      expect(phases).toEqual(phases.toSorted((a, b) => a! - b!))
      await Promise.all(vms.map((vm) => vm.stop()))
      expect(await Promise.all([guest.memoryFile, guest.stateFile].map(digest))).toEqual(before)
    }
    // The host's answers come from the same Python code; these come from OpenSSL.
    for (const { request, answer } of guests[1]!.inputs) {
      const { key, message, length } = request
      const counter = Buffer.from(`${'00'.repeat(15)}01`, 'hex')
      const cipher = createCipheriv('aes-128-ctr', Buffer.from(key, 'hex'), counter)
      const plain = Buffer.from(message.repeat(length)).subarray(0, length)
      expect(answer).toBe(cipher.update(plain).toString('hex'))
    }
  })

  test('is found in the cache the second time', async () => {
    await helloworld()
    const steps: string[] = []
    await prepareGuests({ functions: ['helloworld'], onProgress: ({ step }) => steps.push(step) })
    expect(steps).toEqual(['cached'])
  })

  test('a build that is stopped half way leaves no snapshot', async () => {
    const cacheFolder = await scratchFolder()
    const stop = new AbortController()
    const { signal } = stop
    const building = prepareGuests({ functions: ['helloworld'], cacheFolder, signal })
    const stopped = expect(building).rejects.toThrow('enough')
    const files = () => readdir(cacheFolder, { recursive: true })
    // QEMU makes the memory file, so it runs by then.
    const hasMemory = async () => (await files()).some((path) => path.endsWith('/memory'))
    await expect.poll(hasMemory, { timeout: 60_000 }).toBe(true)
    stop.abort(new Error('enough'))
    await stopped
    expect(await files()).toEqual(['helloworld.console.log'])
  })

  test("a function's failure is the invocation's, and the guest serves the next", async () => {
    const guest = await helloworld()
    const vm = await restore(guest)
    await vm.resume()
    await expect(vm.invoke({})).rejects.toThrow(/helloworld failed in the guest: .*KeyError/s)
    const { request, answer } = guest.inputs[0]!
    expect((await vm.invoke(request)).answer).toEqual(answer)
  })

  test('a child of its snapshot has what the guest did in between, and the parent has not', async () => {
    const guest = await helloworld()
    const before = await digest(guest.memoryFile)
    const [first, second] = guest.inputs
    const answers: unknown[] = []
    const child = await guest.snapshotAfter(await scratchFolder(), async (vm) => {
      answers.push((await vm.invoke(first!.request)).answer)
    })
    expect(await digest(child.memoryFile)).not.toBe(before)
    const vm = await restore(child)
    await vm.resume()
    answers.push((await vm.invoke(second!.request)).answer)
    expect(answers).toEqual([first!.answer, second!.answer])
    expect(await digest(guest.memoryFile)).toBe(before)
  })

  test('QEMU gets the environment', async () => {
    const guest = await helloworld()
    const vm = await restore(guest, { env: { REAP_TEST_GUEST: 'a b' } })
    const environment = await readFile(`/proc/${vm.pid}/environ`, 'utf8')
    expect(environment.split('\0')).toContain('REAP_TEST_GUEST=a b')
    expect(await readFile(`/proc/${vm.pid}/cmdline`, 'utf8')).toMatch(/^[^\0]*qemu-system/)
  })

  test('a state that QEMU refuses fails with what QEMU printed', async () => {
    const guest = await helloworld()
    const folder = await scratchFolder()
    await copyFile(guest.stateFile, join(folder, 'state'))
    await truncate(join(folder, 'state'), 1000)
    await writeFile(join(folder, 'memory'), '')
    await truncate(join(folder, 'memory'), guest.memoryBytes)
    const { name, memoryBytes, inputs } = guest
    const { qemu } = findParts()
    const broken = new Guest({ name, memoryBytes, inputs, qemu, folder, accelerator: 'tcg' })
    const env = { LD_PRELOAD: '/no/such.so' }
    const error = await broken.restore({ env }).catch((reason) => reason)
    expect(error.message).toMatch(/QEMU printed:\n.*qemu-system/s)
    // The loader complains once: what is preloaded is in QEMU, not in the programs that lead to it.
    expect(error.message.match(/\/no\/such\.so/g)).toHaveLength(1)
  })

  test('a VM that is killed while it is waited for rejects, and so does all that follows', async () => {
    const guest = await helloworld()
    const vm = await restore(guest)
    const invocation = vm.invoke(guest.inputs[0]!.request) // not resumed, so no answer can come first
    process.kill(vm.pid!, 'SIGKILL')
    await expect(invocation).rejects.toThrow('QEMU ended with SIGKILL')
    await expect(vm.resume()).rejects.toThrow('QEMU ended with SIGKILL')
  })

  test('an abort ends the VM with its reason', async () => {
    const guest = await helloworld()
    const stop = new AbortController()
    const vm = await restore(guest, { signal: stop.signal })
    const invocation = vm.invoke(guest.inputs[0]!.request)
    stop.abort(new Error('no longer needed'))
    await expect(invocation).rejects.toThrow('no longer needed')
    await vm.stop()
    expect(isRunning(vm.pid!)).toBe(false)
    await expect(guest.restore({ signal: stop.signal })).rejects.toThrow('no longer needed')
  })

  test('QEMU does not outlive a parent that is killed', async () => {
    await helloworld()
    const index = fileURLToPath(new URL('../../native/guest/linux/index.mjs', import.meta.url))
    const script = `
      const { prepareGuests } = await import(${JSON.stringify(index)})
      const [guest] = await prepareGuests({ functions: ['helloworld'] })
      console.log((await guest.restore()).pid)`
    const parent = spawn(process.execPath, ['--input-type=module', '--eval', script], {
      stdio: ['ignore', 'pipe', 'inherit'],
    })
    onTestFinished(() => void parent.kill('SIGKILL'))
    const lines = createInterface({ input: parent.stdout })[Symbol.asyncIterator]()
    const pid = Number((await lines.next()).value)
    expect(isRunning(pid)).toBe(true)
    onTestFinished(() => void (isRunning(pid) && process.kill(pid, 'SIGKILL')))
    parent.kill('SIGKILL')
    await expect.poll(() => isRunning(pid), { timeout: 20_000 }).toBe(false)
  })
})

describe.skipIf(missing)('a Linux guest whose root is a disk', { timeout: buildMs }, () => {
  async function diskGuest(name: string): Promise<{ guest: Guest; disk: string }> {
    const [guest] = await prepareGuests({ functions: [name] })
    return { guest: guest!, disk: guest!.diskImages[0]! }
  }

  async function pageCache(): Promise<PageCache> {
    const cache = await PageCache.open()
    onTestFinished(() => cache.close())
    return cache
  }

  // Of the model 480 rows or more; of the library what 60 modules or more have.
  const leastMiB = { disk_import: 4, disk_model: 7.5 } as Record<string, number>

  test.each(diskFunctionNames)(
    '%s reads it when it is invoked, and answers right',
    async (name) => {
      const { guest, disk } = await diskGuest(name)
      const cache = await pageCache()
      const before = await digest(disk)
      expect(guest.inputs).toHaveLength(2)
      expect(guest.inputs[0]!.answer).not.toEqual(guest.inputs[1]!.answer)
      for (const { request, answer } of guest.inputs) {
        await cache.set('cold', [disk])
        const vm = await restore(guest)
        await vm.resume()
        const early = await cache.resident(disk)
        expect((await vm.invoke(request)).answer).toEqual(answer)
        const read = (await cache.resident(disk)) - early
        expect(read / 2 ** 20).toBeGreaterThanOrEqual(leastMiB[name]!)
        // By then the guest has it in its own page cache.
        await cache.set('cold', [disk])
        expect((await vm.invoke(request)).answer).toEqual(answer)
        expect(await cache.resident(disk)).toBe(0)
        await vm.stop()
      }
      expect(await digest(disk)).toBe(before)
    },
  )

  test('shares it with others, and a restore leaves it in the page cache', async () => {
    const { guest, disk } = await diskGuest('disk_model')
    const cache = await pageCache()
    await cache.set('warm', [disk])
    const warm = await cache.resident(disk)
    const vms = await Promise.all(guest.inputs.map(() => restore(guest)))
    // A host that is short of memory may take a few pages back.
    expect(await cache.resident(disk)).toBeGreaterThan(warm * 0.9)
    const answers = vms.map(async (vm, index) => {
      await vm.resume()
      return (await vm.invoke(guest.inputs[index]!.request)).answer
    })
    expect(await Promise.all(answers)).toEqual(guest.inputs.map(({ answer }) => answer))
  })

  // QEMU reads the disk into the guest's memory by system call.
  const { device, syscall } = probeUserfaultfd()
  const onlyUserMode = device !== 0 && syscall !== 0
  const because = onlyUserMode ? ', skipped without a userfaultfd for faults of the kernel' : ''
  test.skipIf(onlyUserMode)(
    `is recorded with what it reads, and prefetched${because}`,
    async () => {
      await checkBuild()
      const { guest } = await diskGuest('disk_model')
      const { memoryFile } = guest
      const snapshot = { memoryFile }
      const folder = await scratchFolder()
      const invoke = async (socketPath: string) => {
        const vm = await restore(guest, { env: interposerEnvironment({ socketPath, snapshot }) })
        await vm.resume()
        const { request, answer } = guest.inputs[0]!
        expect((await vm.invoke(request)).answer).toEqual(answer)
        return vm
      }
      const recording = { socketPath: join(folder, 'record'), memoryFile }
      const recorder = await serveScene(recording)
      const first = await invoke(recording.socketPath)
      const set = WorkingSet.fromTraces([recorder.stopRecording()])
      await first.stop()
      // Each page of its page cache is one more that it needs.
      expect(set.pageCount).toBeGreaterThan((leastMiB.disk_model! * 2 ** 20) / 4096)
      const workingSet = join(folder, 'vm.ws')
      await set.write(workingSet, { snapshot })

      const [serving, trace] = [
        { ...recording, socketPath: join(folder, 'serve') },
        join(folder, 'restore.json'),
      ]
      const words = [...serveWords(serving), '--working-set', workingSet, '--trace', trace]
      const cli = new Cli(['restore', ...words])
      await cli.event('listening')
      const second = await invoke(serving.socketPath)
      await second.stop()
      expect(await cli.ended).toMatchObject({ code: 0 })
      const { stats } = await checkTrace(trace)
      expectBrought(stats!, set.pageCount)
      expect(stats!.residualFaults).toBeLessThan(set.pageCount / 5)
    },
  )
})
