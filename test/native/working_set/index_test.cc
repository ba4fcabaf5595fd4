// The tables of a working-set file: read as they are, checked, and never read outside of. Which
// rule is named for which damage is test/working-set/damage.test.ts's.
#include "working_set/index.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <random>
#include <string>

#include "base/crc32c.h"
#include "files/cached_file.h"
#include "support/check.h"
#include "support/page_cache_fixture.h"
#include "working_set/plan.h"

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

// Groups of 64 pages in extents of two, every second one, each group from its end to its beginning.
File sound_file(uint32_t groups) {
  constexpr uint32_t kExtents = 32, kPages = 64;
  File file;
  const uint64_t tables = groups * (sizeof(reap::PlanGroup) + kExtents * sizeof(reap::PlanExtent) +
                                    kPages * sizeof(uint64_t));
  const uint64_t data_offset = (kHeaderBytes + tables + 4095) / 4096 * 4096;
  file.set<uint64_t>(24, groups * kPages * 2 * 4096);
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

bool is_sound(const File& file) { return !reap::check_index(file.header, file.index).check; }

void write(const std::string& path, const Bytes& bytes) {
  const reap::UniqueFd file(::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
  CHECK_EQ(::write(file.get(), bytes.data(), bytes.size()), bytes.size());
}

}  // namespace

TEST(an_index_that_keeps_the_rules_is_sound) {
  for (const uint32_t groups : {0U, 1U, 40U}) CHECK(is_sound(sound_file(groups)));
}

TEST(an_index_that_has_no_room_for_its_tables_is_refused_unread) {
  struct Row {
    size_t at;
    uint64_t value;
  };
  // Tables, page size, memory: what the other checks rely on.
  const Row rows[] = {{64, 2}, {68, 1 << 20}, {72, 65}, {36, 8192}, {24, 63 * 4096}, {48, 8}};
  for (const Row& row : rows) {
    File file = sound_file(1);
    CHECK(is_sound(file));
    std::memcpy(file.header.data() + row.at, &row.value, row.at == 24 || row.at == 48 ? 8 : 4);
    const char* check = reap::check_index(file.header, file.index).check;
    check::about = "field at " + std::to_string(row.at);
    CHECK_EQ(std::string(check ? check : ""), "index-bytes");
  }
}

TEST(an_index_with_any_changed_byte_has_the_wrong_checksum) {
  for (size_t at = 0; at < sound_file(1).index.size(); at += 7) {
    File file = sound_file(1);
    file.index[at] ^= 0x40;
    const char* check = reap::check_index(file.header, file.index).check;
    CHECK_EQ(std::string(check ? check : ""), "index-checksum");
  }
}

TEST(an_index_with_any_word_changed_is_refused_or_no_other_set) {
  // Times are anybody's, and so are the checksums of groups.
  const File good = sound_file(2);
  const size_t touches_at = 2 * (sizeof(reap::PlanGroup) + 32 * sizeof(reap::PlanExtent));
  const auto says_nothing = [&](size_t at) {
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
      // The rank of an extent may be that of its other page.
      const bool is_rank = at >= 2 * sizeof(reap::PlanGroup) && at < touches_at &&
                           at % sizeof(reap::PlanExtent) == 8;
      if (is_rank && change == 1) continue;
      check::about = "word at " + std::to_string(at);
      CHECK_EQ(is_sound(file), says_nothing(at));
    }
  }
}

TEST(an_index_of_any_bytes_under_any_header_is_read_inside_its_bounds) {
  const uint32_t odd[] = {0, 1, 511, 512, 4095, 4096, 4097, 1 << 20, 0x7fffffff, 0xffffffff};
  std::mt19937 random(1);
  for (int round = 0; round < 20000; ++round) {
    File file = sound_file(1 + random() % 3);
    for (uint32_t i = random() % 3; i-- > 0;) {
      const uint32_t value = random() % 2 ? odd[random() % std::size(odd)] : random() % 300;
      std::memcpy(file.index.data() + random() % (file.index.size() / 4) * 4, &value, 4);
    }
    if (random() % 4 == 0) file.index.resize(random() % file.index.size());
    file.seal();
    for (uint32_t i = random() % 3; i-- > 0;) {
      const uint32_t fields[] = {24, 28, 36, 48, 52, 56, 64, 68, 72, 96};
      file.set<uint32_t>(fields[random() % std::size(fields)], odd[random() % std::size(odd)]);
    }
    reap::check_index(file.header, file.index);
  }
  CHECK(reap::check_index({}, {}).check);
  CHECK(reap::check_index(Bytes(kHeaderBytes - 1), {}).check);
}

