// @ts-check
// Requests as users would send them: their kinds and sizes are drawn.

/** @typedef {() => number} Random  in [0, 1) */
/** @typedef {{ variant: string, request: any, outlier?: 'huge' | 'failed' }} Drawn */
/** @typedef {(random: Random) => Drawn} Distribution */

const between = (
  /** @type {Random} */ random,
  /** @type {number} */ low,
  /** @type {number} */ high,
) => low + Math.floor(random() * (high - low + 1))

/** Log-uniform: small ones are as frequent as large ones. */
const sizeBetween = (
  /** @type {Random} */ random,
  /** @type {number} */ low,
  /** @type {number} */ high,
) => Math.round(low * (high / low) ** random())

/**
 * @template T
 * @param {Random} random
 * @param {readonly T[]} list
 * @returns {T}
 */
const pick = (random, list) => /** @type {T} */ (list[Math.floor(random() * list.length)])

/** A number below `count`, with the popularity of 1 / (number + 1): a few are asked for most. */
const popular = (/** @type {Random} */ random, /** @type {number} */ count) =>
  Math.floor((count + 1) ** random()) - 1

const hex = (/** @type {Random} */ random, /** @type {number} */ digits) =>
  Array.from({ length: digits }, () => between(random, 0, 15).toString(16)).join('')

const words = (/** @type {string} */ text) => text.split(' ')
const common = words('the a an this that it is was very not quite and but so we they never always')
const adjectives = words('great good fine dull slow bright clever weak strong funny sad long short')
const topics = {
  film: words('film book plot story actor scene ending start role music camera script'),
  kitchen: words('knife pan oven pot recipe blade handle steel soup bread lid stove'),
}
/** @typedef {keyof typeof topics} Topic */

/** Frequent words, and names, most of which are rare. */
function review(/** @type {Random} */ random, /** @type {Topic} */ topic) {
  const word = () => {
    const kind = random()
    if (kind < 0.4) return pick(random, common)
    if (kind < 0.6) return pick(random, adjectives)
    return kind < 0.85 ? pick(random, topics[topic]) : `${topic}${popular(random, 2000)}`
  }
  return Array.from({ length: sizeBetween(random, 30, 240) }, word).join(' ')
}

const reviews = (/** @type {Random} */ random, topic = /** @type {Topic} */ ('film')) =>
  Array.from({ length: between(random, 1, 12) }, () => review(random, topic))

function json(/** @type {Random} */ random, /** @type {'orders' | 'devices'} */ document) {
  const entries = { orders: 1000, devices: 2000 }[document]
  const count = sizeBetween(random, 40, entries * 0.4)
  // Recent entries, which come first, are asked for more than old ones.
  const first = Math.floor(random() ** 2 * (entries - count))
  return { variant: document, request: { document, first, count } }
}

const rotation = (/** @type {Random} */ random, /** @type {0 | 1} */ image) => {
  const degrees = pick(random, [90, 180, 270])
  return { variant: `${image ? 'large' : 'small'}, ${degrees}°`, request: { image, degrees } }
}

function basket(/** @type {Random} */ random, /** @type {number} */ count) {
  const items = Array.from({ length: count }, () => ({
    id: `p${popular(random, 5000)}`,
    units: between(random, 1, 5),
  }))
  const currency = random() < 0.8 ? 'EUR' : 'JPY'
  return { variant: currency, request: { user: `u${hex(random, 6)}`, items, currency } }
}

/** @type {Readonly<Record<string, Distribution>>} */
export const usual = {
  helloworld(random) {
    const times = sizeBetween(random, 1, 60)
    return { variant: 'greet', request: { name: `guest ${hex(random, 8)}`, times } }
  },
  chameleon(random) {
    const [variant, cell] = pick(random, [
      ['plain', '{row}.{column}'],
      ['escaped', '"{column}" of <{row}>'],
      ['aligned', '{row:>6} & {column:05}'],
    ])
    const [rows, columns] = [sizeBetween(random, 8, 120), between(random, 3, 14)]
    return { variant, request: { title: `table ${hex(random, 4)}`, rows, columns, cell } }
  },
  pyaes(random) {
    const length = sizeBetween(random, 64, 3072)
    const request = { key: hex(random, 32), message: `${hex(random, 12)} `, length }
    return { variant: length < 512 ? 'short' : 'long', request }
  },
  image_rotate: (random) => rotation(random, random() < 0.75 ? 0 : 1),
  json_serdes: (random) => json(random, random() < 0.7 ? 'orders' : 'devices'),
  lr_serving: (random) => ({ variant: 'rate', request: { reviews: reviews(random) } }),
  compress(random) {
    const length = sizeBetween(random, 16 << 10, 256 << 10)
    const offset = Math.floor(random() ** 2 * ((2 << 20) - length))
    const level = pick(random, [1, 6, 6, 9])
    return { variant: `level ${level}`, request: { offset, length, level } }
  },
  sqlite(random) {
    const variant = pick(random, ['lamp%', '%chair%', '%table 1%', 'rug 4_'])
    const request = { region: popular(random, 10), since: between(random, 0, 29), pattern: variant }
    return { variant, request }
  },
  nodejs: (random) => basket(random, sizeBetween(random, 5, 250)),
}

/**
 * From the first distribution to the second.
 * @type {Readonly<Record<string, readonly [Distribution, Distribution]>>}
 */
export const shifts = {
  image_rotate: [(random) => rotation(random, 0), (random) => rotation(random, 1)],
  lr_serving: [
    (random) => ({ variant: 'rate', request: { reviews: reviews(random, 'film') } }),
    (random) => ({ variant: 'rate', request: { reviews: reviews(random, 'kitchen') } }),
  ],
  nodejs: [
    (random) => basket(random, sizeBetween(random, 80, 250)),
    (random) => basket(random, sizeBetween(random, 5, 15)),
  ],
}

/** @type {Readonly<Record<string, (random: Random, index: number) => Drawn>>} */
export const outliers = {
  json_serdes: () => ({
    variant: 'devices',
    request: { document: 'devices', first: 0, count: 2000 },
    outlier: 'huge',
  }),
  // Fails at the last review.
  lr_serving: (random) => ({
    variant: 'rate',
    request: { reviews: [...reviews(random), 0] },
    outlier: 'failed',
  }),
  // Every second one fails at once.
  nodejs(random, index) {
    if (index % 2 === 0) return { ...basket(random, 2500), outlier: 'huge' }
    const { variant, request } = basket(random, 100)
    return { variant, request: { ...request, currency: 'none' }, outlier: 'failed' }
  },
}
