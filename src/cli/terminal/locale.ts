/** What the output has beside ASCII, and what stands for it where that is all. */
const substitutes: Readonly<Record<string, string>> = {
  '·': '.',
  '░': ':',
  '▒': '+',
  '▓': '%',
  '█': '#',
  '│': '|',
  '–': '-',
  '×': 'x',
  '…': '...',
  '→': '>',
}

/** Whether the environment asks for another encoding than UTF-8. Where it names no locale, it does not. */
function isUtf8({ LC_ALL, LC_CTYPE, LANG }: NodeJS.ProcessEnv): boolean {
  const locale = LC_ALL || LC_CTYPE || LANG
  return !locale || /utf-?8/i.test(locale)
}

/** The text in characters that the locale's encoding has. */
export function forLocale(text: string, env: NodeJS.ProcessEnv = process.env): string {
  if (isUtf8(env)) return text
  return text.replace(/[^\0-\x7f]/g, (character) => substitutes[character] ?? character)
}
