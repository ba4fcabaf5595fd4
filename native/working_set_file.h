// The data of a working-set file, shared by the restores of the process that use it: opened and
// mapped once. A group that was checked is taken from the page cache without another check.
#pragma once

#include <cstdint>
#include <memory>

#include "cached_file.h"
#include "page_bitmap.h"
#include "page_source.h"
#include "plan.h"

namespace reap {

class WorkingSetFile {
 public:
  // The file of a plan while it is in the state of the proof; null otherwise, and where it cannot
  // be opened.
  static std::shared_ptr<WorkingSetFile> open_proven(const Plan& plan);

  // The state of the file now.
  FileStamp look() const { return source_.look(); }

  struct Fetched {
    PageSource::Result read;
    const uint8_t* bytes = nullptr;  // in `buffer`, or in a mapping of the file
    uint32_t checksum = 0;           // of the bytes; of those in the mapping, the expected one
  };
  // Fetches the data of a group. If the group was checked and the page cache has it, `bytes` are in
  // the mapping, for the kernel alone to copy: where the file was cut short, touching them is
  // SIGBUS, and UFFDIO_COPY fails with EFAULT. Else they are read into `buffer`, through the page
  // cache if `has_others`. A wrong checksum means damage only if the stamps did not change.
  Fetched fetch(const Plan& plan, uint64_t group, uint8_t* buffer, bool has_others);

  // For open_proven().
  WorkingSetFile(PageSource source, std::shared_ptr<PageBitmap> checked, uint64_t groups);

 private:
  const uint8_t* view_of(const PlanGroup& group, uint64_t index);

  PageSource source_;
  CachedFile cached_;
  const std::shared_ptr<PageBitmap> checked_;  // groups, for as long as the file has this stamp
  PageBitmap mapped_in_;                       // groups whose pages were mapped in
};

}  // namespace reap
