// Read rate of a file past the page cache: front to back, in blocks, by threads with one
// outstanding read each.
#include <fcntl.h>
#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <thread>

#include "files.h"
#include "options.h"
#include "report.h"

namespace reap::bench {

namespace {

struct Arm {
  uint64_t threads;
  uint64_t block_bytes;
  std::vector<uint64_t> samples;
};

uint64_t measure(int fd, const std::string& path, const Mapping& buffer, const Arm& arm) {
  // O_DIRECT would also read cached pages from the device, but write dirty ones back first.
  ::posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
  std::atomic<uint64_t> next{0};
  pthread_barrier_t barrier;
  ::pthread_barrier_init(&barrier, nullptr, static_cast<unsigned>(arm.threads));
  std::vector<uint64_t> began(arm.threads);
  std::vector<uint64_t> ended(arm.threads);
  const auto run = [&](size_t i) {
    ::pthread_barrier_wait(&barrier);
    began[i] = now_ns();
    for (;;) {
      const uint64_t offset = next.fetch_add(arm.block_bytes);
      if (offset >= buffer.size()) break;
      const uint64_t bytes = std::min(arm.block_bytes, buffer.size() - offset);
      read_fully(fd, path, offset, buffer.data() + offset, bytes);
    }
    ended[i] = now_ns();
  };
  std::vector<std::thread> threads;
  for (size_t i = 1; i < arm.threads; i++) threads.emplace_back(run, i);
  run(0);
  for (std::thread& thread : threads) thread.join();
  ::pthread_barrier_destroy(&barrier);
  return *std::max_element(ended.begin(), ended.end()) -
         *std::min_element(began.begin(), began.end());
}

int run(const Options& options) {
  const std::string& path = options.text("--file");
  bool direct = false;
  const UniqueFd fd = open_direct(path, &direct);
  // A partial page at the end cannot be read with O_DIRECT.
  const uint64_t bytes = file_bytes(fd.get(), path) / kPageBytes * kPageBytes;
  if (bytes == 0) fail(path + " has not one page");
  ::fdatasync(fd.get());

  const Mapping buffer = Mapping::buffer(bytes);
  if (!buffer) fail("allocate " + std::to_string(bytes) + " bytes", ENOMEM);
  std::fill_n(buffer.data(), bytes, 1);

  std::vector<Arm> arms;
  for (const uint64_t threads : options.numbers("--threads")) {
    if (threads > 256) usage_error("--threads takes numbers up to 256");
    for (const uint64_t block_bytes : options.numbers("--blocks")) {
      if (block_bytes % kPageBytes != 0) usage_error("--blocks takes multiples of 4096");
      arms.push_back({threads, block_bytes, {}});
    }
  }
  for (uint64_t round = options.number("--repetitions"); round > 0; round--) {
    for (Arm& arm : arms) arm.samples.push_back(measure(fd.get(), path, buffer, arm));
  }

  std::vector<std::string> results;
  std::vector<uint64_t> medians;
  for (const Arm& arm : arms) {
    const Summary summary = summarize(arm.samples);
    medians.push_back(summary.median);
    results.push_back(to_json(summary)
                          .number("threads", arm.threads)
                          .number("blockBytes", arm.block_bytes)
                          .number("bytesPerSecond", bytes * 1'000'000'000 / summary.median)
                          .str());
  }
  const auto best = std::min_element(medians.begin(), medians.end()) - medians.begin();
  print(Json()
            .text("limit", "read")
            .number("bytes", bytes)
            .boolean("direct", direct)
            .number("repetitions", options.number("--repetitions"))
            .json("results", json_list(results))
            .json("best", results[static_cast<size_t>(best)]));
  return 0;
}

}  // namespace

const Command kLimitRead{
    "limit-read",
    "times O_DIRECT reads of a whole file, front to back",
    {{"--file", "FILE", nullptr, "the file, such as REAP's working set"},
     {"--threads", "LIST", "1,2,4,8", "each with one outstanding read: the queue depth"},
     {"--blocks", "LIST", "131072,1048576,8388608", "bytes of one read"},
     {"--repetitions", "N", "5", "of each, interleaved"}},
    run};

}  // namespace reap::bench
