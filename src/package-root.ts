/** The folder of the package. This file is one folder below it, as source and in dist/. */
export const packageRoot = new URL('..', import.meta.url)
