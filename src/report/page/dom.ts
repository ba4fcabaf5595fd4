type Child = Node | string | undefined

/** A new element with these attributes and children. */
export function element<K extends keyof HTMLElementTagNameMap>(
  tag: K,
  attributes: Readonly<Record<string, string | number | undefined>> = {},
  ...children: readonly Child[]
): HTMLElementTagNameMap[K] {
  const made = document.createElement(tag)
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== undefined) made.setAttribute(name, String(value))
  }
  made.append(...children.filter((child) => child !== undefined))
  return made
}

/** A table with a header row; the first cell of each row is its header. */
export function table(
  head: readonly Child[],
  rows: readonly (readonly Child[])[],
  caption?: string,
): HTMLElement {
  const cells = (row: readonly Child[]) =>
    row.map((cell, i) =>
      i === 0
        ? element('th', { scope: 'row' }, cell)
        : element('td', { class: String(cell).length > 40 ? 'long' : undefined }, cell),
    )
  return element(
    'div',
    { class: 'scroll', tabindex: 0, role: 'group', 'aria-label': caption ?? 'Table' },
    element(
      'table',
      {},
      caption === undefined ? undefined : element('caption', {}, caption),
      head.length === 0
        ? undefined
        : element(
            'thead',
            {},
            element('tr', {}, ...head.map((cell) => element('th', { scope: 'col' }, cell))),
          ),
      element('tbody', {}, ...rows.map((row) => element('tr', {}, ...cells(row)))),
    ),
  )
}

/** A table that is folded away, for readers who want the numbers of a picture. */
export const numbers = (content: HTMLElement): HTMLElement =>
  element('details', {}, element('summary', {}, 'Numbers'), content)

export function panel(title: string, help: string, ...children: readonly Child[]): HTMLElement {
  const id = title.toLowerCase().replaceAll(' ', '-')
  return element(
    'section',
    { 'aria-labelledby': id },
    element('h2', { id }, title),
    element('p', { class: 'help' }, help),
    ...children,
  )
}

/** A picture that takes the keyboard's focus, with a line that describes what is under its cursor. */
export interface Figure {
  readonly root: HTMLElement
  /** Parent of the picture. */
  readonly stage: HTMLElement
  say(text: string): void
}

export function figure(title: Node | string, label: string, hint: string): Figure {
  const stage = element('div', {
    class: 'stage',
    tabindex: 0,
    role: 'application',
    'aria-label': `${label}. ${hint}`,
  })
  const output = element('output', { class: 'readout', 'aria-live': 'polite' }, hint)
  const root = element('figure', {}, element('figcaption', {}, title), stage, output)
  return {
    root,
    stage,
    say: (text) => {
      output.textContent = text === '' ? hint : text
    },
  }
}

/** Calls `draw` now that the stage has a width, and whenever its width changes. */
export function onWidth(stage: HTMLElement, draw: (width: number) => void): void {
  let last = 0
  new ResizeObserver(() => {
    const width = Math.floor(stage.clientWidth)
    if (width === last || width === 0) return
    last = width
    draw(width)
  }).observe(stage)
}

/** A canvas of this size in CSS pixels, sharp on every screen. */
export function sharpen(
  canvas: HTMLCanvasElement,
  width: number,
  height: number,
): CanvasRenderingContext2D {
  const ratio = window.devicePixelRatio
  canvas.width = Math.round(width * ratio)
  canvas.height = Math.round(height * ratio)
  canvas.style.width = `${width}px`
  canvas.style.height = `${height}px`
  const context = canvas.getContext('2d')!
  context.scale(ratio, ratio)
  return context
}
