/** Slots of pages by their numbers: an open-addressing table, whose lookups allocate nothing. */
export class PageIndex {
  #pages = new Uint32Array(1024)
  /** Slot + 1; 0 is empty. */
  #slots = new Uint32Array(1024)
  #count = 0

  /** Slot of a page, or -1. */
  get(page: number): number {
    const mask = this.#slots.length - 1
    for (let at = spread(page) & mask; ; at = (at + 1) & mask) {
      const slot = this.#slots[at]!
      if (slot === 0) return -1
      if (this.#pages[at] === page) return slot - 1
    }
  }

  /** Adds a page that is not there. */
  add(page: number, slot: number): void {
    if (2 * ++this.#count > this.#slots.length) this.#grow()
    this.#put(page, slot + 1)
  }

  #put(page: number, entry: number): void {
    const mask = this.#slots.length - 1
    let at = spread(page) & mask
    while (this.#slots[at] !== 0) at = (at + 1) & mask
    this.#pages[at] = page
    this.#slots[at] = entry
  }

  #grow(): void {
    const [pages, slots] = [this.#pages, this.#slots]
    this.#pages = new Uint32Array(2 * pages.length)
    this.#slots = new Uint32Array(2 * slots.length)
    slots.forEach((entry, i) => {
      if (entry !== 0) this.#put(pages[i]!, entry)
    })
  }
}

/** The high bits are spread best; the rest are enough for all pages of 64 GiB. */
const SPREAD_SHIFT = 7
const spread = (page: number): number => Math.imul(page, 0x9e3779b1) >>> SPREAD_SHIFT