TEST(an_index_is_read_as_long_as_it_is) {
  const fixture::TempDir temporary;
  const std::string path = temporary.path("set");
  File file = sound_file(40);
  struct Row {
    const char* name;
    uint64_t says;  // how long the index is
    uint64_t size;  // of the file
    uint64_t header, index;
  };
  const uint64_t index = file.index.size();
  const uint64_t whole = kHeaderBytes + index;
  const Row rows[] = {
      {"whole", index, whole, kHeaderBytes, index},
      {"with data behind it", index - 100, whole, kHeaderBytes, index - 100},
      {"cut in the index", index, whole - 100, kHeaderBytes, index - 100},
      {"cut behind the header", index, kHeaderBytes, kHeaderBytes, 0},
      {"cut in the header", index, 100, 100, 0},
      {"empty", index, 0, 0, 0},
      {"longer than a file can be", UINT64_MAX, whole, kHeaderBytes, 0},
      {"longer than is read", (1 << 28) + 1, whole, kHeaderBytes, 0},
      {"as long as is read", 1 << 28, whole, kHeaderBytes, index},
  };
  for (const Row& row : rows) {
    check::about = row.name;
    file.set<uint64_t>(kIndexBytesAt, row.says);
    file.seal_header();
    Bytes bytes = file.all();
    bytes.resize(row.size);
    write(path, bytes);
    reap::WorkingSetIndex found;
    CHECK_EQ(reap::read_working_set_index(path, &found).code, reap::ErrorCode::none);
    CHECK(found.is_regular);
    CHECK_EQ(found.file_bytes, row.size);
    CHECK_EQ(found.header.size(), row.header);
    CHECK_EQ(found.index.size(), row.index);
    CHECK(std::equal(found.header.begin(), found.header.end(), bytes.begin()));
    CHECK(std::equal(found.index.begin(), found.index.end(),
                     bytes.begin() + static_cast<long>(row.index ? kHeaderBytes : 0)));
  }
}

TEST(an_index_of_a_damaged_header_is_not_read) {
  const fixture::TempDir temporary;
  const std::string path = temporary.path("set");
  for (const size_t at : {0, 24, 124, 4000}) {
    Bytes bytes = sound_file(1).all();
    bytes[at] ^= 1;
    write(path, bytes);
    reap::WorkingSetIndex found;
    CHECK_EQ(reap::read_working_set_index(path, &found).code, reap::ErrorCode::none);
    CHECK_EQ(found.header.size(), kHeaderBytes);
    CHECK(found.index.empty());
    CHECK(!found.broken.check);
  }
}

TEST(an_index_of_no_file_is_not_waited_for) {
  const fixture::TempDir temporary;
  reap::WorkingSetIndex found;
  const reap::Failure missing = reap::read_working_set_index(temporary.path("none"), &found);
  CHECK_EQ(missing.code, reap::ErrorCode::working_set_io);
  CHECK_EQ(missing.err, -ENOENT);
  CHECK_EQ(std::string(missing.syscall), "open");
  const std::string pipe = temporary.path("pipe");
  CHECK_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  for (const std::string& path : {pipe, temporary.root()}) {
    CHECK_EQ(reap::read_working_set_index(path, &found).code, reap::ErrorCode::none);
    CHECK(!found.is_regular);
  }
}

TEST(an_index_is_read_without_the_data_behind_it) {
  // Of 1.1 KiB and 1.1 MiB: shorter and longer than what is read with the header.
  for (const uint32_t groups : {1, 1000}) {
    const fixture::TempDir temporary;
    const std::string path = temporary.path("set");
    Bytes bytes = sound_file(groups).all();
    const uint64_t index_bytes = bytes.size();
    bytes.resize((bytes.size() + (16 << 20)) / 4096 * 4096, 1);
    write(path, bytes);
    fixture::forget_cached(path);
    const reap::UniqueFd file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
    const uint64_t first_page =
        (std::max(index_bytes, reap::first_bytes(bytes.size())) + 4095) / 4096;
    const uint64_t data_pages = bytes.size() / 4096 - first_page;
    const int64_t before = reap::cached_pages(file.get(), first_page, data_pages);
    if (before < 0) SKIP("needs cachestat(2), of Linux 6.5");
    if (before > 0) SKIP(fixture::kNeedsEviction);
    reap::WorkingSetIndex found;
    CHECK_EQ(reap::read_working_set_index(path, &found).code, reap::ErrorCode::none);
    CHECK_EQ(reap::cached_pages(file.get(), first_page, data_pages), 0);
  }
}
