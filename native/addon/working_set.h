// What JavaScript holds of working sets and of the files of a restore.
#pragma once

#include <memory>

#include "addon/addon.h"
#include "files/page_source.h"
#include "working_set/working_set.h"

namespace reap {

// The files of a restore, opened and looked at once. A session takes them.
struct OpenedFiles {
  PageSource memory_file;
  PageSource working_set;  // empty: the set is in no file
};

// Null, with a TypeError thrown, for a value that is something else.
std::shared_ptr<const WorkingSet> working_set_of(Napi::Value value);
OpenedFiles* opened_files_of(Napi::Value value);

}  // namespace reap
