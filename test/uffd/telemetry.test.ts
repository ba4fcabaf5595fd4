import diagnosticsChannel from 'node:diagnostics_channel'
import { context, trace } from '@opentelemetry/api'
import { AsyncLocalStorageContextManager } from '@opentelemetry/context-async-hooks'
import {
  BasicTracerProvider,
  InMemorySpanExporter,
  type ReadableSpan,
  SimpleSpanProcessor,
} from '@opentelemetry/sdk-trace-base'
import { afterEach, describe, expect, test } from 'vitest'
import type { RestoreMessage } from '../../src/index.js'
import { recordedSet, scene, serveScene } from '../support/scratch.js'

describe('the diagnostics channel', () => {
  const messages: RestoreMessage[] = []
  const listen = (message: unknown) => messages.push(message as RestoreMessage)

  afterEach(() => {
    diagnosticsChannel.unsubscribe('reap-trace:restore', listen)
    messages.length = 0
  })

  test('has the events of every session, with its handler and snapshot', async () => {
    diagnosticsChannel.subscribe('reap-trace:restore', listen)
    const s = await scene({ pages: 64 })
    const handler = await serveScene(s, { workingSet: await recordedSet(s, [1, 2, 3]) })
    messages.splice(
      0,
      messages.findLastIndex(({ event }) => event.type === 'listening'),
    )
    await s.vmm.handshake(s.socketPath)
    await handler.prefetched
    handler.ready()
    await s.vmm.exit(0)
    await handler.closed
    expect(messages.map(({ event }) => event.type)).toEqual([
      'listening',
      'connected',
      'prefetched',
      'ready',
      'closed',
    ])
    for (const message of messages) {
      expect(message.handler).toBe(handler)
      expect(message.snapshot.memoryFile).toBe(s.memoryFile)
    }
  })
})

describe('OpenTelemetry', () => {
  const exporter = new InMemorySpanExporter()
  const provider = new BasicTracerProvider({ spanProcessors: [new SimpleSpanProcessor(exporter)] })

  function register() {
    context.setGlobalContextManager(new AsyncLocalStorageContextManager().enable())
    trace.setGlobalTracerProvider(provider)
  }

  afterEach(() => {
    exporter.reset()
    trace.disable()
    context.disable()
  })

  const spans = () =>
    new Map(exporter.getFinishedSpans().map((span) => [span.name.replace('reap-trace.', ''), span]))
  const ms = ([seconds, nanoseconds]: readonly [number, number]) =>
    seconds * 1e3 + nanoseconds / 1e6
  const range = (span: ReadableSpan | undefined): [number, number] =>
    span ? [ms(span.startTime), ms(span.endTime)] : [Number.NaN, Number.NaN]

  test('gets the spans of a restore within the context of the caller', async () => {
    const s = await scene({ pages: 1024 })
    const workingSet = await recordedSet(
      s,
      Array.from({ length: 512 }, (_, page) => page),
    )
    register()
    const began = Date.now()
    const request = trace.getTracer('test').startSpan('request')
    const handler = await context.with(trace.setSpan(context.active(), request), () =>
      serveScene(s, { workingSet }),
    )
    await s.vmm.handshake(s.socketPath)
    await handler.prefetched
    await s.vmm.read(1, 700)
    expect(exporter.getFinishedSpans()).toEqual([])
    handler.ready()
    const made = spans()
    const ended = Date.now()
    expect([...made.keys()].sort()).toEqual(
      ['fetch', 'handshake', 'install', 'listen', 'prefetch', 'ready', 'restore'].sort(),
    )
    const idOf = (name: string) => made.get(name)?.spanContext().spanId
    const parentOf = (name: string) => made.get(name)?.parentSpanContext?.spanId
    expect(parentOf('restore')).toBe(request.spanContext().spanId)
    for (const name of ['listen', 'handshake', 'prefetch', 'ready']) {
      expect(parentOf(name)).toBe(idOf('restore'))
    }
    expect(parentOf('fetch')).toBe(idOf('prefetch'))
    expect(parentOf('install')).toBe(idOf('prefetch'))
    const [from, to] = range(made.get('restore'))
    expect(from).toBeGreaterThanOrEqual(began - 2)
    expect(to).toBeLessThanOrEqual(ended + 2)
    for (const span of made.values()) {
      const [start, end] = range(span)
      expect(start).toBeGreaterThanOrEqual(from - 2)
      expect(end).toBeGreaterThanOrEqual(start)
      expect(end).toBeLessThanOrEqual(to + 2)
    }
    expect(made.get('prefetch')?.attributes).toMatchObject({
      'reap_trace.pages': 512,
      'reap_trace.complete': true,
    })
    expect(made.get('restore')?.attributes).toMatchObject({
      'reap_trace.memory_file': s.memoryFile,
      'reap_trace.faults.residual': 1,
    })
    await handler.close()
    expect(exporter.getFinishedSpans()).toHaveLength(7)
  })

  test('gets the failure of a session that no VM has reached', async () => {
    const s = await scene({ pages: 16 })
    register()
    const handler = await serveScene(s, { connectTimeoutMs: 20 })
    await expect(handler.closed).rejects.toMatchObject({ code: 'ERR_HANDSHAKE_TIMEOUT' })
    const made = spans()
    expect([...made.keys()].sort()).toEqual(['listen', 'restore'])
    expect(made.get('restore')?.status).toMatchObject({ code: 2 })
    expect(made.get('restore')?.events[0]?.name).toBe('exception')
  })

  test('gets nothing without a provider', async () => {
    const s = await scene({ pages: 16 })
    const handler = await serveScene(s)
    await handler.close()
    expect(exporter.getFinishedSpans()).toEqual([])
  })
})
