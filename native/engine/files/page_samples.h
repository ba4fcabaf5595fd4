// Checksums of chosen pages of a disk image: what tells one from another.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/failure.h"

namespace reap {

// CRC-32C of each 4 KiB page; one in which the image ends is padded with zeros, as the page cache
// has it. The pages are asked for all at once, then read.
Failure sample_pages(const std::string& path, const std::vector<uint32_t>& pages,
                     std::vector<uint32_t>* checksums);

}  // namespace reap
