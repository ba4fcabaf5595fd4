import { pathToFileURL } from 'node:url'

/** URL of this file, in src/ or dist/, or of the bundle that contains it. */
// esbuild leaves import.meta empty in a CommonJS bundle, which has a __filename instead.
const here = import.meta.url ?? pathToFileURL(__filename).href

/** Root of the package, one folder above this file; meaningless in a bundle. */
export const packageRoot = new URL('..', here)

/** Folder of this file; the native parts may be next to a bundle. */
export const ownFolder = new URL('.', here)
