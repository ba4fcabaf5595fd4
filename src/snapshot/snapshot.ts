import { checkOptions, type OptionRule, required, rules } from '../options.js'

/** Files that a VM is restored from, except its device state. */
export interface Snapshot {
  /** Path of the guest memory file. It must not change while a VM restored from it runs. */
  readonly memoryFile: string
  /** Paths of the disk images that the VM reads, at most 16, in the order of the recording. */
  readonly diskImages?: readonly string[] | undefined
  /**
   * Unique identifier of the snapshot, at most 1024 characters. A working set written with the same
   * id needs no other proof: the caller vouches for its bytes. A set with another id is stale, and
   * one without an id needs another proof.
   * @default no id
   */
  readonly id?: string | undefined
}

/** Rule of the option `snapshot`; {@link checkSnapshot} checks its members. */
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

/** @throws TypeError for an invalid snapshot. */
export function checkSnapshot(caller: string, snapshot: Snapshot): void {
  checkOptions(caller, { snapshot }, { snapshot: snapshotRule })
  checkOptions(`the snapshot of ${caller}`, snapshot, snapshotRules, 'field')
}
