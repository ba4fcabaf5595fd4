import { checkOptions, type OptionRule, required, rules } from '../options.js'

/** What a VM is restored from, besides the state of its devices. */
export interface Snapshot {
  /** The file with the guest's memory. It must not change while a VM is restored from it. */
  readonly memoryFile: string
  /** The disk images that the VM reads, at most 16, in the order of the recording. */
  readonly diskImages?: readonly string[] | undefined
  /**
   * Name of the snapshot, up to 1024 characters: one that no other snapshot has. A working set that was
   * written with the same name is proven by that: the caller vouches for its bytes. One with another name
   * is stale. One without a name needs another proof.
   * @default no name
   */
  readonly id?: string | undefined
}

/** The option `snapshot`, as far as a rule can say; {@link checkSnapshot} checks its members. */
export const snapshotRule: OptionRule = required({
  expected: 'an object with a memoryFile',
  accepts: (value) => typeof value === 'object' && value !== null && !Array.isArray(value),
})

const snapshotRules: Record<keyof Snapshot, OptionRule> = {
  memoryFile: required(rules.path),
  diskImages: {
    expected: 'an array of at most 16 non-empty paths',
    accepts: (value) =>
      Array.isArray(value) && value.length <= 16 && value.every(rules.path.accepts),
  },
  id: rules.name,
}

/** @throws TypeError for a snapshot that makes no sense. */
export function checkSnapshot(caller: string, snapshot: Snapshot): void {
  checkOptions(caller, { snapshot }, { snapshot: snapshotRule })
  checkOptions(`the snapshot of ${caller}`, snapshot, snapshotRules)
}
