#include "working_set_file.h"

#include <sys/mman.h>

#include <algorithm>
#include <list>
#include <mutex>
#include <utility>

#include "crc32c.h"

// Linux 5.14; older headers do not have it.
#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#endif

namespace reap {

namespace {

// What the process knows of the last sets it has used. Files are open while they are used.
struct Known {
  FileStamp stamp;
  std::shared_ptr<PageBitmap> checked;
  std::weak_ptr<WorkingSetFile> file;
};
constexpr size_t kMaxKnown = 64;

class KnownSets {
 public:
  static KnownSets& of_process() {
    static auto* all = new KnownSets;
    return *all;
  }
  std::shared_ptr<WorkingSetFile> open(PageSource source, uint64_t groups) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = std::find_if(sets_.begin(), sets_.end(), [&](const Known& known) {
      return known.stamp == source.stamp();
    });
    if (found != sets_.end()) {
      sets_.splice(sets_.begin(), sets_, found);
    } else {
      sets_.push_front({source.stamp(), std::make_shared<PageBitmap>(groups), {}});
      if (sets_.size() > kMaxKnown) sets_.pop_back();
    }
    Known& known = sets_.front();
    std::shared_ptr<WorkingSetFile> file = known.file.lock();
    if (!file) {
      file = std::make_shared<WorkingSetFile>(std::move(source), known.checked, groups);
      known.file = file;
    }
    return file;
  }

 private:
  std::mutex mutex_;
  std::list<Known> sets_;  // the last used first
};

}  // namespace

std::shared_ptr<WorkingSetFile> WorkingSetFile::open_proven(const Plan& plan) {
  PageSource source;
  if (source.open(plan.path) != 0 || source.stamp() != plan.proof->working_set) return nullptr;
  return KnownSets::of_process().open(std::move(source), plan.groups.size());
}

WorkingSetFile::WorkingSetFile(PageSource source, std::shared_ptr<PageBitmap> checked,
                               uint64_t groups)
    : source_(std::move(source)), checked_(std::move(checked)), mapped_in_(groups) {
  cached_.open(source_.path_of_descriptor());  // without it there is no view
}

const uint8_t* WorkingSetFile::view_of(const PlanGroup& group, uint64_t index) {
  if (!cached_.view() || !*checked_ || !mapped_in_ || !checked_->test(index)) return nullptr;
  const uint64_t pages = group.data_bytes / CachedFile::kPage;
  if (cached_.count(group.data_offset / CachedFile::kPage, pages) < pages) return nullptr;
  const uint8_t* const view = static_cast<const uint8_t*>(cached_.view()) + group.data_offset;
  // Waits here for a page that is still being read: in UFFDIO_COPY the wait would hold the gate,
  // and the VM's messages could not be read.
  if (!mapped_in_.test(index)) {
    if (::madvise(const_cast<uint8_t*>(view), group.data_bytes, MADV_POPULATE_READ) != 0) {
      return nullptr;
    }
    mapped_in_.set(index);
  }
  return view;
}

WorkingSetFile::Fetched WorkingSetFile::fetch(const Plan& plan, uint64_t index, uint8_t* buffer,
                                              bool has_others) {
  const PlanGroup& group = plan.groups[index];
  if (const uint8_t* view = view_of(group, index)) {
    return {{PageSource::Read::done}, view, group.checksum};
  }
  Fetched fetched;
  fetched.bytes = buffer;
  fetched.read = has_others ? source_.read_shared(group.data_offset, buffer, group.data_bytes)
                            : source_.read_streaming(group.data_offset, buffer, group.data_bytes);
  if (fetched.read.read != PageSource::Read::done) return fetched;
  fetched.checksum = crc32c(buffer, group.data_bytes);
  // Only if a later change would show in the stamp: else it could stand for other bytes.
  if (fetched.checksum == group.checksum && *checked_ && is_settled(source_.stamp()[4])) {
    checked_->set(index);
  }
  return fetched;
}

}  // namespace reap
