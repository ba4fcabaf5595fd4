import { pathToFileURL } from 'node:url'

/** This file, as source or in dist/, or the bundle that it went into. */
// esbuild leaves import.meta empty in a CommonJS bundle, which has a __filename instead.
const here = import.meta.url ?? pathToFileURL(__filename).href

/** The package, one folder above this file; anything when the package was bundled. */
export const packageRoot = new URL('..', here)

/** The folder of this file. Next to a bundle, it is where its native parts can be. */
export const ownFolder = new URL('.', here)
