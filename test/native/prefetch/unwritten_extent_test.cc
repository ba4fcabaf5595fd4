// Memory files with blocks that are allocated but unwritten: holes until somebody reads them.
#include <fcntl.h>
#include <unistd.h>

#include "support/check.h"
#include "support/prefetch_fixture.h"

namespace {

using fixture::Client;
using fixture::Counter;
using fixture::Restore;
using fixture::Shape;

constexpr char kNeedsUnwritten[] =
    "needs a temporary folder on a file system with unwritten extents that SEEK_DATA knows";

// The pages [first, first + count), without bytes.
fixture::Set places(const std::vector<fixture::Pages>& extents) {
  fixture::Set plan;
  plan.page_size = fixture::kSmallPage;
  for (const fixture::Pages& pages : extents) {
    plan.extents.push_back(
        {pages.first, pages.count, static_cast<uint32_t>(plan.extents.size()), 0});
  }
  return plan;
}

}  // namespace

TEST(a_block_fetched_as_a_hole_is_installed_as_zeros_even_if_it_becomes_data) {
  constexpr off_t kUnwritten = 16;
  constexpr off_t kPages = 8;
  Shape shape;
  for (uint64_t page = 16; page < 48; ++page) shape.holes.push_back(page);
  Restore first(shape);
  Restore restore(shape);
  if (!restore.missing().empty()) SKIP(restore.missing());
  reap::UniqueFd file(::open(restore.path.c_str(), O_RDWR | O_CLOEXEC));
  if (::fallocate(file.get(), 0, kUnwritten * 4096, kPages * 4096) != 0) SKIP(kNeedsUnwritten);
  // Open for reading only, since a file with a writer is not fetched ahead of the handshake.
  file.reset(::open(restore.path.c_str(), O_RDONLY | O_CLOEXEC));
  restore.connect();
  const auto is_hole = [&] {
    return ::lseek(file.get(), kUnwritten * 4096, SEEK_DATA) >= (kUnwritten + kPages) * 4096;
  };
  if (!is_hole()) SKIP(kNeedsUnwritten);

  // The last returned buffer is the next one to be taken: it is full of another VM's bytes.
  reap::Prefetcher prefetcher(1);
  const auto before = std::make_shared<Client>(first);
  fixture::start(prefetcher, before, places({{0, 16}}));
  fixture::eventually([&] { return first.get(Counter::bytes_read) == 16 * 4096; });
  prefetcher.connected(before.get());
  CHECK_EQ(before->wait_for_prefetched().pages, 16);

  const auto client = std::make_shared<Client>(restore);
  fixture::start(prefetcher, client, places({{kUnwritten, kPages}, {0, 4}}));
  fixture::eventually([&] { return restore.get(Counter::bytes_read) == 4 * 4096; });
  std::vector<uint8_t> bytes(kPages * 4096);
  CHECK_EQ(::pread(file.get(), bytes.data(), bytes.size(), kUnwritten * 4096), bytes.size());
  if (is_hole()) SKIP(kNeedsUnwritten);
  prefetcher.connected(client.get());
  CHECK_EQ(client->wait_for_prefetched().pages, kPages + 4);
  for (uint64_t page = kUnwritten; page < kUnwritten + kPages; ++page) {
    CHECK(restore.guest.is_present(page));
    CHECK(restore.is_zero(page));
  }
  for (uint64_t page = 0; page < 4; ++page) CHECK(restore.has_file_bytes(page));
}
