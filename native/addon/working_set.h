// JavaScript's handles for working sets and for the files of a restore.
#pragma once

#include <memory>

#include "addon/addon.h"
#include "files/page_source.h"
#include "working_set/working_set.h"

namespace reap {

// Files of a restore, opened and checked once. A session takes ownership of them.
struct OpenedFiles {
  PageSource memory_file;
  PageSource working_set;  // empty: the set has no file
};

// Null, with a TypeError thrown, for any other value.
std::shared_ptr<const WorkingSet> working_set_of(Napi::Value value);
OpenedFiles* opened_files_of(Napi::Value value);

}  // namespace reap
