// @ts-check
// Requests to a function in a guest, with answers of the same code on the host.
import { execFile } from 'node:child_process'
import { join } from 'node:path'
import { guestFolder } from '../../native/guest/linux/functions.mjs'
import { findParts } from '../../native/guest/linux/packages.mjs'

/** @typedef {import('../../native/guest/linux/guest.mjs').GuestVm} GuestVm */
/** @typedef {import('./inputs.mjs').Drawn} Drawn */

const answerLines = `
import importlib, json, sys
sys.path.insert(0, sys.argv[1])
function = importlib.import_module(sys.argv[2])
for line in sys.stdin:
    print(json.dumps(function.handle(json.loads(line))))
`

/**
 * The host's answers, from the same code.
 * @param {string} name
 * @param {any[]} requests
 * @returns {Promise<any[]>}
 */
async function askHost(name, requests) {
  const folder = join(guestFolder, 'functions')
  if (name === 'nodejs') {
    const { handle } = await import(join(folder, `${name}.mjs`))
    return requests.map((request) => handle(request))
  }
  const words = ['-I', '-S', '-B', '-c', answerLines, folder, name]
  const printed = await new Promise((resolve, reject) => {
    const options = { maxBuffer: 2 ** 26 }
    const child = execFile(findParts().python, words, options, (error, stdout) =>
      error ? reject(error) : resolve(stdout),
    )
    child.stdin?.end(requests.map((request) => `${JSON.stringify(request)}\n`).join(''))
  })
  return printed
    .trimEnd()
    .split('\n')
    .map((/** @type {string} */ line) => JSON.parse(line))
}

/**
 * The host's answers to requests that do not fail.
 * @param {string} name
 * @param {readonly Drawn[]} requests
 */
export async function answersTo(name, requests) {
  const answered = requests.filter(({ outlier }) => outlier !== 'failed')
  const answers = await askHost(
    name,
    answered.map(({ request }) => request),
  )
  return new Map(answered.map((drawn, index) => [drawn, answers[index]]))
}

/**
 * Asks a guest, and throws unless it answers as the host, or fails as it must.
 * @param {GuestVm} vm
 * @param {Drawn} drawn
 * @param {any} expected
 */
export async function ask(vm, { request, outlier }, expected) {
  if (outlier === 'failed') {
    const failure = await vm.invoke(request).catch((error) => error.message)
    if (!/failed in the guest/.test(failure)) throw new Error(`no failure: ${failure}`)
    return
  }
  const { answer } = await vm.invoke(request)
  if (JSON.stringify(answer) !== JSON.stringify(expected)) throw new Error('a wrong answer')
}
