import { type ChildProcess, spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { accessSync, constants, copyFileSync, existsSync, mkdirSync, readdirSync } from 'node:fs'
import { readFile, rm } from 'node:fs/promises'
import { connect, type Socket } from 'node:net'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'

const QEMU = 'qemu-system-x86_64'

/** A guest that answers what is written to its serial console. */
export interface QemuGuest {
  readonly bytes: number
  /** QEMU's arguments for it, besides its memory. */
  readonly words: readonly string[]
  /** Words for its first start only. */
  readonly boot: readonly string[]
  /** The line that it prints when it has started. */
  readonly ready: RegExp
  readonly request: string
  readonly response: RegExp
}

const which = (name: string) => spawnSync('sh', ['-c', `command -v ${name}`]).status === 0

const kernel = (): string | undefined =>
  existsSync('/boot')
    ? readdirSync('/boot')
        .filter((name) => /^vmlinuz-.*amd64$/.test(name))
        .map((name) => join('/boot', name))[0]
    : undefined

/** Words before a command, which end it when this process ends, however that happens. */
const endWithParent = which('setpriv') ? ['setpriv', '--pdeathsig', 'KILL'] : []

/** What this machine lacks for a guest, or empty. */
export function lacksFor(guest: 'linux' | 'real-mode'): string {
  const programs = guest === 'linux' ? ['busybox', 'cpio'] : ['as', 'ld']
  const missing = [QEMU, ...programs].filter((name) => !which(name))
  if (guest === 'linux' && !kernel()) missing.push('a kernel as /boot/vmlinuz-*-amd64')
  if (guest === 'real-mode' && !hasKvm()) missing.push('/dev/kvm')
  return missing.join(', ')
}

function hasKvm(): boolean {
  try {
    accessSync('/dev/kvm', constants.R_OK | constants.W_OK)
    return true
  } catch {
    return false
  }
}

function sh(script: string, cwd: string): string {
  const { status, stdout, stderr } = spawnSync('sh', ['-ec', script], { cwd, encoding: 'utf8' })
  if (status !== 0) throw new Error(`${script}: ${stderr}`)
  return stdout
}

const fixture = (name: string) => fileURLToPath(new URL(`fixtures/${name}`, import.meta.url))

/** A kernel and busybox, emulated: stock kernels want more of KVM than some machines have. */
export function linuxGuest(folder: string): QemuGuest {
  const root = join(folder, 'initramfs')
  mkdirSync(join(root, 'bin'), { recursive: true })
  copyFileSync(fixture('tiny-guest-init'), join(root, 'init'))
  sh(
    'cp "$(command -v busybox)" bin/; chmod +x init; find . | cpio -o -H newc --quiet > ../initramfs.cpio',
    root,
  )
  const digest = sh('busybox seq 1 500000 | sha256sum', folder).trimEnd()
  return {
    bytes: 256 * 2 ** 20,
    words: ['-accel', 'tcg'],
    boot: [
      ...['-kernel', kernel()!, '-initrd', join(folder, 'initramfs.cpio')],
      ...['-append', 'console=ttyS0 quiet panic=-1'],
    ],
    ready: /^ready/,
    request: 'hello\n',
    response: new RegExp(`^hello: ${digest}`),
  }
}

/** A boot sector, under KVM, whose faults are the kernel's. */
export function realModeGuest(folder: string): QemuGuest {
  sh(
    `as --32 -o boot.o '${fixture('real-mode-guest.s')}'; ld -m elf_i386 -Ttext 0x7c00 --oformat binary -o boot.img boot.o`,
    folder,
  )
  const drive = `file=${join(folder, 'boot.img')},format=raw,if=ide,snapshot=on`
  return {
    bytes: 64 * 2 ** 20,
    words: ['-accel', 'kvm', '-drive', drive],
    boot: [],
    ready: /^R/,
    request: 'x',
    response: /^BEKH/,
  }
}

/** Value of `-object` for a guest's memory file. */
const backend = ({ bytes }: QemuGuest, memoryFile: string, share: 'on' | 'off') => [
  '-object',
  `memory-backend-file,id=memory,size=${bytes},mem-path=${memoryFile},share=${share}`,
]

/** A guest in stock QEMU, driven over QMP and its serial console. */
export class QemuVm {
  readonly pid: number
  readonly exited: Promise<number | null>
  stderr = ''
  readonly #child: ChildProcess
  readonly #guest: QemuGuest
  readonly #lines: string[] = []
  #wake: () => void = () => {}
  #qmp!: Socket
  readonly #answers: ((answer: { return?: unknown; error?: { desc: string } }) => void)[] = []

  static async start(
    folder: string,
    guest: QemuGuest,
    words: readonly string[],
    env: NodeJS.ProcessEnv = {},
  ): Promise<QemuVm> {
    const qmp = join(folder, `qmp-${process.hrtime.bigint()}`)
    const variables = Object.entries(env)
      .filter(([, value]) => value !== undefined)
      .map(([name, value]) => `${name}=${value}`)
    const command = [
      // env(1) comes after setpriv(1), so that a preloaded library is in QEMU alone.
      ...[...endWithParent, 'env', ...variables, QEMU],
      ...['-machine', 'pc,memory-backend=memory', '-m', String(guest.bytes / 2 ** 20)],
      ...['-nodefaults', '-display', 'none', '-no-reboot', '-serial', 'stdio'],
      ...['-qmp', `unix:${qmp},server=on,wait=off`, ...guest.words, ...words],
    ]
    const child = spawn(command[0]!, command.slice(1), { stdio: 'pipe' })
    const vm = new QemuVm(child, guest)
    await once(child, 'spawn')
    try {
      await vm.#connect(qmp)
    } catch (error) {
      await vm.kill()
      throw error
    }
    return vm
  }

  private constructor(child: ChildProcess, guest: QemuGuest) {
    this.#child = child
    this.#guest = guest
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
  static async snapshot(
    folder: string,
    guest: QemuGuest,
    memoryFile: string,
    stateFile: string,
  ): Promise<void> {
    const words = [...backend(guest, memoryFile, 'on'), ...guest.boot]
    const vm = await QemuVm.start(folder, guest, words)
    try {
      await vm.#line(guest.ready)
      await vm.ask()
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
    guest: QemuGuest,
    memoryFile: string,
    stateFile: string,
    env?: NodeJS.ProcessEnv,
  ): Promise<QemuVm> {
    const words = [...backend(guest, memoryFile, 'off'), '-incoming', 'defer']
    const vm = await QemuVm.start(folder, guest, words, env)
    try {
      await vm.#ignoreSharedMemory()
      await vm.qmp('migrate-incoming', { uri: `exec:cat ${stateFile}` })
      await vm.#untilMigrated()
      return vm
    } catch (error) {
      await vm.kill()
      throw error
    }
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

  /** Sends a request to the guest, and waits for the right response. */
  async ask(): Promise<void> {
    this.#child.stdin!.write(this.#guest.request)
    await this.#line(this.#guest.response)
  }

  async #line(pattern: RegExp): Promise<void> {
    while (!this.#lines.some((line) => pattern.test(line))) {
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
    await this.qmp('pmemsave', { val: 0, size: this.#guest.bytes, filename: path })
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
      const socket = connect(path).on('error', () => {})
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
    // An end in the middle of a command is reported by `exited`.
    const lines = createInterface({ input: this.#qmp }).on('error', () => {})
    lines.on('line', (line) => {
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

  /** Result of `work`; rejects if the process ends first. */
  #orExit<T>(work: Promise<T>): Promise<T> {
    const end = this.exited.then((code) => {
      throw new Error(`${QEMU} ended (${code}): ${this.stderr}`)
    })
    end.catch(() => {})
    return Promise.race([work, end])
  }
}
