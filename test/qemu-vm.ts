import { type ChildProcess, spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { copyFileSync, existsSync, mkdirSync, readdirSync } from 'node:fs'
import { readFile, rm } from 'node:fs/promises'
import { connect, type Socket } from 'node:net'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'

const QEMU = 'qemu-system-x86_64'
export const GUEST_BYTES = 256 * 2 ** 20

const which = (name: string) => spawnSync('sh', ['-c', `command -v ${name}`]).status === 0

const kernel = (): string | undefined =>
  existsSync('/boot')
    ? readdirSync('/boot')
        .filter((name) => /^vmlinuz-.*amd64$/.test(name))
        .map((name) => join('/boot', name))[0]
    : undefined

/** What this machine lacks for a Linux guest in QEMU, or an empty string. */
export function lacksForQemu(): string {
  const missing = [QEMU, 'busybox', 'cpio'].filter((name) => !which(name))
  if (!kernel()) missing.push('a kernel as /boot/vmlinuz-*-amd64')
  return missing.join(', ')
}

/** The answer of the guest in test/fixtures/tiny-guest-init to a line. */
export function expectedAnswer(line: string): string {
  const digest = spawnSync('sh', ['-c', 'busybox seq 1 500000 | sha256sum'], { encoding: 'utf8' })
  return `${line}: ${digest.stdout.trimEnd()}`
}

function makeInitramfs(folder: string): string {
  const root = join(folder, 'initramfs')
  mkdirSync(join(root, 'bin'), { recursive: true })
  copyFileSync('/bin/busybox', join(root, 'bin/busybox'))
  copyFileSync(
    fileURLToPath(new URL('fixtures/tiny-guest-init', import.meta.url)),
    join(root, 'init'),
  )
  const { status, stderr } = spawnSync(
    'sh',
    ['-ec', 'chmod +x init bin/busybox; find . | cpio -o -H newc --quiet > ../initramfs.cpio'],
    { cwd: root, encoding: 'utf8' },
  )
  if (status !== 0) throw new Error(`cpio: ${stderr}`)
  return join(folder, 'initramfs.cpio')
}

/** What `-object memory-backend-file` of a guest is given. */
const backend = (memoryFile: string, share: 'on' | 'off') =>
  `memory-backend-file,id=memory,size=${GUEST_BYTES},mem-path=${memoryFile},share=${share}`

/** A Linux guest in stock QEMU, without KVM: driven over QMP and its serial console. */
export class QemuVm {
  readonly pid: number
  readonly exited: Promise<number | null>
  stderr = ''
  readonly #child: ChildProcess
  readonly #lines: string[] = []
  #wake: () => void = () => {}
  #qmp!: Socket
  readonly #answers: ((answer: { return?: unknown; error?: { desc: string } }) => void)[] = []

  static async start(
    folder: string,
    memory: string,
    words: readonly string[],
    env: NodeJS.ProcessEnv = {},
  ): Promise<QemuVm> {
    const qmp = join(folder, `qmp-${process.hrtime.bigint()}`)
    const machine = ['-machine', 'pc,memory-backend=memory', '-accel', 'tcg', '-m', '256']
    const child = spawn(
      QEMU,
      [
        ...machine,
        ...['-object', memory, '-nodefaults', '-display', 'none', '-no-reboot'],
        ...['-serial', 'stdio', '-qmp', `unix:${qmp},server=on,wait=off`, ...words],
      ],
      { stdio: 'pipe', env: { ...process.env, ...env } },
    )
    const vm = new QemuVm(child)
    await once(child, 'spawn')
    try {
      await vm.#connect(qmp)
    } catch (error) {
      await vm.kill()
      throw error
    }
    return vm
  }

  private constructor(child: ChildProcess) {
    this.#child = child
    this.pid = child.pid!
    this.exited = new Promise((resolve) => child.once('close', resolve))
    createInterface({ input: child.stdout! }).on('line', (line) => {
      this.#lines.push(line.replaceAll('\r', ''))
      this.#wake()
    })
    child.stderr!.setEncoding('utf8').on('data', (text: string) => {
      this.stderr += text
    })
    child.stdin!.on('error', () => {})
  }

  /** Boots the guest and leaves its memory in `memoryFile`, and the rest of it in `stateFile`. */
  static async snapshot(folder: string, memoryFile: string, stateFile: string): Promise<void> {
    const words = ['-kernel', kernel()!, '-initrd', makeInitramfs(folder)]
    const vm = await QemuVm.start(folder, backend(memoryFile, 'on'), [
      ...words,
      '-append',
      'console=ttyS0 quiet panic=-1',
    ])
    try {
      await vm.line(/^ready/)
      await vm.ask('first')
      await vm.qmp('stop')
      await vm.#ignoreSharedMemory()
      await vm.qmp('migrate', { uri: `exec:cat > ${stateFile}` })
      await vm.#untilMigrated()
      await vm.qmp('quit')
      await vm.exited
    } finally {
      await vm.kill()
    }
  }

  /** A restored guest, still stopped. */
  static async restore(
    folder: string,
    memoryFile: string,
    stateFile: string,
    env?: NodeJS.ProcessEnv,
  ): Promise<QemuVm> {
    const vm = await QemuVm.start(folder, backend(memoryFile, 'off'), ['-incoming', 'defer'], env)
    await vm.#ignoreSharedMemory()
    await vm.qmp('migrate-incoming', { uri: `exec:cat ${stateFile}` })
    await vm.#untilMigrated()
    return vm
  }

  async qmp<T = unknown>(execute: string, values: object = {}): Promise<T> {
    this.#qmp.write(`${JSON.stringify({ execute, arguments: values })}\n`)
    const answer = await this.#orExit(
      new Promise<{ return?: unknown; error?: { desc: string } }>((resolve) => {
        this.#answers.push(resolve)
      }),
    )
    if (answer.error) throw new Error(`${execute}: ${answer.error.desc}`)
    return answer.return as T
  }

  /** Writes a line to the guest's console, and returns its answer. */
  async ask(line: string): Promise<string> {
    this.#child.stdin!.write(`${line}\n`)
    return this.line(new RegExp(`^${line}: `))
  }

  /** The line of the guest's console that matches, once it is printed. */
  async line(pattern: RegExp): Promise<string> {
    for (;;) {
      const found = this.#lines.find((line) => pattern.test(line))
      if (found !== undefined) return found
      await this.#orExit(
        new Promise<void>((resolve) => {
          this.#wake = resolve
        }),
      )
    }
  }

  /** The lines of /proc/PID/maps about a file. */
  async mappings(path: string): Promise<string[]> {
    const lines = (await readFile(`/proc/${this.pid}/maps`, 'utf8')).split('\n')
    return lines.filter((line) => line.endsWith(path))
  }

  /** Offsets of the pages of memory that differ from those of the file. Touches every page. */
  async differingPages(folder: string, memoryFile: string): Promise<number[]> {
    const path = join(folder, `memory-${process.hrtime.bigint()}`)
    await this.qmp('pmemsave', { val: 0, size: GUEST_BYTES, filename: path })
    const [mine, its] = await Promise.all([readFile(path), readFile(memoryFile)])
    await rm(path)
    const pages: number[] = []
    for (let at = 0; at < its.length; at += 4096) {
      // Between 640 KiB and 1 MiB a PC has its video memory and its ROMs.
      if (at >= 0xa0000 && at < 0x100000) continue
      if (mine.compare(its, at, at + 4096, at, at + 4096) !== 0) pages.push(at)
    }
    return pages
  }

  async kill(): Promise<void> {
    if (this.#child.exitCode === null && this.#child.signalCode === null) {
      this.#child.kill('SIGKILL')
    }
    await this.exited
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.kill()
  }

  async #connect(path: string): Promise<void> {
    for (;;) {
      const socket = connect(path)
      const connected = await this.#orExit(
        once(socket, 'connect').then(
          () => true,
          () => false,
        ),
      )
      if (connected) {
        this.#qmp = socket
        break
      }
      await sleep(20)
    }
    this.#qmp.on('error', () => {})
    createInterface({ input: this.#qmp }).on('line', (line) => {
      const message = JSON.parse(line)
      if ('return' in message || 'error' in message) this.#answers.shift()?.(message)
    })
    await this.qmp('qmp_capabilities')
  }

  #ignoreSharedMemory(): Promise<unknown> {
    const capabilities = [{ capability: 'x-ignore-shared', state: true }]
    return this.qmp('migrate-set-capabilities', { capabilities })
  }

  async #untilMigrated(): Promise<void> {
    for (;;) {
      const { status } = await this.qmp<{ status?: string }>('query-migrate')
      if (status === 'completed') return
      if (status === 'failed') throw new Error(`the migration failed: ${this.stderr}`)
      await sleep(20)
    }
  }

  /** What comes, unless the process ends before. */
  #orExit<T>(what: Promise<T>): Promise<T> {
    const end = this.exited.then((code) => {
      throw new Error(`${QEMU} ended (${code}): ${this.stderr}`)
    })
    end.catch(() => {})
    return Promise.race([what, end])
  }
}
