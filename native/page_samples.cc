#include "page_samples.h"

#include "crc32c.h"
#include "page_source.h"

namespace reap {

Failure sample_pages(const std::string& path, const std::vector<uint32_t>& pages,
                     std::vector<uint32_t>* checksums) {
  constexpr uint64_t kPage = 4096;
  PageSource file;
  if (const int error = file.open(path)) {
    Failure failure;
    failure.code = ErrorCode::source_read;
    failure.err = error;
    failure.syscall = "open";
    return failure;
  }
  for (const uint32_t page : pages) file.will_need(page * kPage, kPage);
  checksums->reserve(pages.size());
  uint8_t bytes[kPage];
  for (const uint32_t page : pages) {
    const PageSource::Result read = file.read(page * kPage, bytes, kPage);
    if (read.read != PageSource::Read::done) {
      return read_failure(ErrorCode::source_read, read, page * kPage);
    }
    checksums->push_back(crc32c(bytes, kPage));
  }
  return {};
}

}  // namespace reap
