// A reader of working-set files, written only from docs/working-set-format.md. It shares no code with
// the product, so that the two can agree only on what the page says.
import { readFileSync } from 'node:fs'

const PAGE = 4096

export interface ReadSet {
  id: Uint8Array
  pageSize: number
  memoryBytes: number
  runs: number
  writtenTouches: number | undefined
  /** Guest pages in first-touch order, by their first 4 KiB page. */
  touches: { page: number; timeUs: number }[]
  manifest: Record<string, unknown>
  groups: { pages: number; dataBytes: number; extents: number }[]
  extents: { firstPage: number; pageCount: number; rank: number }[]
  /** The bytes of every 4 KiB page of the set. */
  pages: Map<number, Uint8Array>
  zeroPages: Set<number>
  version: string
  disks: {
    bytes: number
    pages: number
    samples: { page: number; checksum: number }[]
    touches: { page: number; timeUs: number }[]
    name: string
  }[]
}

const crcOfByte = Uint32Array.from({ length: 256 }, (_, byte) => {
  let crc = byte
  for (let bit = 0; bit < 8; bit++) crc = (crc >>> 1) ^ (crc & 1 ? 0x82f63b78 : 0)
  return crc
})

export function crc32cOf(bytes: Uint8Array): number {
  let crc = 0xffffffff
  for (const byte of bytes) crc = (crc >>> 8) ^ crcOfByte[(crc ^ byte) & 0xff]!
  return (crc ^ 0xffffffff) >>> 0
}

function utf8(bytes: Uint8Array): string {
  try {
    return new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes)
  } catch {
    throw new Error('refused: encoding')
  }
}

/** The places of a disk's samples, from the pages of its order. */
export function placeDiskSamples(order: readonly number[]): number[] {
  const places = order.slice(0, 8).map((_, i) => i)
  if (order.length > 8) {
    for (let i = 1; i <= 8; i++) places.push(Math.floor((i * order.length) / 8) - 1)
  }
  return [...new Set(places.map((place) => order[place]!))]
}

