/** A copy of the object with one field replaced, by its path: `times.ready`. */
export function withField(of: object, field: string, value: unknown): object {
  const copy = structuredClone(of) as Record<string, unknown>
  const names = field.split('.')
  const last = names.pop()!
  const owner = names.reduce((at, name) => at[name] as Record<string, unknown>, copy)
  owner[last] = value
  return copy
}
