// Builds dist/report.html, the page of `reap-trace report` without its data: script, styles and
// chart library in one file that needs no network. Called after tsup, which empties dist/.
import { readFileSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { build } from 'esbuild'

const root = fileURLToPath(new URL('..', import.meta.url))
const page = join(root, 'src/report/page')

/** Packages whose code is in the page. */
const bundled = ['uplot']

const { outputFiles } = await build({
  entryPoints: [join(page, 'main.ts')],
  outdir: 'out',
  write: false,
  bundle: true,
  minify: true,
  format: 'esm',
  platform: 'browser',
  // Where DecompressionStream reads deflate-raw.
  target: ['chrome103', 'firefox113', 'safari16.4'],
  legalComments: 'none',
})
const output = (extension) => outputFiles.find(({ path }) => path.endsWith(extension)).text.trim()

const licenses = bundled.map((name) => {
  const folder = join(createRequire(import.meta.url).resolve(`${name}/package.json`), '..')
  const { version } = JSON.parse(readFileSync(join(folder, 'package.json'), 'utf8'))
  const text = readFileSync(join(folder, 'LICENSE'), 'utf8').trim()
  return `<!--\nThis page contains ${name} ${version}.\n\n${text}\n-->`
})
const template = readFileSync(join(page, 'template.html'), 'utf8')
writeFileSync(
  join(root, 'dist/report.html'),
  template
    .replace('<!--LICENSES-->', () => licenses.join('\n'))
    .replace('/*STYLE*/', () => output('.css'))
    .replace('/*SCRIPT*/', () => output('.js').replaceAll('</script', '<\\/script')),
)
