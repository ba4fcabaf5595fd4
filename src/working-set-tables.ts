import type { ReapTraceError } from './errors.js'
import { PAGE } from './trace.js'
import {
  EXTENT_BYTES,
  GROUP_BYTES,
  HEADER_BYTES,
  MOST_GROUP_DATA_PAGES,
  MOST_GROUP_PAGES,
  ZERO_EXTENT,
} from './working-set-file.js'

/** Makes the error for a rule that is broken at `offset`. */
export type Refuse = (check: string, offset: number, what: string) => ReapTraceError

/** What the header says of the tables of groups, extents and touches. */
export interface Tables {
  readonly memoryBytes: number
  readonly pageSize: number
  readonly dataOffset: number
  readonly groups: number
  readonly extents: number
  readonly touches: number
  readonly zeroPages: number
}

// These checks are most of the work of opening a file, which a process often does just once, by code
// that is not compiled yet. Hence plain loops, as few passes as can be, and sorts, which are native.

/** Checks that the three tables agree with each other and with the header. */
export function checkTables(
  header: Tables,
  groups: Uint32Array,
  extents: Uint32Array,
  touches: Uint32Array,
  refuse: Refuse,
): void {
  const extentsAt = HEADER_BYTES + header.groups * GROUP_BYTES
  const touchesAt = extentsAt + header.extents * EXTENT_BYTES
  checkTouches(header, touches, touchesAt, refuse)
  checkGroups(header, groups, extents, touches, refuse)
  checkOverlap(extents, extentsAt, refuse)
}

/** Checks that touches begin a page of the guest; that they are in its memory follows from the extents. */
function checkTouches(header: Tables, touches: Uint32Array, at: number, refuse: Refuse): void {
  const step = header.pageSize / PAGE
  for (let i = 0; step > 1 && i < touches.length; i += 2) {
    if (touches[i]! % step === 0) continue
    throw refuse('touch-page', at + i * 4, 'there begins no page of the guest')
  }
}

/**
 * Checks that no page is in two extents. As each group's extents are made of the pages of its ranks,
 * no page was touched twice then.
 */
function checkOverlap(extents: Uint32Array, at: number, refuse: Refuse): void {
  const first = new Uint32Array(extents.length / 4)
  const last = new Uint32Array(extents.length / 4)
  for (let i = 0; i < first.length; i++) {
    first[i] = extents[4 * i]!
    last[i] = extents[4 * i]! + extents[4 * i + 1]! - 1
  }
  const page = firstCovered(first, last)
  if (page === undefined) return
  const later = extents.findLastIndex((value, word) => word % 4 === 0 && value === page)
  throw refuse('extent-overlap', at + later * 4, 'a page is in two extents')
}

/** The lowest first page of a range that is in another range too. Sorts both arrays. */
export function firstCovered<Pages extends Uint32Array | Float64Array>(
  first: Pages,
  last: Pages,
): number | undefined {
  // Sorted each for itself: where an extent begins, all that began before it must have ended.
  first.sort()
  last.sort()
  for (let i = 1; i < first.length; i++) {
    if (first[i]! <= last[i - 1]!) return first[i]
  }
  return undefined
}

/**
 * Checks that the groups follow each other in extents, data and ranks, and that each one's extents
 * are made of the very pages of its ranks.
 */
