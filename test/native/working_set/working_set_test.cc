// Working-set files: checked before anything in them is trusted, and never read out of bounds. The
// rule named for each damage is tested in test/working-set/damage.test.ts.
#include "working_set/working_set.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>
#include <random>
#include <string>

#include "base/crc32c.h"
#include "files/cached_file.h"
#include "support/check.h"
#include "support/page_cache_fixture.h"

namespace {

using Bytes = std::vector<uint8_t>;

using reap::kHeaderBytes;
constexpr uint32_t kIndexBytesAt = 48, kChecksumAt = 120, kHeaderChecksumAt = 124;

struct File {
  Bytes header = Bytes(kHeaderBytes);
  Bytes index;

  template <typename Value>
  void set(size_t at, Value value) {
    std::memcpy(header.data() + at, &value, sizeof value);
  }
  template <typename Value>
  void add(Value value) {
    const auto* bytes = reinterpret_cast<const uint8_t*>(&value);
    index.insert(index.end(), bytes, bytes + sizeof value);
  }
  void seal() {
    set<uint64_t>(kIndexBytesAt, index.size());
    set<uint32_t>(kChecksumAt, reap::crc32c(index.data(), index.size()));
    seal_header();
  }
  void seal_header() {
    std::memcpy(header.data(), "REAPWSET", 8);
    set<uint32_t>(kHeaderChecksumAt, 0);
    set<uint32_t>(kHeaderChecksumAt, reap::crc32c(header.data(), header.size()));
  }
  Bytes all() const {
    Bytes bytes = header;
    bytes.insert(bytes.end(), index.begin(), index.end());
    return bytes;
  }
};

// Groups of 64 pages in extents of two, every second one, each group in descending order.
File valid_file(uint32_t groups) {
  constexpr uint32_t kExtents = 32, kPages = 64;
  File file;
  const uint64_t tables = groups * (sizeof(reap::PlanGroup) + kExtents * sizeof(reap::PlanExtent) +
                                    kPages * sizeof(uint64_t));
  const uint64_t data_offset = (kHeaderBytes + tables + 4095) / 4096 * 4096;
  file.set<uint16_t>(8, reap::kMajorVersion);
  file.set<uint32_t>(12, kHeaderBytes);
  file.set<uint64_t>(16, data_offset + uint64_t{groups} * kPages * 4096);
  file.set<uint64_t>(24, std::max(1U, groups * kPages * 2) * 4096);
  file.set<uint32_t>(32, 4096);
  file.set<uint64_t>(40, kHeaderBytes);
  file.set<uint32_t>(80, 1);
  file.set<uint64_t>(88, uint64_t{groups} * kPages);
  file.set<uint32_t>(36, 4096);
  file.set<uint64_t>(56, data_offset);
  file.set<uint32_t>(64, groups);
  file.set<uint32_t>(68, groups * kExtents);
  file.set<uint32_t>(72, groups * kPages);
  for (uint32_t group = 0; group < groups; ++group) {
    file.add<reap::PlanGroup>({data_offset + uint64_t{group} * kPages * 4096, kPages * 4096,
                               group * kExtents, kExtents, 0, group * kPages, 0});
  }
  for (uint32_t group = 0; group < groups; ++group) {
    for (uint32_t i = 0; i < kExtents; ++i) {
      const uint32_t rank = (group + 1) * kPages - 2 * i - 2;
      file.add<reap::PlanExtent>({(group * kExtents + i) * 4, 2, rank, 0});
    }
  }
  for (uint32_t group = 0; group < groups; ++group) {
    for (uint32_t i = kExtents; i-- > 0;) {
      for (uint32_t page = 2; page-- > 0;) {
        file.add<uint64_t>((group * kExtents + i) * 4 + page);
      }
    }
  }
  file.seal();
  return file;
}

// Reinterprets bytes as the tables of a set.
template <typename Entry>
size_t take(const Bytes& index, size_t at, uint64_t count, std::vector<Entry>* table) {
  table->resize(count);
  if (count > 0) std::memcpy(table->data(), index.data() + at, count * sizeof(Entry));
  return at + count * sizeof(Entry);
}

// The failed check, or none.
std::string broken_rule(const File& file) {
  reap::WorkingSet set;
  std::memcpy(&set.header, file.header.data(), sizeof set.header);
  const reap::Failure header = reap::check_header(set.header, set.header.file_bytes);
  if (header) return header.check;
  size_t at = take(file.index, 0, set.header.groups, &set.plan.groups);
  at = take(file.index, at, set.header.extents, &set.plan.extents);
  take(file.index, at, set.header.touches, &set.touches);
  return reap::check_tables(set).check;
}
bool is_valid(const File& file) { return broken_rule(file).empty(); }

void write(const std::string& path, const Bytes& bytes) {
  const reap::UniqueFd file(::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
  CHECK_EQ(::write(file.get(), bytes.data(), bytes.size()), bytes.size());
}

}  // namespace

TEST(a_valid_index_is_accepted) {
  for (const uint32_t groups : {0U, 1U, 40U}) CHECK(is_valid(valid_file(groups)));
}

TEST(a_header_whose_numbers_do_not_agree_is_refused_before_its_tables_are_read) {
  struct Row {
    size_t at;
    uint64_t value;
    const char* check;
  };
  // Tables, page size, memory, index, data: sizes of allocations, and the base of the other checks.
  const Row rows[] = {{64, 2, "index-bytes"},        {68, 1 << 20, "index-bytes"},
                      {72, 65, "index-bytes"},       {36, 8192, "page-size"},
                      {24, 63 * 4096, "page-count"}, {48, 8, "index-bytes"},
                      {56, 4096, "data-offset"},     {88, 65, "data-offset"},
                      {96, 1, "page-count"},         {16, 4096, "data-offset"}};
  for (const Row& row : rows) {
    File file = valid_file(1);
    CHECK(is_valid(file));
    const bool is_wide = row.at == 24 || row.at == 48 || row.at == 16 || row.at >= 88;
    std::memcpy(file.header.data() + row.at, &row.value, is_wide ? 8 : 4);
    check::about = "field at " + std::to_string(row.at);
    CHECK_EQ(broken_rule(file), row.check);
  }
}

TEST(an_index_with_any_checked_word_changed_is_refused) {
  // Times are not checked, and neither are the checksums of groups.
  const File good = valid_file(2);
  const size_t touches_at = 2 * (sizeof(reap::PlanGroup) + 32 * sizeof(reap::PlanExtent));
  const auto is_unchecked = [&](size_t at) {
    return at < 2 * sizeof(reap::PlanGroup) ? at % sizeof(reap::PlanGroup) == 20
                                            : at >= touches_at && at % 8 == 4;
  };
  for (size_t at = 0; at < good.index.size(); at += 4) {
    for (const uint32_t change : {1U, 3U, 0x100U, 0x80000000U}) {
      File file = good;
      uint32_t word;
      std::memcpy(&word, file.index.data() + at, sizeof word);
      word ^= change;
      std::memcpy(file.index.data() + at, &word, sizeof word);
      file.seal();
      // An extent may have the rank of its other page.
      const bool is_rank = at >= 2 * sizeof(reap::PlanGroup) && at < touches_at &&
                           at % sizeof(reap::PlanExtent) == 8;
      if (is_rank && change == 1) continue;
      check::about = "word at " + std::to_string(at);
      CHECK_EQ(is_valid(file), is_unchecked(at));
    }
  }
}

TEST(tables_of_random_bytes_are_checked_within_their_bounds) {
  const uint32_t odd[] = {0, 1, 511, 512, 4095, 4096, 4097, 1 << 20, 0x7fffffff, 0xffffffff};
  std::mt19937 random(1);
  for (int round = 0; round < 20000; ++round) {
    File file = valid_file(1 + random() % 3);
    for (uint32_t i = 1 + random() % 3; i-- > 0;) {
      const uint32_t value = random() % 2 ? odd[random() % std::size(odd)] : random() % 300;
      std::memcpy(file.index.data() + random() % (file.index.size() / 4) * 4, &value, 4);
    }
    broken_rule(file);
  }
}

TEST(a_header_with_random_fields_is_refused_or_valid) {
  const uint32_t odd[] = {0, 1, 511, 512, 4095, 4096, 4097, 1 << 20, 0x7fffffff, 0xffffffff};
  std::mt19937 random(1);
  for (int round = 0; round < 20000; ++round) {
    File file = valid_file(1);
    const uint32_t fields[] = {16, 20, 24, 28, 36, 48, 52, 56, 64, 68, 72, 84, 88, 96, 128, 132};
    const uint32_t field = fields[random() % std::size(fields)];
    const uint32_t value = odd[random() % std::size(odd)];
    uint32_t before;
    std::memcpy(&before, file.header.data() + field, sizeof before);
    file.set<uint32_t>(field, value);
    CHECK_EQ(is_valid(file),
             before == value || (field == 24 && value == 1 << 20) || (field == 28 && value < 1024));
  }
}

namespace {

reap::Failure read(const std::string& path, std::shared_ptr<const reap::WorkingSet>* found) {
  reap::PageSource file;
  CHECK_EQ(file.open(path), 0);
  return reap::read_working_set(file, found);
}

Bytes whole_file(const File& file) {
  Bytes bytes = file.all();
  uint64_t size;
  std::memcpy(&size, file.header.data() + 16, sizeof size);
  bytes.resize(size);
  return bytes;
}

}  // namespace

TEST(a_file_is_read_with_its_tables) {
  const fixture::TempDir temporary;
  const File file = valid_file(40);
  write(temporary.path("set"), whole_file(file));
  std::shared_ptr<const reap::WorkingSet> set;
  CHECK(!read(temporary.path("set"), &set));
  CHECK_EQ(set->plan.groups.size(), 40);
  CHECK_EQ(set->plan.extents.size(), 40 * 32);
  CHECK_EQ(set->touches.size(), 40 * 64);
  CHECK(std::memcmp(set->plan.groups.data(), file.index.data(), 40 * 32) == 0);
  CHECK(std::memcmp(set->touches.data(), file.index.data() + 40 * (32 + 32 * 16), 40 * 64 * 8) ==
        0);
}

TEST(a_file_with_any_changed_byte_before_its_data_is_refused) {
  const fixture::TempDir temporary;
  const Bytes good = whole_file(valid_file(1));
  const uint64_t index_end = kHeaderBytes + valid_file(1).index.size();
  for (size_t at = 0; at < index_end; at += 7) {
    Bytes bytes = good;
    bytes[at] ^= 0x40;
    write(temporary.path("set"), bytes);
    std::shared_ptr<const reap::WorkingSet> set;
    check::about = "byte " + std::to_string(at);
    CHECK_EQ(read(temporary.path("set"), &set).code, reap::ErrorCode::working_set_invalid);
    CHECK(!set);
  }
}

TEST(a_truncated_or_grown_file_is_refused) {
  const fixture::TempDir temporary;
  const Bytes good = whole_file(valid_file(40));
  struct Row {
    uint64_t size;
    const char* check;
  };
  const Row rows[] = {{good.size() - 1, "truncated"},
                      {kHeaderBytes + 100, "truncated"},
                      {kHeaderBytes, "truncated"},
                      {100, "truncated"},
                      {0, "magic"},
                      {good.size() + 4096, "file-bytes"}};
  for (const Row& row : rows) {
    Bytes bytes = good;
    bytes.resize(row.size);
    write(temporary.path("set"), bytes);
    std::shared_ptr<const reap::WorkingSet> set;
    check::about = std::to_string(row.size) + " bytes";
    CHECK_EQ(std::string(read(temporary.path("set"), &set).check), row.check);
  }
}

TEST(only_regular_files_are_opened_and_others_are_not_waited_for) {
  const fixture::TempDir temporary;
  reap::PageSource file;
  CHECK_EQ(file.open(temporary.path("none")), -ENOENT);
  const std::string pipe = temporary.path("pipe");
  CHECK_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  CHECK_EQ(file.open(pipe), -EINVAL);
  CHECK_EQ(file.open(temporary.root()), -EINVAL);
  CHECK_EQ(file.open("/dev/zero"), -EINVAL);
}

TEST(a_file_is_read_without_its_data) {
  // Of 1.1 KiB and 1.1 MiB: less and more than the part read with the header.
  for (const uint32_t groups : {1, 1000}) {
    const fixture::TempDir temporary;
    const std::string path = temporary.path("set");
    Bytes bytes = whole_file(valid_file(groups));
    const uint64_t index_end = kHeaderBytes + valid_file(groups).index.size();
    write(path, bytes);
    fixture::forget_cached(path);
    const reap::UniqueFd file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
    const uint64_t first_page =
        (std::max(index_end, reap::first_bytes(bytes.size())) + 4095) / 4096;
    const uint64_t data_pages = bytes.size() / 4096 - first_page;
    const int64_t before = reap::cached_pages(file.get(), first_page, data_pages);
    if (before < 0) SKIP("needs cachestat(2), of Linux 6.5");
    if (before > 0) SKIP(fixture::kNeedsEviction);
    std::shared_ptr<const reap::WorkingSet> set;
    CHECK(!read(path, &set));
    CHECK_EQ(reap::cached_pages(file.get(), first_page, data_pages), 0);
  }
}

TEST(a_recorded_set_has_runs_of_pages_in_address_order) {
  const auto set =
      reap::make_working_set(64 * 4096, 4096, {{9, 0}, {3, 1}, {8, 5}, {4, 7}}, {}, {});
  CHECK_EQ(set->header.file_bytes, 0);
  CHECK_EQ(set->plan.extents.size(), 2);
  CHECK_EQ(set->plan.extents[0].first_page, 3);
  CHECK_EQ(set->plan.extents[0].page_count, 2);
  CHECK_EQ(set->plan.extents[0].rank, 1);
  CHECK_EQ(set->plan.extents[1].first_page, 8);
  CHECK_EQ(set->plan.extents[1].rank, 0);
  const auto huge = reap::make_working_set(8 << 20, 2 << 20, {{512, 0}, {0, 1}}, {}, {});
  CHECK_EQ(huge->plan.extents.size(), 1);
  CHECK_EQ(huge->plan.extents[0].page_count, 1024);
  CHECK_EQ(huge->plan.extents[0].rank, 0);
}
