import { defineConfig } from 'vitest/config'

export default defineConfig({
  test: {
    include: ['test/**/*.test.ts'],
    typecheck: { enabled: true, include: ['test/**/*.test-d.ts'] },
    // A native crash in a fork is one reported error; in a thread it would end the runner.
    pool: 'forks',
    testTimeout: 30_000,
    hookTimeout: 30_000,
  },
})
