import type { NativeWorkingSet, WorkingSetFacts } from '../../binding/addon.js'
import { ReapTraceError } from '../../errors.js'
import type { FileStamp } from '../../snapshot/file-stamp.js'
import { DISK_BYTES, DISK_NAME_AT, type Manifest, type StoredDisk } from './format.js'

/** A working-set file, as read. */
export interface WorkingSetFile {
  readonly path: string
  /** Whether the caller trusts everybody who may write to the file. */
  readonly isTrusted: boolean
  /** State of the file before it was read. */
  readonly stamp: FileStamp
  readonly fileBytes: number
  readonly memoryBytes: number
  /** Identifier of the content: 16 random bytes, new for each write. */
  readonly id: Uint8Array
  readonly manifest: Manifest
  /** Share of the touched pages that the guest modified; `undefined` if unknown. */
  readonly writtenShare: number | undefined
  readonly dataPages: number
  readonly zeroPages: number
  readonly groupCount: number
  readonly extentCount: number
  readonly disks: readonly StoredDisk[]
  /** The native tables of the set. */
  readonly tables: NativeWorkingSet
}

const MANIFEST_MEMBERS: readonly (keyof Manifest)[] = [
  'createdAt',
  'createdBy',
  'host',
  'kernel',
  'memoryFile',
  'label',
  'snapshotId',
]

/**
 * @throws ReapTraceError `ERR_WORKING_SET_INVALID` for text that breaks a rule of the format: the
 * manifest, the names of disks.
 */
export function describeFile(
  path: string,
  tables: NativeWorkingSet,
  facts: WorkingSetFacts,
  isTrusted: boolean,
): WorkingSetFile {
  const { pageSize: _, runs: __, manifestAt, touchCount, writtenTouches, ...rest } = facts
  const isShareKnown = touchCount > 0 && writtenTouches > 0
  const writtenShare = isShareKnown ? (writtenTouches - 1) / touchCount : undefined
  const refuse = (check: string, offset: number, what: string) =>
    new ReapTraceError(
      'ERR_WORKING_SET_INVALID',
      `${path} is not a valid working-set file: ${what} (check ${check}, at byte ${offset})`,
      { path, check, offset, hint: 'Record it again.' },
    )
  const disks = facts.disks.map(({ name, samples, ...disk }, i) => ({
    ...disk,
    name: decode(name, () => {
      const at = manifestAt - (facts.disks.length - i) * DISK_BYTES + DISK_NAME_AT
      return refuse('disk-name', at, `the name of disk ${i} is not UTF-8`)
    }),
    samples: {
      pages: samples.filter((_, i) => i % 2 === 0),
      checksums: samples.filter((_, i) => i % 2 === 1),
    },
  }))
  const manifest = parseManifest(facts.manifest, (what) => refuse('manifest', manifestAt, what))
  return { ...rest, path, isTrusted, writtenShare, manifest, disks, tables }
}

function decode(bytes: Uint8Array, refuse: () => ReapTraceError): string {
  try {
    return new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes)
  } catch {
    throw refuse()
  }
}

function parseManifest(bytes: Uint8Array, refuse: (what: string) => ReapTraceError): Manifest {
  const text = decode(bytes, () => refuse('its manifest is not UTF-8'))
  let manifest: unknown
  try {
    manifest = JSON.parse(text)
  } catch {
    throw refuse('its manifest is not JSON')
  }
  if (typeof manifest !== 'object' || manifest === null || Array.isArray(manifest)) {
    throw refuse('its manifest is not a JSON object')
  }
  for (const name of MANIFEST_MEMBERS) {
    const value = (manifest as Record<string, unknown>)[name]
    if (value !== undefined && typeof value !== 'string') {
      throw refuse(`the member "${name}" of its manifest is not a string`)
    }
  }
  return manifest
}
