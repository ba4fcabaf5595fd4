// Checksums of chosen pages of a file: what tells one memory file, or disk image, from another.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "failure.h"

namespace reap {

// What a page in which the file ends comes to.
enum class PartialPage {
  refused,  // a memory file has whole pages, or was cut short
  padded,   // with zeros, as the page cache has it
};

// CRC-32C of each 4 KiB page. The pages are asked for all at once, then read.
Failure sample_pages(const std::string& path, const std::vector<uint32_t>& pages,
                     PartialPage partial, std::vector<uint32_t>* checksums);

}  // namespace reap
