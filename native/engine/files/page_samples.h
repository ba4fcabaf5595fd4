// Checksums of sampled pages of a disk image, which tell one image from another.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/failure.h"

namespace reap {

// CRC-32C of each 4 KiB page. A page in which the image ends is padded with zeros, as in the page
// cache. Requests readahead of all pages first, then reads them.
Failure sample_pages(const std::string& path, const std::vector<uint32_t>& pages,
                     std::vector<uint32_t>* checksums);

}  // namespace reap
