// Checksums of chosen pages of a file: what tells one memory file from another.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "failure.h"

namespace reap {

// CRC-32C of each 4 KiB page. The pages are asked for all at once, then read.
Failure sample_pages(const std::string& path, const std::vector<uint32_t>& pages,
                     std::vector<uint32_t>* checksums);

}  // namespace reap
