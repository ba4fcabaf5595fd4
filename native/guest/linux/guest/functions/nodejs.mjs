// A web handler as one writes it for Node.js: prices a basket, renders it as HTML.
import { createHash } from 'node:crypto'

export const inputs = {
  '100 items': { user: 'u17', items: basket(100, 7), currency: 'EUR' },
  '250 items': { user: 'u <230>', items: basket(250, 31), currency: 'JPY' },
}

const catalogue = new Map(
  Array.from({ length: 5000 }, (_, index) => {
    const id = `p${index}`
    const tags = [`kind-${index % 17}`, `shop-${index % 5}`]
    return [id, { id, name: `Product <${index}>`, cents: 100 + ((index * 7919) % 90000), tags }]
  }),
)
const rates = { EUR: { digits: 2, per: 1 }, JPY: { digits: 0, per: 162.5 } }

function basket(count, step) {
  return Array.from({ length: count }, (_, index) => ({
    id: `p${(index * step * 37) % 5000}`,
    units: 1 + ((index * step) % 4),
  }))
}

const escapes = { '&': '&amp;', '<': '&lt;', '>': '&gt;', '"': '&quot;' }
const escapeHtml = (text) => text.replace(/[&<>"]/g, (character) => escapes[character])

export function handle(body) {
  const { user, items, currency } = body
  const { digits, per } = rates[currency]
  const lines = items
    .map(({ id, units }) => ({ ...catalogue.get(id), units }))
    .map((line) => ({ ...line, total: (line.units * line.cents * per) / 100 }))
    .sort((a, b) => b.total - a.total || a.id.localeCompare(b.id, 'en'))
  const kinds = new Set(lines.flatMap(({ tags }) => tags))
  const rows = lines.map(
    ({ name, units, total }) =>
      `<tr><td>${escapeHtml(name)}</td><td>${units}</td><td>${total.toFixed(digits)}</td></tr>`,
  )
  const page = `<h1>${escapeHtml(user)}</h1><table>${rows.join('')}</table>`
  return {
    total: lines.reduce((sum, { total }) => sum + total, 0).toFixed(digits),
    kinds: kinds.size,
    etag: createHash('sha256').update(page).digest('hex'),
    length: page.length,
  }
}
