#include "files/page_samples.h"

#include <algorithm>
#include <cstring>

#include "base/crc32c.h"
#include "base/page.h"
#include "files/page_source.h"

namespace reap {

Failure sample_pages(const std::string& path, const std::vector<uint32_t>& pages,
                     std::vector<uint32_t>* checksums) {
  PageSource file;
  if (const int error = file.open(path)) {
    return failed_call(ErrorCode::source_read, error, "open");
  }
  for (const uint32_t page : pages) file.will_need(page * kPage, kPage);
  checksums->reserve(pages.size());
  uint8_t bytes[kPage];
  for (const uint32_t page : pages) {
    uint64_t length = kPage;
    if (page == file.bytes() / kPage) {
      // Not 0: a page that begins at the end of the file does not exist.
      length = std::max<uint64_t>(1, file.bytes() % kPage);
      std::memset(bytes + length, 0, kPage - length);
    }
    const PageSource::Result read = file.read(page * kPage, bytes, length);
    if (read.read != PageSource::Read::done) {
      return read_failure(ErrorCode::source_read, read, page * kPage);
    }
    checksums->push_back(crc32c(bytes, kPage));
  }
  return {};
}

}  // namespace reap