/** Reads a whole file. Throws `refused: <rule>` when the page says to refuse it. */
export function readSet(path: string): ReadSet {
  const file = readFileSync(path)
  const view = new DataView(file.buffer, file.byteOffset, file.byteLength)
  const must = (rule: string, kept: boolean) => {
    if (!kept) throw new Error(`refused: ${rule}`)
  }
  const u16 = (at: number) => view.getUint16(at, true)
  const u32 = (at: number) => view.getUint32(at, true)
  const u64 = (at: number) => Number(view.getBigUint64(at, true))

  must('magic', file.length >= 8 && file.toString('latin1', 0, 8) === 'REAPWSET')
  must('size', file.length >= 4096)
  must('version', u16(8) === 3 && u16(10) === 0)
  const header = Uint8Array.from(file.subarray(0, 4096))
  header.fill(0, 124, 128)
  must('header checksum', crc32cOf(header) === u32(124))
  const zeros = (from: number, to: number) => file.subarray(from, to).every((byte) => byte === 0)
  must('reserved', zeros(136, 4096))
  must('header size', u32(12) === 4096)
  must('file size', u64(16) === file.length)
  const memoryBytes = u64(24)
  const pageSize = u32(36)
  must('granule', u32(32) === PAGE)
  must('page size', pageSize === 4096 || pageSize === 2097152)
  must('memory', memoryBytes > 0 && memoryBytes % pageSize === 0 && memoryBytes <= 2 ** 42)
  const memoryPages = memoryBytes / PAGE
  const [indexAt, indexBytes, dataAt] = [u64(40), u64(48), u64(56)]
  const [groupCount, extentCount, touchCount] = [u32(64), u32(68), u32(72)]
  const [runs, manifestBytes, dataPages, zeroPages] = [u32(80), u32(84), u64(88), u64(96)]
  const [diskCount, diskTouchCount] = [u32(128), u32(132)]
  const writtenTouches = u32(76) === 0 ? undefined : u32(76) - 1
  must('written touches', (writtenTouches ?? 0) <= touchCount)
  must('runs', runs > 0)
  must('disks', diskCount <= 16)
  must('manifest size', manifestBytes <= 65536)
  must('index place', indexAt === 4096)
  const tables = groupCount * 32 + extentCount * 16 + (touchCount + diskTouchCount) * 8
  const diskTables = diskCount * 512
  must('index size', indexBytes === tables + diskTables + manifestBytes)
  must('data place', dataAt % PAGE === 0 && dataAt >= indexAt + indexBytes)
  must('data size', dataAt + dataPages * PAGE === file.length)
  must('page count', dataPages + zeroPages === (touchCount * pageSize) / PAGE)
  const index = file.subarray(indexAt, indexAt + indexBytes)
  must('index checksum', crc32cOf(index) === u32(120))

  const extentsAt = indexAt + groupCount * 32
  const touchesAt = extentsAt + extentCount * 16
  const diskTouchesAt = touchesAt + touchCount * 8
  const disksAt = diskTouchesAt + diskTouchCount * 8
  const manifestAt = disksAt + diskCount * 512

  const touches = Array.from({ length: touchCount }, (_, i) => ({
    page: u32(touchesAt + i * 8),
    timeUs: u32(touchesAt + i * 8 + 4),
  }))
  const ranks: number[] = []
  for (const { page } of touches) {
    must('touch', page < memoryPages && page % (pageSize / PAGE) === 0)
    for (let i = 0; i < pageSize / PAGE; i++) ranks.push(page + i)
  }
  must('touched once', new Set(ranks).size === ranks.length)

  const set: ReadSet = {
    id: Uint8Array.from(file.subarray(104, 120)),
    pageSize,
    memoryBytes,
    runs,
    writtenTouches,
    touches,
    manifest: JSON.parse(utf8(file.subarray(manifestAt, manifestAt + manifestBytes))),
    groups: [],
    extents: [],
    pages: new Map(),
    zeroPages: new Set(),
    version: `${u16(8)}.${u16(10)}`,
    disks: [],
  }
  must('manifest', typeof set.manifest === 'object' && !Array.isArray(set.manifest))
  const members = ['createdAt', 'createdBy', 'host', 'kernel', 'memoryFile', 'label', 'snapshotId']
  for (const name of members) {
    must('manifest member', ['string', 'undefined'].includes(typeof set.manifest[name]))
  }

  let touchAt = diskTouchesAt
  for (let at = disksAt; at < manifestAt; at += 512) {
    const [bytes, pages, samples, nameBytes] = [u64(at), u32(at + 8), u32(at + 12), u32(at + 144)]
    must('disk bytes', bytes > 0 && bytes <= 2 ** 42)
    must('disk samples', samples <= 16 && (samples > 0 || pages === 0))
    must('disk reserved', zeros(at + 16 + samples * 8, at + 144) && u32(at + 148) === 0)
    must('disk name', nameBytes >= 1 && nameBytes <= 255 && zeros(at + 152 + nameBytes, at + 512))
    const name = utf8(file.subarray(at + 152, at + 152 + nameBytes))
    must('disk name', !name.includes('/') && !name.includes('\0'))
    const disk: ReadSet['disks'][number] = { bytes, pages, samples: [], name, touches: [] }
    for (let i = at + 16; i < at + 16 + samples * 8; i += 8) {
      must('disk sample', u32(i) < Math.ceil(bytes / PAGE))
      disk.samples.push({ page: u32(i), checksum: u32(i + 4) })
    }
    must('disk touches', touchAt + pages * 8 <= disksAt)
    const seen = new Set<number>()
    for (const end = touchAt + pages * 8; touchAt < end; touchAt += 8) {
      const [page, timeUs] = [u32(touchAt), u32(touchAt + 4)]
      must('disk end', page < Math.ceil(bytes / PAGE))
      must('time', timeUs >= (disk.touches.at(-1)?.timeUs ?? 0))
      must('disk page once', !seen.has(page))
      seen.add(page)
      disk.touches.push({ page, timeUs })
    }
    set.disks.push(disk)
  }
  must('all disk touches', touchAt === disksAt)

  let extent = 0
  let rank = 0
  let data = dataAt
  for (let at = indexAt; at < extentsAt; at += 32) {
    const [dataBytes, extents] = [u32(at + 8), u32(at + 16)]
    must('group follows', u64(at) === data && u32(at + 12) === extent && u32(at + 24) === rank)
    must('group size', dataBytes <= 1048576 && extents >= 1 && extent + extents <= extentCount)
    must('group reserved', u32(at + 28) === 0)
    must('group checksum', crc32cOf(file.subarray(data, data + dataBytes)) === u32(at + 20))
    const members = new Map<number, { extent: number; lowest: number }>()
    let offset = data
    let next = 0
    for (const last = extent + extents; extent < last; extent++) {
      const entry = extentsAt + extent * 16
      const [first, count, lowest, flags] = [
        u32(entry),
        u32(entry + 4),
        u32(entry + 8),
        u32(entry + 12),
      ]
      must('extent', first >= next && count >= 1 && first + count <= memoryPages && flags <= 1)
      next = first + count
      set.extents.push({ firstPage: first, pageCount: count, rank: lowest })
      for (let page = first; page < next; page++) {
        members.set(page, { extent, lowest })
        if (flags === 1) {
          set.zeroPages.add(page)
          set.pages.set(page, new Uint8Array(PAGE))
        } else {
          set.pages.set(page, file.subarray(offset, offset + PAGE))
          offset += PAGE
        }
      }
    }
    must('group data', offset === data + dataBytes)
    must('group pages', members.size <= 4096)
    const own = ranks.slice(rank, rank + members.size)
    must('ranks', own.length === members.size && own.every((page) => members.has(page)))
    for (const { extent, lowest } of members.values()) {
      const page = own[lowest - rank]
      must('rank of extent', page !== undefined && members.get(page)!.extent === extent)
    }
    set.groups.push({ pages: members.size, dataBytes, extents })
    rank += members.size
    data = offset
  }
  must('all extents', extent === extentCount && rank === ranks.length)
  must('zero pages', set.zeroPages.size === zeroPages)
  return set
}
