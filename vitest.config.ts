import { defineConfig } from 'vitest/config'

export default defineConfig({
  test: {
    include: ['test/**/*.test.ts', 'bench/test/*.test.ts'],
    globalSetup: 'test/support/proofs-setup.ts',
    typecheck: { enabled: true, include: ['test/**/*.test-d.ts'] },
    // A native crash in a fork is one reported error; in a thread it would end the runner.
    pool: 'forks',
    // Long enough for a machine that is busy with something else: a test that fails says so at once,
    // and only one that hangs takes its time.
    testTimeout: 60_000,
    hookTimeout: 60_000,
    expect: { poll: { timeout: 20_000 } },
  },
})
