import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { fileURLToPath } from 'node:url'
import { onTestFinished } from 'vitest'

const example = fileURLToPath(new URL('../../examples/firecracker.mjs', import.meta.url))

/** Runs the example to its end. `phases` are the phases that it prints, sorted. */
export async function runExample(...words: string[]) {
  const child = spawn(process.execPath, [example, ...words], { stdio: ['ignore', 'pipe', 'pipe'] })
  onTestFinished(() => void child.kill('SIGKILL'))
  let output = ''
  for (const stream of [child.stdout, child.stderr]) {
    stream.setEncoding('utf8').on('data', (text: string) => {
      output += text
    })
  }
  const [code] = await once(child, 'close')
  return { code, phases: (output.match(/(?<= ms {2})[a-z]+/g) ?? []).sort(), output }
}
