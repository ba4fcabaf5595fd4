#include "page_cache/read_cost.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <numeric>
#include <vector>

#include "base/page.h"
#include "base/posix.h"
#include "base/thread.h"
#include "files/cached_file.h"
#include "working_set/plan.h"

namespace reap {

namespace {

using Clock = std::chrono::steady_clock;

constexpr auto kMaxSample = std::chrono::milliseconds(100);
constexpr uint64_t kMaxSampleBytes = 32 << 20;
// Reads at a time, about as many as a restore has in flight.
constexpr unsigned kLanes = 4;

struct Reads {
  std::vector<Block> blocks;
  // The bytes that a restore reads of a block from which pages are missing: all, or only these.
  bool are_whole;
};

Reads reads_of(const PageSource& file, const WorkingSet& set, BytesFrom from) {
  Reads reads;
  if (from == BytesFrom::working_set_file) {
    reads.are_whole = true;
    for (const PlanGroup& group : set.plan.groups) {
      if (group.data_bytes > 0) reads.blocks.push_back({group.data_offset, group.data_bytes});
    }
    return reads;
  }
  const uint64_t page_size = set.header.page_size;
  reads.are_whole = page_size != kPage;
  if (reads.are_whole) {
    reads.blocks = blocks_of(set.plan, page_size, set.header.memory_bytes);
  } else {
    for (const PlanExtent& extent : memory_groups_of(set.plan).extents) {
      reads.blocks.push_back({extent.first_page * kPage, extent.page_count * kPage});
    }
  }
  const DataMap& data = file.data_map(file.stamp());
  const auto is_hole = [&](const Block& block) {
    return data.hole_end(block.offset) >= block.offset + block.length;
  };
  reads.blocks.erase(std::remove_if(reads.blocks.begin(), reads.blocks.end(), is_hole),
                     reads.blocks.end());
  return reads;
}

// Reads blocks from all parts of the list, as many as the limits allow.
class Sampler {
 public:
  Sampler(const PageSource& file, const std::vector<Block>& blocks)
      : file_(file), blocks_(blocks), step_(blocks.size() * 618 / 1000 + 1) {
    while (std::gcd(step_, blocks_.size()) != 1) ++step_;
  }

  void run(ReadCost* cost) {
    const auto start = Clock::now();
    deadline_ = start + kMaxSample;
    {
      Thread others[kLanes - 1];
      // One lane is enough where no thread can be started.
      for (Thread& other : others) other.start([this] { read_in_turn(); });
      read_in_turn();
    }
    const auto took = std::chrono::duration_cast<std::chrono::microseconds>(Clock::now() - start);
    cost->sampled_reads = reads_;
    cost->sampled_bytes = bytes_;
    cost->sample_us = static_cast<uint64_t>(took.count());
  }

 private:
  void read_in_turn() {
    const Mapping buffer = Mapping::buffer(kMaxBlockBytes);
    if (!buffer) return;
    for (;;) {
      const uint64_t turn = next_++;
      if (turn >= blocks_.size() || bytes_ >= kMaxSampleBytes || Clock::now() >= deadline_) return;
      const Block& block = blocks_[turn * step_ % blocks_.size()];
      const PageSource::Result read = file_.read_direct(block.offset, buffer.data(), block.length);
      if (read.read != PageSource::Read::done) return;
      ++reads_;
      bytes_ += block.length;
    }
  }

  const PageSource& file_;
  const std::vector<Block>& blocks_;
  uint64_t step_;  // has no divisor in common with the number of blocks, so that each has one turn
  Clock::time_point deadline_;
  std::atomic<uint64_t> next_{0};
  std::atomic<uint64_t> reads_{0};
  std::atomic<uint64_t> bytes_{0};
};

}  // namespace

ReadCost find_read_cost(const PageSource& file, const WorkingSet& set, BytesFrom from) {
  const Reads reads = reads_of(file, set, from);
  CachedFile cached;
  ReadCost cost;
  cost.is_visible = cached.open(file.path()) == 0 && cached.is_visible();
  std::vector<Block> missing;
  for (const Block& block : reads.blocks) {
    cost.bytes += block.length;
    // A page that is counted without residency would be read.
    const uint64_t there =
        cost.is_visible ? cached.count(block.offset / kPage, block.length / kPage) * kPage : 0;
    cost.cached_bytes += there;
    if (there >= block.length) continue;
    cost.read_bytes += reads.are_whole ? block.length : block.length - there;
    missing.push_back(block);
  }
  cost.reads = missing.size();
  if (!missing.empty()) Sampler(file, missing).run(&cost);
  return cost;
}

}  // namespace reap
