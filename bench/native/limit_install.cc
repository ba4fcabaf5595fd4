// Rate at which the kernel installs these extents without other work: UFFDIO_COPY from resident
// memory into a new mapping that nobody touches.
#include <pthread.h>

#include <algorithm>
#include <thread>

#include "files.h"
#include "guest/userfault.h"
#include "options.h"
#include "report.h"
#include "uffd/uffd.h"

namespace reap::bench {

namespace {

struct Piece {
  uint64_t offset;  // in the mapping
  const uint8_t* source;
  uint64_t bytes;
};

// One share of the extents per thread, of about equal size, split at page boundaries.
std::vector<std::vector<Piece>> share_out(const std::vector<Extent>& extents, const uint8_t* source,
                                          size_t threads) {
  const uint64_t total_pages = total_bytes(extents) / kPageBytes;
  std::vector<std::vector<Piece>> shares(threads);
  uint64_t given = 0;  // pages
  for (Extent extent : extents) {
    while (extent.bytes > 0) {
      const size_t thread = given * threads / total_pages;
      const uint64_t end = ((thread + 1) * total_pages + threads - 1) / threads;
      const uint64_t pages = std::min(extent.bytes / kPageBytes, end - given);
      shares[thread].push_back({extent.offset, source + given * kPageBytes, pages * kPageBytes});
      extent = {extent.offset + pages * kPageBytes, extent.bytes - pages * kPageBytes};
      given += pages;
    }
  }
  return shares;
}

void install(int uffd, uint8_t* memory, const std::vector<Piece>& pieces) {
  for (const Piece& piece : pieces) {
    for (uint64_t done = 0; done < piece.bytes;) {
      const auto address = reinterpret_cast<uintptr_t>(memory) + piece.offset + done;
      const auto result = uffd::copy(uffd, address, piece.source + done, piece.bytes - done);
      done += result.bytes;
      if (result.bytes == 0) fail("install a page", -result.err);
    }
  }
}

// From the common start of all threads to the end of the last one.
uint64_t measure(const std::vector<std::vector<Piece>>& shares, uint64_t memory_bytes) {
  const Mapping memory = Mapping::anonymous(memory_bytes);
  if (!memory) fail("map " + std::to_string(memory_bytes) + " bytes", ENOMEM);
  guest::Userfault userfault;
  guest::Error error = guest::Userfault::open(&userfault);
  if (!error) error = userfault.register_missing(memory.data(), memory.size());
  if (error) fail(error.message);

  pthread_barrier_t barrier;
  ::pthread_barrier_init(&barrier, nullptr, static_cast<unsigned>(shares.size()));
  std::vector<uint64_t> began(shares.size());
  std::vector<uint64_t> ended(shares.size());
  const auto run = [&](size_t i) {
    ::pthread_barrier_wait(&barrier);
    began[i] = now_ns();
    install(userfault.fd.get(), memory.data(), shares[i]);
    ended[i] = now_ns();
  };
  std::vector<std::thread> threads;
  for (size_t i = 1; i < shares.size(); i++) threads.emplace_back(run, i);
  run(0);
  for (std::thread& thread : threads) thread.join();
  ::pthread_barrier_destroy(&barrier);
  return *std::max_element(ended.begin(), ended.end()) -
         *std::min_element(began.begin(), began.end());
}

int run(const Options& options) {
  const Mapping file = map_file(options.text("--memory"));
  const auto extents = read_page_list(options.text("--pages"), file.size());
  const uint64_t bytes = total_bytes(extents);
  const uint64_t most = options.number("--threads");
  if (most > 256) usage_error("--threads takes numbers up to 256");

  const Mapping source = Mapping::buffer(bytes);
  if (!source) fail("allocate " + std::to_string(bytes) + " bytes", ENOMEM);
  uint8_t* to = source.data();
  for (const Extent& extent : extents) {
    to = std::copy_n(file.data() + extent.offset, extent.bytes, to);
  }

  // Rounds outside and arms inside, so that noise affects all of them alike.
  std::vector<std::vector<uint64_t>> samples(most);
  for (uint64_t round = options.number("--repetitions"); round > 0; round--) {
    for (size_t threads = 1; threads <= most; threads++) {
      const auto shares = share_out(extents, source.data(), threads);
      samples[threads - 1].push_back(measure(shares, file.size()));
    }
  }

  std::vector<std::string> results;
  std::vector<uint64_t> medians;
  for (const auto& some : samples) {
    const Summary summary = summarize(some);
    medians.push_back(summary.median);
    results.push_back(to_json(summary).number("threads", results.size() + 1).str());
  }
  const auto best = std::min_element(medians.begin(), medians.end()) - medians.begin();
  print(Json()
            .text("limit", "install")
            .number("bytes", bytes)
            .number("extents", extents.size())
            .number("repetitions", options.number("--repetitions"))
            .json("results", json_list(results))
            .json("best", results[static_cast<size_t>(best)]));
  return 0;
}

}  // namespace

const Command kLimitInstall{
    "limit-install",
    "times bare UFFDIO_COPY of these pages from resident memory into a new mapping",
    {{"--memory", "FILE", nullptr, "the memory file with these pages"},
     {"--pages", "FILE", nullptr, "the pages, in any order; one call for each contiguous run"},
     {"--threads", "N", "2", "tries 1 to N threads"},
     {"--repetitions", "N", "7", "of each, interleaved"}},
    run};

}  // namespace reap::bench
