import { defineConfig } from 'tsup'

export default defineConfig({
  entry: { index: 'src/index.ts', cli: 'src/cli/main.ts' },
  format: 'esm',
  target: 'node20',
  // Otherwise a class that refers to itself is renamed, and prints as _Trace.
  keepNames: true,
  // tsup passes baseUrl to the declaration build, which TypeScript 6 calls deprecated.
  dts: {
    entry: { index: 'src/index.ts' },
    compilerOptions: { ignoreDeprecations: '6.0', stripInternal: true },
  },
  clean: true,
  silent: true,
  sourcemap: false,
})
