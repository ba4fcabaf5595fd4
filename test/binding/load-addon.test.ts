import { execFile } from 'node:child_process'
import { cpSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import { promisify } from 'node:util'
import { describe, expect, it } from 'vitest'
import { hintForLoad, loadAddon } from '../../src/binding/load-addon.js'
import { nativePath, programPath } from '../../src/binding/native-path.js'
import { scratchFolder } from '../support/scratch.js'

const addon = () => readFileSync(nativePath('reap_trace.node'))

/** The failure of loading these bytes as an addon. */
async function failureOf(bytes: Uint8Array): Promise<unknown> {
  const path = join(await scratchFolder(), 'reap_trace.node')
  writeFileSync(path, bytes)
  try {
    loadAddon(path)
  } catch (error) {
    return error
  }
  throw new Error('it loads')
}

const replaced = (from: string, to: string): Buffer =>
  Buffer.from(addon().toString('latin1').replaceAll(from, to), 'latin1')

describe('an addon that does not load', () => {
  it.each([
    ['is empty', () => Buffer.alloc(0)],
    ['ends in its header', () => addon().subarray(0, 10)],
    ['ends in its code, where the loader would end the process', () => addon().subarray(0, 9000)],
    ['is not an ELF file', () => Buffer.concat([Buffer.from('x'), addon()])],
  ])('is called damaged when the file %s', async (_, bytes) => {
    expect(await failureOf(bytes())).toMatchObject({
      code: 'ERR_NATIVE_UNAVAILABLE',
      message: expect.stringMatching(/reap_trace\.node does not load: the file is damaged$/),
      hint: expect.stringMatching(/^Install reap-trace again/),
      path: expect.stringMatching(/reap_trace\.node$/),
    })
  })

  it('is called one for another architecture when it is', async () => {
    const other = addon()
    const isX64 = process.arch === 'x64'
    other.writeUInt16LE(isX64 ? 183 : 62, 18)
    expect(await failureOf(other)).toMatchObject({
      message: expect.stringContaining(`the file is for ${isX64 ? 'arm64' : 'x64'}, Node is for`),
      hint: expect.stringContaining('the Node that runs it'),
    })
  })

  it('names the C library when that is too old', async () => {
    expect(await failureOf(replaced('GLIBC_2.34\0', 'GLIBC_9.34\0'))).toMatchObject({
      message: expect.stringContaining('GLIBC_9.34'),
      hint: expect.stringContaining('glibc 2.34'),
    })
  })

  it('names the libraries that it needs when one is missing', async () => {
    expect(await failureOf(replaced('libstdc++.so.6\0', 'libstdc--.so.6\0'))).toMatchObject({
      message: expect.stringContaining('libstdc--.so.6'),
      hint: expect.stringContaining('libstdc++.so.6'),
    })
  })

  it.each([
    [
      'musl',
      'Error loading shared library ld-linux-x86-64.so.2: No such file or directory (needed by /x)',
    ],
    ['musl', 'Error relocating /x/reap_trace.node: __isoc23_strtol: symbol not found'],
    ['noexec', '/x/reap_trace.node: failed to map segment from shared object'],
  ])('is explained by %s from the sentence of the loader', (word, message) => {
    expect(hintForLoad(message)).toContain(word)
  })
})

/** Standard output of a Node that prints the code, sentence and hint of a failed start. */
async function startWith(flags: string[] = [], prelude = '', root = process.cwd()) {
  const code = `${prelude}
    import(${JSON.stringify(pathToFileURL(join(root, 'dist/index.js')))})
      .then(({ WorkingSet }) => WorkingSet.read('none'))
      .catch(({ code, message, hint }) => console.log(code, '|', message, '|', hint))`
  return (await promisify(execFile)(process.execPath, [...flags, '-e', code])).stdout
}

describe('a start without the addon', () => {
  const permission =
    Number(process.versions.node.split('.')[0]) < 24 ? '--experimental-permission' : '--permission'
  const readable = (...names: string[]) =>
    names.map((name) => `--allow-fs-read=${join(process.cwd(), name)}`)

  it.each([
    ['--no-addons', ['--no-addons'], /--no-addons/],
    ['no --allow-addons', [permission, '--allow-fs-read=*'], /--allow-addons/],
    [
      'no --allow-fs-read for it',
      [permission, '--allow-addons', ...readable('dist/*', 'node_modules/*', 'package.json')],
      /--allow-fs-read=\S/,
    ],
  ])('says that Node runs with %s', async (_, flags, hint) => {
    const [code, , advice] = (await startWith(flags)).split(' | ')
    expect(code).toBe('ERR_NATIVE_UNAVAILABLE')
    expect(advice).toMatch(hint)
  })

  it.each([
    ['platform', 'darwin', /reap-trace does not run on darwin-.* userfaultfd is a Linux feature/],
    ['arch', 'riscv64', /has no reap_trace\.node for linux-riscv64 .* x64 and arm64 only/],
  ])('says that the %s %s has none', async (name, value, sentence) => {
    const root = await packageWithout()
    const prelude = `Object.defineProperty(process, '${name}', { value: '${value}' })`
    const said = await startWith([], prelude, root)
    expect(said).toMatch(/^ERR_NATIVE_UNAVAILABLE \| /)
    expect(said).toMatch(sentence)
  })

  it('says that the package is incomplete, and what builds a checkout', async () => {
    const root = await packageWithout()
    expect(await startWith([], '', root)).toMatch(/^ERR_NATIVE_UNAVAILABLE .* install it again/)
    cpSync('binding.gyp', join(root, 'binding.gyp'))
    expect(await startWith([], '', root)).toMatch(/^ERR_NATIVE_UNAVAILABLE .* `npm run build`/)
  })
})

/** A copy of the package that lacks its native parts. */
async function packageWithout(): Promise<string> {
  const root = await scratchFolder()
  cpSync('dist', join(root, 'dist'), { recursive: true })
  cpSync('package.json', join(root, 'package.json'))
  symlinkSync(join(process.cwd(), 'node_modules'), join(root, 'node_modules'))
  return root
}

it('the help of the small VMM lists its commands with their arguments', async () => {
  const { stdout } = await promisify(execFile)(programPath('reap-guest'), ['vmm', '--help'])
  for (const line of [
    'map PAGE_SIZE LIST',
    'handshake SOCKET',
    'read PAGE...',
    'bg NAME COMMAND',
  ]) {
    expect(stdout).toMatch(new RegExp(`^  ${line}`, 'm'))
  }
})
