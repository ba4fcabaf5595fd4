import { formatMs } from '../terminal/units.js'

/** Lines of the steps that were reached, in their order, with the time since `start`. */
export function stepTable(
  steps: readonly (readonly [name: string, at: number | undefined])[],
  start: number,
): string[] {
  const reached = steps
    .flatMap(([name, at]) => (at === undefined ? [] : [{ name, at }]))
    .sort((one, other) => one.at - other.at)
  const columns = reached.map(({ at }) => formatMs(at - start))
  const width = Math.max(...columns.map((text) => text.length))
  return reached.map(({ name }, i) => `  ${columns[i]!.padStart(width)}  ${name}`)
}
