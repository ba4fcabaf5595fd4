import { existsSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { ReapTraceError } from '../errors.js'
import { packageRoot } from '../package-root.js'

/** Where the compiled parts may be: what this checkout built, then what the package brought. */
export function nativePath(
  name: 'reap_trace.node' | 'reap-guest' | 'reap-interposer.so' | 'reap-microvm',
): string {
  const places = [`build/Release/${name}`, `prebuilds/linux-${process.arch}/${name}`]
  const found = places
    .map((place) => fileURLToPath(new URL(place, packageRoot)))
    .find((path) => existsSync(path))
  if (found) return found
  throw new ReapTraceError(
    'ERR_NATIVE_UNAVAILABLE',
    `reap-trace has no ${name} for ${process.platform}-${process.arch}`,
    {
      hint:
        process.platform === 'linux'
          ? 'The package brings it for linux-x64 and linux-arm64; in a checkout, run `npm run build`.'
          : 'userfaultfd is a feature of Linux: run reap-trace there.',
    },
  )
}
