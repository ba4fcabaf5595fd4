import { execFile, execFileSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { mkdir, symlink, writeFile } from 'node:fs/promises'
import { dirname, join, normalize } from 'node:path'
import { promisify } from 'node:util'
import GithubSlugger from 'github-slugger'
import { beforeAll, describe, expect, it } from 'vitest'
import { checkBuild } from '../support/cli-process.js'
import { scratchFolder } from '../support/scratch.js'

const run = promisify(execFile)

const [{ files }] = JSON.parse(
  execFileSync('npm', ['pack', '--dry-run', '--json', '--ignore-scripts'], { encoding: 'utf8' }),
) as [{ files: { path: string }[] }]
const packed = files.map(({ path }) => path)
// CONTRIBUTING.md and bench/README.md are about a checkout, and link into it.
const pages = packed.filter((path) => /^(README|CHANGELOG|docs\/.*)\.md$/.test(path))

const text = (path: string): string => readFileSync(path, 'utf8')
const withoutCode = (page: string): string => page.replace(/^```.*?^```/gms, '')

/** What a forge makes of a page's headings, and the anchors that the page names itself. */
function anchors(page: string): string[] {
  const slugger = new GithubSlugger()
  const prose = withoutCode(text(page))
  const headings = [...prose.matchAll(/^#+ (.*)$/gm)].map(([, heading]) =>
    slugger.slug(heading!.replace(/\[([^\]]*)\]\([^)]*\)/g, '$1')),
  )
  return [...headings, ...[...prose.matchAll(/<a id="([^"]+)">/g)].map(([, id]) => id!)]
}

/** Relative targets of links and pictures, as paths from the package. */
function targets(page: string): { path: string; anchor: string | undefined }[] {
  const links = [...withoutCode(text(page)).matchAll(/\]\(([^)\s]+)\)|(?:src|srcset)="([^"]+)"/g)]
  return links
    .map(([, link, source]) => link ?? source!)
    .filter((link) => !/^[a-z]+:/.test(link))
    .map((link) => {
      const [file = '', anchor] = link.split('#')
      return { path: file === '' ? page : normalize(join(dirname(page), file)), anchor }
    })
}

describe('the package', () => {
  it.each(pages)('has everything that %s links to', (page) => {
    const missing = targets(page)
      .filter(({ path, anchor }) => {
        if (!packed.includes(path)) return true
        return anchor !== undefined && !anchors(path).includes(anchor)
      })
      .map(({ path, anchor }) => (anchor ? `${path}#${anchor}` : path))
    expect(missing).toEqual([])
  })
})

describe('a CommonJS program', () => {
  beforeAll(checkBuild)

  /** A folder with this program and the package in its node_modules. */
  async function programFolder(name: string, program: string): Promise<string> {
    const folder = await scratchFolder()
    await mkdir(join(folder, 'node_modules/@types'), { recursive: true })
    await symlink(process.cwd(), join(folder, 'node_modules/reap-trace'))
    await symlink(
      join(process.cwd(), 'node_modules/@types/node'),
      join(folder, 'node_modules/@types/node'),
    )
    await writeFile(join(folder, name), program)
    return folder
  }

  it('can require the package', async () => {
    const program = "console.log(typeof require('reap-trace').WorkingSet.read)"
    const cwd = await programFolder('use.cjs', program)
    expect((await run(process.execPath, ['use.cjs'], { cwd })).stdout).toBe('function\n')
  })

  it.each(['nodenext', 'node20'])(
    'type-checks with module %s',
    { timeout: 120_000 },
    async (module) => {
      const program =
        "import { serve } from 'reap-trace'\nexport const listen: typeof serve = serve\n"
      const cwd = await programFolder('use.cts', program)
      const flags = ['--noEmit', '--strict', '--types', 'node', '--module', module, 'use.cts']
      const tsc = join(process.cwd(), 'node_modules/typescript/bin/tsc')
      await run(process.execPath, [tsc, ...flags], { cwd })
    },
  )
})