function checkGroups(
  header: Tables,
  groups: Uint32Array,
  extents: Uint32Array,
  touches: Uint32Array,
  refuse: Refuse,
): void {
  const memoryPages = header.memoryBytes / PAGE
  const step = header.pageSize / PAGE
  const extentsAt = HEADER_BYTES + header.groups * GROUP_BYTES
  let extent = 0
  let rank = 0
  let zeroPages = 0
  let data = header.dataOffset
  for (let group = 0; group < header.groups; group++) {
    const at = HEADER_BYTES + group * GROUP_BYTES
    const word = group * 8
    const dataBytes = groups[word + 2]!
    const extentCount = groups[word + 4]!
    const endExtent = extent + extentCount
    if (groups[word]! + groups[word + 1]! * 2 ** 32 !== data) {
      throw refuse('group-data', at, 'the data of a group does not follow that of the one before')
    }
    if (dataBytes % PAGE !== 0 || dataBytes > MOST_GROUP_DATA_PAGES * PAGE) {
      throw refuse('group-data', at + 8, 'a group has more than 1 MiB of data or part of a page')
    }
    if (groups[word + 3] !== extent || extentCount === 0 || endExtent > header.extents) {
      throw refuse('group-extents', at + 12, 'the extents of a group are not the next ones')
    }
    if (groups[word + 6] !== rank) {
      throw refuse('group-rank', at + 24, 'the first rank is not the number of pages before')
    }
    if (groups[word + 7] !== 0) throw refuse('reserved', at + 28, 'a reserved field is not zero')

    const firstExtent = extent
    const firstRank = rank
    let dataPages = 0
    let nextPage = 0
    for (; extent < endExtent; extent++) {
      const first = extents[extent * 4]!
      const count = extents[extent * 4 + 1]!
      const flags = extents[extent * 4 + 3]!
      const offset = extentsAt + extent * EXTENT_BYTES
      if (first < nextPage) throw refuse('extent-order', offset, 'extents are not in order')
      if (count === 0 || first + count > memoryPages) {
        throw refuse('extent-pages', offset, 'an extent is empty or lies outside the memory')
      }
      if (flags > ZERO_EXTENT) throw refuse('extent-flags', offset + 12, 'a flag is not known')
      if (flags === ZERO_EXTENT) zeroPages += count
      else dataPages += count
      rank += count
      nextPage = first + count
    }
    if (rank - firstRank > MOST_GROUP_PAGES) {
      throw refuse('group-pages', at + 16, `a group has more than ${MOST_GROUP_PAGES} pages`)
    }
    if (dataPages * PAGE !== dataBytes) {
      throw refuse('group-data', at + 8, 'a group has not the data that its extents need')
    }
    if (rank > header.touches * step) {
      throw refuse('group-rank', at + 24, 'there are more pages in groups than touched')
    }
    data += dataBytes

    const table = extents.subarray(firstExtent * 4, endExtent * 4)
    const wrong = firstNotCovered(table, touches, step, firstRank, rank)
    if (wrong)
      throw refuse(wrong.check, extentsAt + (firstExtent + wrong.extent) * EXTENT_BYTES, wrong.what)
  }
  if (extent !== header.extents) throw refuse('extent-count', 68, 'extents are in no group')
  if (rank !== header.touches * step || zeroPages !== header.zeroPages) {
    throw refuse('page-count', 88, 'the groups have not the pages that the header counts')
  }
}

/**
 * The first extent of a group with a page that is not of the group's ranks, or with a rank that is
 * not of its pages.
 */
function firstNotCovered(
  extents: Uint32Array,
  touches: Uint32Array,
  step: number,
  firstRank: number,
  endRank: number,
): { check: string; extent: number; what: string } | undefined {
  const pages = new Uint32Array(endRank - firstRank)
  for (let i = 0; i < pages.length; i++) {
    const part = (firstRank + i) % step
    pages[i] = touches[((firstRank + i - part) / step) * 2]! + part
  }
  const byAddress = pages.slice().sort()
  let next = 0
  for (let i = 0; i < extents.length; i += 4) {
    const first = extents[i]!
    const end = first + extents[i + 1]!
    for (let page = first; page < end; page++) {
      if (byAddress[next++] !== page) {
        return { check: 'extent-touches', extent: i / 4, what: 'an extent has a page not touched' }
      }
    }
    const rank = extents[i + 2]!
    const page = rank < firstRank ? undefined : pages[rank - firstRank]
    if (page === undefined || page < first || page >= end) {
      return {
        check: 'extent-rank',
        extent: i / 4,
        what: 'the rank of an extent is of no page of it',
      }
    }
  }
  return undefined
}
