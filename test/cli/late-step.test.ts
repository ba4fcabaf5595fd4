import { setTimeout as sleep } from 'node:timers/promises'
import { describe, expect, it } from 'vitest'
import { lateStep } from '../../src/cli/session/late-step.js'

/** A session, and a function that reports its connection. */
function session(times: { readonly connected?: number }) {
  let report = () => {}
  const event = new Promise<never>((resolve) => {
    report = resolve as () => void
  })
  const handler = { connected: event, closed: event, times: () => ({ listening: 1, ...times }) }
  return { handler, report }
}

describe('the connection of a VM whose COMMAND has ended', () => {
  it('waits for the event of a step that is reached, however late it is', async () => {
    const { handler, report } = session({ connected: 2 })
    let isOver = false
    const over = lateStep(handler, 'connected').then(() => {
      isOver = true
    })
    await sleep(300)
    expect(isOver).toBe(false)
    report()
    await over
  })

  it('waits only a moment for a step that is not reached', async () => {
    await lateStep(session({}).handler, 'connected')
  })
})
