#include "expectation.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <cerrno>

#include "command.h"

namespace reap::guest {

namespace {

Error map_file(const std::string& path, uint64_t bytes, Mapping* mapping) {
  const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd) return system_error("open " + path, errno);
  struct stat status;
  if (::fstat(fd.get(), &status) != 0) return system_error("stat " + path, errno);
  if (static_cast<uint64_t>(status.st_size) < bytes) {
    return {path + " is smaller than the memory: " + std::to_string(status.st_size) + " of " +
                std::to_string(bytes) + " bytes",
            -EINVAL};
  }
  void* data = ::mmap(nullptr, bytes, PROT_READ, MAP_SHARED, fd.get(), 0);
  if (data == MAP_FAILED) return system_error("map " + path, errno);
  *mapping = Mapping::adopt(data, bytes);
  return {};
}

// "FIRST<separator>SECOND" or, if `single`, also "FIRST" for both.
bool parse_pair(const std::string& text, char separator, bool single, uint64_t* first,
                uint64_t* second) {
  const std::vector<std::string> parts = split(text, separator);
  if (parts.size() != 2 && !(single && parts.size() == 1)) return false;
  return parse_number(parts.front(), first) && parse_number(parts.back(), second);
}

}  // namespace

Error Expectation::make(const VmmMemory& memory, const std::string& memory_file,
                        const std::string& removed, const std::string& written,
                        Expectation* expectation) {
  expectation->memory_ = &memory;
  expectation->removed_.assign(memory.pages(), false);
  uint64_t first, second;
  for (const std::string& range : split(removed, ',')) {
    if (!parse_pair(range, '-', true, &first, &second) || second >= memory.pages()) {
      return {"not a range of pages: '" + range + "'", -EINVAL};
    }
    for (uint64_t page = first; page <= second; page++) expectation->removed_[page] = true;
  }
  for (const std::string& byte : split(written, ',')) {
    if (!parse_pair(byte, ':', false, &first, &second) || second > 255) {
      return {"not a page and a byte: '" + byte + "'", -EINVAL};
    }
    expectation->written_[first] = static_cast<uint8_t>(second);
  }
  return map_file(memory_file, memory.pages() * memory.page_size(), &expectation->file_);
}

bool Expectation::matches(uint64_t page) const {
  const uint64_t page_size = memory_->page_size();
  const uint8_t* found = memory_->page(page);
  const uint8_t* file = removed_[page] ? nullptr : file_.data() + page * page_size;
  const auto written = written_.find(page);
  for (size_t i = 0; i < page_size; i += sizeof(uint64_t)) {
    uint64_t wanted = file ? *reinterpret_cast<const uint64_t*>(file + i) : 0;
    if (i == 0 && written != written_.end()) wanted = (wanted & ~uint64_t{255}) | written->second;
    // Other guest threads may access the page concurrently.
    const auto* word = reinterpret_cast<const uint64_t*>(found + i);
    if (__atomic_load_n(word, __ATOMIC_RELAXED) != wanted) return false;
  }
  return true;
}

bool Expectation::is_zero(const uint8_t* page, size_t bytes) {
  const auto* words = reinterpret_cast<const uint64_t*>(page);
  uint64_t any = 0;
  for (size_t i = 0; i < bytes / sizeof *words; i++) {
    any |= __atomic_load_n(&words[i], __ATOMIC_RELAXED);
  }
  return any == 0;
}

}  // namespace reap::guest
