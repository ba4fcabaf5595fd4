import { existsSync, readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { ReapTraceError } from '../errors.js'
import { checkOptions, oneOf, required } from '../options.js'
import { ownFolder, packageRoot } from '../package-root.js'

type NativePart = 'reap_trace.node' | 'reap-guest' | 'reap-interposer.so' | 'reap-microvm'

/**
 * Path of a native part: built in this checkout, shipped with the package, or copied next to a
 * bundle.
 *
 * @throws ReapTraceError `ERR_NATIVE_UNAVAILABLE` if there is none for this machine.
 */
export function nativePath(name: NativePart): string {
  const machine = `${process.platform}-${process.arch}`
  if (process.platform !== 'linux') {
    throw new ReapTraceError('ERR_NATIVE_UNAVAILABLE', `reap-trace does not run on ${machine}`, {
      hint: 'userfaultfd is a Linux feature. On other systems the package only installs and type-checks.',
    })
  }
  const prebuilt = `prebuilds/${machine}/${name}`
  const paths = [
    new URL(`build/Release/${name}`, packageRoot),
    new URL(prebuilt, packageRoot),
    new URL(prebuilt, ownFolder),
  ].map((url) => fileURLToPath(url))
  const found = paths.find(exists)
  if (found) return found
  throw new ReapTraceError('ERR_NATIVE_UNAVAILABLE', `reap-trace has no ${name} for ${machine}`, {
    path: paths[1],
    hint: hintForMissing(paths[1]!),
  })
}

/**
 * Path of a program that the package ships for tests and demonstrations: `reap-guest`, a small VMM
 * for testing a handler (`reap-guest vmm --help` lists its commands), and `reap-microvm` (x64), a
 * guest that Firecracker boots.
 *
 * @throws TypeError for another name.
 * @throws ReapTraceError `ERR_NATIVE_UNAVAILABLE` if there is none for this machine.
 */
export function programPath(name: 'reap-guest' | 'reap-microvm'): string {
  const rule = required(oneOf('reap-guest', 'reap-microvm'))
  checkOptions('programPath()', { name }, { name: rule }, 'argument')
  return nativePath(name)
}

// Under the permission model, Node 20 throws where later versions return false.
function exists(path: string): boolean {
  try {
    return existsSync(path)
  } catch {
    return false
  }
}

function hintForMissing(path: string): string {
  if (process.permission?.has('fs.read', path) === false) {
    return `Node's permission model hides it: add --allow-fs-read=${fileURLToPath(packageRoot)} and --allow-addons.`
  }
  if (!['x64', 'arm64'].includes(process.arch)) return 'There are binaries for x64 and arm64 only.'
  if (isBundled()) {
    return 'A bundler moved the code away from its native parts: mark reap-trace as external (esbuild --external:reap-trace), or copy node_modules/reap-trace/prebuilds next to the bundle.'
  }
  return exists(fileURLToPath(new URL('binding.gyp', packageRoot)))
    ? 'Run `npm run build` in this checkout.'
    : 'The package is incomplete: install it again.'
}

/** Whether this code runs outside its package. */
function isBundled(): boolean {
  try {
    const { name } = JSON.parse(readFileSync(new URL('package.json', packageRoot), 'utf8'))
    return name !== 'reap-trace'
  } catch {
    return true
  }
}
