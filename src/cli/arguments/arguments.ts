import type { Snapshot } from '../../index.js'
import type { Arm } from '../compare/arms.js'
import type { Cache } from '../measure/page-cache.js'

/** Arguments of both `record` and `restore`. */
export interface ServeArguments {
  readonly memory: string
  /** Path of the socket; empty if the backend needs none. */
  readonly socket: string
  readonly disks: readonly string[]
  readonly json: boolean
  /** 0 waits indefinitely. */
  readonly connectTimeoutMs: number
  /** 0 waits indefinitely. */
  readonly commandTimeoutMs: number
  /** 0 sets no limit. */
  readonly readTimeoutMs: number
  readonly onReadTimeout: 'warn' | 'fail'
  readonly leaveVm: boolean
  readonly peerUid: number | undefined
  /** COMMAND and its arguments; empty for none. */
  readonly command: readonly string[]
  /** Whether to load the interposer into COMMAND. */
  readonly interpose: boolean
}

export interface RecordArguments extends ServeArguments {
  readonly name: 'record'
  readonly backend: 'uffd' | 'page-cache'
  readonly output: string
  readonly forMs: number | undefined
  readonly label: string | undefined
  readonly snapshotId: string | undefined
}

export interface RestoreArguments extends ServeArguments {
  readonly name: 'restore'
  readonly backend: 'auto' | 'uffd' | 'page-cache'
  readonly vcpus: 'kvm' | 'threads'
  readonly workingSet: string
  readonly trustWorkingSet: boolean
  readonly onBadWorkingSet: 'on-demand' | 'fail'
  readonly onStaleWorkingSet: 'warn' | 'rewrite' | 'fail' | undefined
  /** File for the record of the restore. */
  readonly trace: string | undefined
  readonly snapshotId: string | undefined
}

/** `record --store` and `restore --store`. */
export interface StoreRestoreArguments extends ServeArguments {
  readonly name: 'restore from store'
  readonly store: string
  /** Whether to restore on demand, so that every touch is seen. */
  readonly record: boolean
  readonly backend: 'auto' | 'uffd' | 'page-cache'
  readonly vcpus: 'kvm' | 'threads'
  readonly variant: string | undefined
  /** Key of the parent snapshot. */
  readonly parent: string | undefined
  readonly snapshotId: string | undefined
  readonly forMs: number | undefined
  /** File for the record of the restore. */
  readonly trace: string | undefined
}

export interface CompareArguments {
  readonly name: 'compare'
  readonly memory: string
  readonly workingSet: string
  readonly disks: readonly string[]
  /** Path of the socket of handlers; `undefined` for one in a private folder. */
  readonly socket: string | undefined
  readonly rounds: number
  readonly arms: readonly Arm[]
  readonly caches: readonly Cache[]
  readonly seed: number
  readonly trustWorkingSet: boolean
  readonly snapshotId: string | undefined
  readonly vcpus: 'kvm' | 'threads'
  readonly peerUid: number | undefined
  readonly interpose: boolean
  readonly commandTimeoutMs: number
  readonly exportCsv: string | undefined
  readonly exportMarkdown: string | undefined
  /** File for the page with pictures. */
  readonly report: string | undefined
  readonly json: boolean
  readonly command: readonly string[]
}

export interface AdviseArguments {
  readonly name: 'advise'
  readonly file: string
  readonly memory: string
  readonly vcpus: 'kvm' | 'threads'
  readonly calibrate: boolean
  readonly trustWorkingSet: boolean
  readonly json: boolean
}

export interface InspectArguments {
  readonly name: 'inspect'
  readonly file: string
  readonly memory: string | undefined
  readonly json: boolean
}

export interface DiffArguments {
  readonly name: 'diff'
  readonly a: string
  readonly b: string
  readonly firstMs: number | undefined
  readonly json: boolean
}

export interface MergeArguments {
  readonly name: 'merge'
  readonly files: readonly string[]
  readonly memory: string
  readonly disks: readonly string[]
  readonly output: string
  readonly minSets: number | undefined
  readonly label: string | undefined
  readonly snapshotId: string | undefined
  readonly trustWorkingSet: boolean
  readonly json: boolean
}

export interface ReportArguments {
  readonly name: 'report'
  readonly files: readonly string[]
  readonly output: string
  readonly json: boolean
}

export interface VerifyArguments {
  readonly name: 'verify'
  readonly file: string
  readonly memory: string
  readonly json: boolean
}

/** Arguments of the commands for a store. */
interface StoreArguments {
  /** Folder of the store. */
  readonly store: string
  readonly json: boolean
}

export interface StoreListArguments extends StoreArguments {
  readonly name: 'store ls'
}

export interface StoreShowArguments extends StoreArguments {
  readonly name: 'store show'
  readonly snapshot: NamedSnapshot
}

export interface StoreForgetArguments extends StoreArguments {
  readonly name: 'store forget'
  readonly snapshot: NamedSnapshot
}

export interface StoreExportArguments extends StoreArguments {
  readonly name: 'store export'
  readonly snapshot: NamedSnapshot
  readonly output: string
}

export interface StoreImportArguments extends StoreArguments {
  readonly name: 'store import'
  readonly file: string
  readonly snapshot: Snapshot
}

/** A snapshot of a store, or its key. */
export type NamedSnapshot = Snapshot | string

export interface DoctorArguments {
  readonly name: 'doctor'
  readonly json: boolean
}

export interface ReadyArguments {
  readonly name: 'ready'
  readonly json: boolean
}

export interface DemoArguments {
  readonly name: 'demo'
  readonly json: boolean
  readonly memoryBytes: number
  readonly rounds: number
  readonly keep: string | undefined
  /** Path of the Firecracker binary; `undefined` for the embedded guest. */
  readonly firecracker: string | undefined
}

export type Arguments =
  | RecordArguments
  | RestoreArguments
  | StoreRestoreArguments
  | CompareArguments
  | AdviseArguments
  | InspectArguments
  | DiffArguments
  | MergeArguments
  | ReportArguments
  | VerifyArguments
  | StoreListArguments
  | StoreShowArguments
  | StoreForgetArguments
  | StoreExportArguments
  | StoreImportArguments
  | ReadyArguments
  | DoctorArguments
  | DemoArguments

/** Called with the parsed arguments of a command. */
export type OnParsed = (args: Arguments) => void
