import { execFileSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { dirname, join, normalize } from 'node:path'
import { describe, expect, it } from 'vitest'

const [{ files }] = JSON.parse(
  execFileSync('npm', ['pack', '--dry-run', '--json', '--ignore-scripts'], { encoding: 'utf8' }),
) as [{ files: { path: string }[] }]
const packed = files.map(({ path }) => path)
// CONTRIBUTING.md and bench/README.md are about a checkout, and link into it.
const pages = packed.filter((path) => /^(README|CHANGELOG|docs\/.*)\.md$/.test(path))

const text = (path: string): string => readFileSync(path, 'utf8')

/** What a forge makes of headings, for links into a page. */
const anchors = (page: string): string[] =>
  [...text(page).matchAll(/^#+ (.*)$/gm)].map(([, heading]) =>
    heading!
      .toLowerCase()
      .replace(/\[([^\]]*)\]\([^)]*\)/g, '$1')
      .replace(/[^\p{L}\p{N}_\- ]/gu, '')
      .replaceAll(' ', '-'),
  )

/** Relative targets of links and pictures, as paths from the package. */
function targets(page: string): { path: string; anchor: string | undefined }[] {
  const prose = text(page).replace(/^```.*?^```/gms, '')
  const links = [...prose.matchAll(/\]\(([^)\s]+)\)|(?:src|srcset)="([^"]+)"/g)]
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
