// The data of a working-set file, shared by all restores of the process that use it: opened and
// mapped once, each group read from the disk once and checked once.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "cached_file.h"
#include "page_bitmap.h"
#include "page_source.h"
#include "plan.h"

namespace reap {

class WorkingSetFile {
 public:
  // The file of a plan while it is in the state of the proof; null otherwise, and where it cannot
  // be opened.
  static std::shared_ptr<WorkingSetFile> of(const Plan& plan);

  // The state of the file now.
  FileStamp look() const { return source_.look(); }

  struct Fetched {
    PageSource::Result read;
    const uint8_t* bytes = nullptr;  // in `buffer`, or in a mapping of the file
    uint32_t checksum = 0;           // of the group, the right one included
  };
  // The data of a group. What the page cache has, and has been checked, is not read again: the
  // bytes are for the kernel to copy, as touching those of a file that was cut short meanwhile is
  // SIGBUS (and EFAULT of UFFDIO_COPY). What others use as well is read through the page cache,
  // else past it. The checksum tells of damage only where the stamps did not change.
  Fetched fetch(const Plan& plan, uint64_t group, uint8_t* buffer, bool has_others);

  // Made by of() alone.
  WorkingSetFile(PageSource source, std::shared_ptr<PageBitmap> checked, uint64_t groups);

 private:
  const uint8_t* view_of(const PlanGroup& group, uint64_t index);

  PageSource source_;
  CachedFile cached_;
  bool has_view_ = false;
  const std::shared_ptr<PageBitmap> checked_;  // groups, for as long as the file has this stamp
  PageBitmap mapped_in_;                       // groups whose pages the view has had
};

}  // namespace reap
