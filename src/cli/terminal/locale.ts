/** ASCII substitutes for the other characters of the output. */
const substitutes: Readonly<Record<string, string>> = {
  '·': '.',
  '░': ':',
  '▒': '+',
  '▓': '%',
  '█': '#',
  '▁': '_',
  '▂': '_',
  '▃': '.',
  '▄': '.',
  '▅': ':',
  '▆': '+',
  '▇': '%',
  '│': '|',
  '–': '-',
  '×': 'x',
  '…': '...',
  '→': '>',
}

/** Whether the locale uses UTF-8; true if none is set. */
function isUtf8({ LC_ALL, LC_CTYPE, LANG }: NodeJS.ProcessEnv): boolean {
  const locale = LC_ALL || LC_CTYPE || LANG
  return !locale || /utf-?8/i.test(locale)
}

/** The text with the characters of the locale's encoding. */
export function forLocale(text: string, env: NodeJS.ProcessEnv = process.env): string {
  if (isUtf8(env)) return text
  return text.replace(/[^\0-\x7f]/g, (character) => substitutes[character] ?? character)
}

/**
 * The text with control characters escaped. What a file or a path holds must not reach the terminal,
 * which would obey it.
 */
export function printable(text: string): string {
  return text.replace(/[\p{Cc}\p{Bidi_Control}]/gu, (character) => {
    const code = character.codePointAt(0)!
    return code > 0xff
      ? `\\u${code.toString(16).padStart(4, '0')}`
      : `\\x${code.toString(16).padStart(2, '0')}`
  })
}
