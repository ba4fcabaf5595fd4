import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { readFile, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import ts from 'typescript'
import { onTestFinished } from 'vitest'

const root = fileURLToPath(new URL('../..', import.meta.url))

/** Node runs it as it is from 22.18 on; before, without its types and inside this package. */
async function runnable(): Promise<string> {
  const source = join(root, 'examples/firecracker.ts')
  if ((process.features as { typescript?: unknown }).typescript) return source
  const { outputText } = ts.transpileModule(await readFile(source, 'utf8'), {
    compilerOptions: { module: ts.ModuleKind.ESNext, target: ts.ScriptTarget.ES2022 },
  })
  const script = join(root, `build/example-firecracker-${process.pid}.mjs`)
  await writeFile(script, outputText)
  onTestFinished(() => rm(script, { force: true }))
  return script
}

/** Runs examples/firecracker.ts to its end. `phases` are those that it names, by the alphabet. */
export async function runExample(...words: string[]) {
  const child = spawn(process.execPath, [await runnable(), ...words], {
    stdio: ['ignore', 'pipe', 'pipe'],
  })
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
