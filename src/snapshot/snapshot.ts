/** What a VM is restored from, besides the state of its devices. */
export interface Snapshot {
  /** The file with the guest's memory. It must not change while a VM is restored from it. */
  readonly memoryFile: string
  /** The disk images that the VM reads, in the order of the recording. */
  readonly diskImages?: readonly string[] | undefined
}
