#include "page_cache/survey.h"

#include <sys/uio.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <numeric>

#include "base/page.h"
#include "files/cached_file.h"
#include "working_set/plan.h"
#include "working_set/working_set.h"

namespace reap {

namespace {

constexpr uint64_t kMostGroupPages = kMaxGroupBytes / kPage;
// Blocks of the table of extents and pieces of the data that are looked at, extents in a block, and
// looks in a piece. What they cost grows with the set up to a fifth of a millisecond: a hundredth
// of its restore.
constexpr uint64_t kLeastSamples = 4;
constexpr uint64_t kMostSamples = 16;
constexpr uint64_t kExtentsInBlock = 8;
constexpr uint64_t kBlocksForSample = 64;
constexpr uint64_t kPiecesForSample = 8;
constexpr uint64_t kLooksInPiece = 8;
// Of an extent: no more than 3 us in pages that lie by themselves.
constexpr uint64_t kMostLookedAt = 32;
// What one read fault maps of what is in the page cache (fault_around_bytes, mm/memory.c).
constexpr uint64_t kWindowPages = 16;
// Of a stretch that is timed: 5 us in pages that lie by themselves. With fewer of them there the
// call is most of the time.
constexpr uint64_t kTimedPages = 64;
constexpr double kLeastTimedShare = 0.25;
// Of a memory file that has perhaps nothing in the page cache: first a look at some places, then at
// all of it, in pieces that take 0.1 ms if there are pages, by themselves.
constexpr uint64_t kPlaces = 16;
constexpr uint64_t kPagesAtOnce = 4096;

uint64_t samples_of(uint64_t count, uint64_t for_each) {
  return std::min(count, std::clamp(count / for_each, kLeastSamples, kMostSamples));
}

// Whether there is one that is sound by itself and of a version that is known. `flags` are
// preadv2()'s, as below.
bool read_header(const CachedFile& set, int flags, WorkingSetHeader* header) {
  uint8_t bytes[kHeaderBytes];
  if (set.read(0, bytes, sizeof bytes, flags) != 0) return false;
  return read_sealed_header(bytes, header) && header->major_version == kMajorVersion;
}

// Whether the tables and the data that the header tells of are inside the file. Nothing else is
// relied on.
bool fits(const WorkingSetHeader& header, uint64_t file_bytes) {
  if (header.page_size != kPage && header.page_size != 2 << 20) return false;
  if (header.index_offset > file_bytes || header.data_offset > file_bytes) return false;
  const uint64_t tables =
      header.groups * uint64_t{sizeof(PlanGroup)} + header.extents * uint64_t{sizeof(PlanExtent)};
  const uint64_t memory_pages = header.memory_bytes / kPage;
  return tables <= file_bytes - header.index_offset && header.zero_pages <= memory_pages &&
         header.data_pages <= memory_pages - header.zero_pages &&
         header.data_pages <= (file_bytes - header.data_offset) / kPage;
}

// How many different ones the extents lie in. Those of a block were counted; that extents of other
// groups lie in them too is taken to be chance, which is within a fifth for the traces of the
// bench.
uint64_t windows_of(const WorkingSetHeader& header, uint64_t sampled, uint64_t sampled_extents) {
  if (sampled_extents == 0 || header.memory_bytes == 0) return 0;
  const double all = static_cast<double>(header.memory_bytes) / (kWindowPages * kPage);
  const double met =
      static_cast<double>(sampled) * header.extents / static_cast<double>(sampled_extents);
  return static_cast<uint64_t>(std::llround(all * -std::expm1(-met / all)));
}

// Somewhere below `count`, for each `i` elsewhere: by the golden ratio, as a fraction of 2^32.
uint64_t somewhere(uint64_t i, uint64_t count) {
  return static_cast<uint32_t>(i * 0x9e3779b9) * count >> 32;
}

// The place of sample `i` of `samples` among `count`: in each of as many parts one, not always the
// same: extents are by address in each group of 1 MiB, and its first ones lie low in the memory.
uint64_t place(uint64_t i, uint64_t samples, uint64_t count) {
  return (i * count + somewhere(i, count)) / samples;
}

// A look at a stretch of four windows around a page.
struct Around {
  double share;    // that is there
  double look_ns;  // what it took to pass a page of it, beside what a call takes
};
Around look_around(const CachedFile& memory, uint64_t page) {
  const uint64_t first = page / kTimedPages * kTimedPages;
  uint64_t there = 0;
  const auto timed = [&](uint64_t pages) {
    const auto start = std::chrono::steady_clock::now();
    there = memory.count(first, pages);
    return std::chrono::duration<double, std::nano>(std::chrono::steady_clock::now() - start)
        .count();
  };
  const double call = timed(1);
  const double all = timed(kTimedPages);
  return {static_cast<double>(there) / kTimedPages,
          std::max(all - call, 0.0) / static_cast<double>(std::max<uint64_t>(there, 1))};
}

double mean(const std::vector<double>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

// A thread that was put aside meanwhile looks slow. 0 for no times, and else 1 at least.
double mean_but_the_largest(std::vector<double> times) {
  if (times.empty()) return 0;
  std::sort(times.begin(), times.end());
  if (times.size() > 1) times.pop_back();
  return std::max(mean(times), 1.0);
}

// What the samples of a memory file add up to.
struct Samples {
  uint64_t table_extents = 0;  // looked at in the table
  uint64_t extents = 0;        // of them, looked for in the page cache
  uint64_t pages = 0;
  uint64_t windows = 0;
  uint64_t missing_extents = 0;
  uint64_t missing_pages = 0;
  // Of the stretches around some of them.
  std::vector<double> shares;
  std::vector<double> look_ns;
};

// `extents` are by address, as those of a group are.
void survey_extents(const CachedFile& memory, const PlanExtent* extents, uint64_t extent_count,
                    bool has_holes, Samples* found) {
  uint64_t last_window = UINT64_MAX;
  for (uint64_t i = 0; i < extent_count; ++i) {
    const PlanExtent& extent = extents[i];
    ++found->table_extents;
    if (extent.page_count == 0) continue;
    const uint64_t first = extent.first_page / kWindowPages;
    const uint64_t last = (uint64_t{extent.first_page} + extent.page_count - 1) / kWindowPages;
    found->windows += last - first + (first == last_window ? 0 : 1);
    last_window = last;
    if (extent.flags & kZeroExtent && has_holes) continue;
    // Each page of a hidden file is a call, and one that is not there is read for it.
    const uint64_t count =
        std::min<uint64_t>(extent.page_count, memory.is_visible() ? kMostLookedAt : 1);
    const uint64_t skipped = somewhere(found->extents, extent.page_count - count + 1);
    const uint64_t there = memory.count(extent.first_page + skipped, count);
    const uint64_t missing = count > there ? count - there : 0;
    ++found->extents;
    found->pages += extent.page_count;
    found->missing_extents += missing > 0;
    found->missing_pages += uint64_t{extent.page_count} * missing / count;
  }
}

// Where this is so, any sample says it.
bool has_nothing(const CachedFile& file) {
  if (!file.is_visible() || !file.has_cachestat()) return false;
  for (uint64_t i = 0; i < kPlaces; ++i) {
    if (file.count(place(i, kPlaces, file.pages()), kTimedPages) > 0) return false;
  }
  const uint64_t step = std::max(kPagesAtOnce, file.pages() / 64);
  for (uint64_t page = 0; page < file.pages(); page += step) {
    if (file.count(page, step) > 0) return false;
  }
  return true;
}

// Whether the table of extents could be read.
bool survey_memory(const CachedFile& memory, const CachedFile& set, const WorkingSetHeader& header,
                   int flags, Survey* found) {
  const uint64_t table = header.index_offset + uint64_t{header.groups} * sizeof(PlanGroup);
  constexpr uint64_t kBlockBytes = kExtentsInBlock * sizeof(PlanExtent);
  uint64_t all_blocks = (header.extents + kExtentsInBlock - 1) / kExtentsInBlock;
  // Pages of zeros are on the disk as others are, unless they are holes, which nothing is read for.
  const bool has_holes = memory.is_sparse();
  const uint64_t asked_for = least_bytes(set.bytes());
  const uint64_t came_along = table < asked_for ? (asked_for - table) / kBlockBytes : 0;
  if (!(flags & RWF_NOWAIT) && came_along >= samples_of(all_blocks, kBlocksForSample) &&
      !(has_holes && header.zero_pages > 0) && has_nothing(memory)) {
    // Those that came with the header, which is one wait for the disk instead of two.
    all_blocks = std::min(all_blocks, came_along);
  }
  const uint64_t blocks = samples_of(all_blocks, kBlocksForSample);
  const auto first_of = [&](uint64_t block) {
    return place(block, blocks, all_blocks) * kExtentsInBlock;
  };
  for (uint64_t block = 0; block < blocks && !(flags & RWF_NOWAIT); ++block) {
    // A page, or two where the block lies in both.
    const uint64_t at = table + first_of(block) * sizeof(PlanExtent);
    const uint64_t end = at + kExtentsInBlock * sizeof(PlanExtent);
    set.will_need(at / kPage, (end - 1) / kPage - at / kPage + 1);
  }
  Samples samples;
  for (uint64_t block = 0; block < blocks; ++block) {
    PlanExtent extents[kExtentsInBlock];
    const uint64_t count = std::min<uint64_t>(kExtentsInBlock, header.extents - first_of(block));
    const uint64_t at = table + first_of(block) * sizeof(PlanExtent);
    if (set.read(at, extents, count * sizeof(PlanExtent), flags) != 0) return false;
    survey_extents(memory, extents, count, has_holes, &samples);
    if (!memory.is_visible() || block % std::max<uint64_t>(1, blocks / kLeastSamples) != 0)
      continue;
    const Around around = look_around(memory, extents[0].first_page);
    samples.shares.push_back(around.share);
    if (memory.has_cachestat() && around.share >= kLeastTimedShare) {
      samples.look_ns.push_back(around.look_ns);
    }
  }
  found->windows = windows_of(header, samples.windows, samples.table_extents);
  if (!samples.shares.empty()) found->share_around = mean(samples.shares);
  found->look_ns = mean_but_the_largest(samples.look_ns);
  if (samples.extents == 0) {
    // Holes alone. Of the others nothing is known, and what is not there must be brought in.
    found->missing_pages = header.data_pages;
    found->missing_extents = std::min<uint64_t>(header.extents, header.data_pages);
    return true;
  }
  const uint64_t read_pages = header.data_pages + (has_holes ? 0 : header.zero_pages);
  // In floating point, since nobody has checked how long the extents say they are.
  const double missing =
      static_cast<double>(samples.missing_pages) / static_cast<double>(samples.pages);
  found->missing_pages = static_cast<uint64_t>(static_cast<double>(read_pages) * missing);
  found->missing_extents = header.extents * samples.missing_extents / samples.table_extents;
  return true;
}

// Whether none of some of its pages is missing: 0.8 us for each, of which asking about all of a
// group would take 40. Nothing is asked behind the first that is missing.
bool seems_whole(const CachedFile& set, uint64_t first_page, uint64_t pages, uint64_t samples) {
  for (uint64_t i = 0; i < samples; ++i) {
    if (set.count(first_page + place(i, samples, pages), 1) == 0) return false;
  }
  return true;
}

void survey_data(const CachedFile& set, const WorkingSetHeader& header, Survey* found) {
  // A group is read past the page cache unless all of it is there.
  const uint64_t first = header.data_offset / kPage;
  const uint64_t pieces = (header.data_pages + kMostGroupPages - 1) / (kMostGroupPages);
  const uint64_t samples = samples_of(pieces, kPiecesForSample);
  uint64_t pages = 0, missing = 0;
  for (uint64_t i = 0; i < samples; ++i) {
    const uint64_t at = place(i, samples, pieces) * (kMostGroupPages);
    const uint64_t length = std::min(kMostGroupPages, header.data_pages - at);
    pages += length;
    // Of a hidden file one that is not there would be read.
    const uint64_t looks = set.is_visible() ? std::min(length, kLooksInPiece) : 1;
    if (!seems_whole(set, first + at, length, looks)) missing += length;
  }
  if (pages > 0) found->missing_bytes = header.data_pages * kPage * missing / pages;
}

// Whether the working set could be made out: it leaves no figures otherwise.
bool survey_set(const CachedFile& memory, const CachedFile& set, int flags, Survey* found) {
  const uint64_t least = least_bytes(set.bytes());
  if (!(flags & RWF_NOWAIT)) set.will_need(0, least / kPage);
  WorkingSetHeader header{};
  if (!read_header(set, flags, &header) || !fits(header, set.bytes())) return false;
  if (!survey_memory(memory, set, header, flags, found)) return false;
  survey_data(set, header, found);
  if (!(flags & RWF_NOWAIT) && found->missing_bytes > 0) {
    // For the reader of the whole index, who comes next where a handler is chosen.
    set.will_need(least / kPage, (first_bytes(set.bytes()) - least) / kPage);
  }
  found->page_size = header.page_size;
  found->memory_bytes = header.memory_bytes;
  found->pages = header.data_pages + header.zero_pages;
  found->extents = header.extents;
  found->disks = header.disks;
  return true;
}

void note_memory_file(const CachedFile& memory, Survey* found) {
  found->memory_file_bytes = memory.bytes();
  found->memory_device = memory.device();
  found->is_visible = memory.is_visible();
}

}  // namespace

Failure survey(const std::string& memory_file, const std::string& working_set, Survey* found) {
  CachedFile memory;
  if (const int error = memory.open(memory_file))
    return failed_call(ErrorCode::source_read, error, "open");
  note_memory_file(memory, found);
  if (working_set.empty()) return {};

  CachedFile set;
  if (const int error = set.open(working_set))
    return failed_call(ErrorCode::working_set_io, error, "open");
  found->set_device = set.device();
  survey_set(memory, set, 0, found);
  return {};
}

bool survey_at_once(const std::string& memory_file, const std::string& working_set, Survey* found) {
  CachedFile memory;
  if (memory.open_at_once(memory_file) != 0) return false;
  note_memory_file(memory, found);
  if (working_set.empty()) return true;

  CachedFile set;
  if (set.open_at_once(working_set) != 0) return false;
  found->set_device = set.device();
  return survey_set(memory, set, RWF_NOWAIT, found);
}

}  // namespace reap
