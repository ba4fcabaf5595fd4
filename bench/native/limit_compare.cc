// Read rate of one thread for the reads of a comparison: the data of a working-set file front to
// back, and the same pages of the memory file, requested some groups ahead. Nothing is compared,
// and no checksum is computed.
#include <fcntl.h>

#include <algorithm>

#include "base/page.h"
#include "files.h"
#include "options.h"
#include "report.h"
#include "working_set/working_set.h"

namespace reap::bench {

namespace {

Plan read_plan(const std::string& path) {
  PageSource file;
  std::shared_ptr<const WorkingSet> set;
  if (file.open(path) != 0 || read_working_set(file, &set)) fail(path + " is no working set");
  return set->plan;
}

struct Files {
  const std::string& set_path;
  const std::string& memory_path;
  const UniqueFd set;
  const UniqueFd memory;
};

uint64_t read_all(const Files& files, const Plan& plan, uint64_t ahead, const Mapping& stored,
                  const Mapping& found) {
  const uint64_t began = now_ns();
  size_t asked_for = 0;
  for (size_t i = 0; i < plan.groups.size(); i++) {
    for (; asked_for < std::min(i + ahead, plan.groups.size()); asked_for++) {
      const PlanGroup& group = plan.groups[asked_for];
      for (uint32_t n = 0; n < group.extent_count; n++) {
        const PlanExtent& extent = plan.extents[group.first_extent + n];
        ::posix_fadvise(files.memory.get(), static_cast<off_t>(extent.first_page * kPage),
                        static_cast<off_t>(extent.page_count * kPage), POSIX_FADV_WILLNEED);
      }
    }
    const PlanGroup& group = plan.groups[i];
    read_fully(files.set.get(), files.set_path, group.data_offset, stored.data(), group.data_bytes);
    for (uint32_t n = 0; n < group.extent_count; n++) {
      const PlanExtent& extent = plan.extents[group.first_extent + n];
      if (extent.flags & kZeroExtent) continue;
      read_fully(files.memory.get(), files.memory_path, extent.first_page * kPage, found.data(),
                 extent.page_count * kPage);
    }
  }
  return now_ns() - began;
}

int run(const Options& options) {
  const std::string& set_path = options.text("--set");
  const std::string& memory_path = options.text("--memory");
  const Files files{set_path, memory_path, open_file(set_path), open_file(memory_path)};
  const Plan plan = read_plan(set_path);
  const Mapping stored = Mapping::buffer(kMaxGroupBytes);
  const Mapping found = Mapping::buffer(kMaxGroupBytes);
  if (!stored || !found) fail("allocate memory", ENOMEM);
  std::fill_n(stored.data(), stored.size(), 1);
  std::fill_n(found.data(), found.size(), 1);

  uint64_t bytes = 0;
  for (const PlanGroup& group : plan.groups) bytes += group.data_bytes;
  std::vector<uint64_t> samples;
  for (uint64_t round = options.number("--repetitions"); round > 0; round--) {
    samples.push_back(read_all(files, plan, options.number("--ahead"), stored, found));
  }
  print(Json()
            .text("limit", "compare")
            .number("bytes", bytes)
            .number("extents", plan.extents.size())
            .number("repetitions", options.number("--repetitions"))
            .json("result", to_json(summarize(samples)).str()));
  return 0;
}

}  // namespace

const Command kLimitCompare{
    "limit-compare",
    "times reading a working set's data and the same pages of its memory file, through the page "
    "cache",
    {{"--set", "FILE", nullptr, "the working-set file"},
     {"--memory", "FILE", nullptr, "the snapshot's memory file"},
     {"--ahead", "N", "4",
      "groups whose pages of the memory file are asked for before they are read"},
     {"--repetitions", "N", "5", "with a cold page cache only the first one reads the disk"}},
    run};

}  // namespace reap::bench
