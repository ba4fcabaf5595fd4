#include "page_cache_fixture.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "check.h"

namespace fixture {

PageFile::PageFile(uint64_t pages, const std::string& directory, uint64_t cut_bytes)
    : bytes_(pages * kSmallPage - cut_bytes),
      directory_(directory),
      path_(directory_.path("file")) {
  const reap::UniqueFd file(::open(path_.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
  const std::vector<uint8_t> bytes(bytes_, 0x5a);
  CHECK_EQ(::write(file.get(), bytes.data(), bytes.size()), bytes.size());
}

bool PageFile::evict() const {
  forget_cached(path_);
  return cached().empty();
}

void PageFile::evict(uint64_t first_page, uint64_t pages) const {
  const reap::UniqueFd file(::open(path_.c_str(), O_RDONLY | O_CLOEXEC));
  ::fsync(file.get());
  ::posix_fadvise(file.get(), static_cast<off_t>(first_page * kSmallPage),
                  static_cast<off_t>(pages * kSmallPage), POSIX_FADV_DONTNEED);
}

void PageFile::read(const std::vector<uint32_t>& pages) const {
  const reap::UniqueFd file(::open(path_.c_str(), O_RDONLY | O_CLOEXEC));
  CHECK_EQ(::posix_fadvise(file.get(), 0, 0, POSIX_FADV_RANDOM), 0);
  for (const uint32_t page : pages) {
    uint8_t byte;
    CHECK_EQ(::pread(file.get(), &byte, 1, static_cast<off_t>(page * kSmallPage)), 1);
  }
}

std::vector<uint32_t> PageFile::cached() const {
  const reap::UniqueFd file(::open(path_.c_str(), O_RDONLY | O_CLOEXEC));
  void* data = ::mmap(nullptr, bytes_, PROT_READ, MAP_SHARED, file.get(), 0);
  CHECK(data != MAP_FAILED);
  const reap::Mapping view = reap::Mapping::adopt(data, bytes_);
  std::vector<uint8_t> is_cached((bytes_ + kSmallPage - 1) / kSmallPage);
  CHECK_EQ(::mincore(view.data(), bytes_, is_cached.data()), 0);
  std::vector<uint32_t> found;
  for (uint32_t page = 0; page < is_cached.size(); ++page) {
    if (is_cached[page] & 1) found.push_back(page);
  }
  return found;
}

Mapper::Mapper(const std::string& path) {
  int ends[2];
  CHECK_EQ(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends), 0);
  pid_ = ::fork();
  if (pid_ == 0) {
    ::close(ends[0]);
    run(ends[1], path);
    ::_exit(1);
  }
  ::close(ends[1]);
  child_.reset(ends[0]);
  CHECK(has_answered());
}

// A number is a page to touch, any other message the path of a program.
void Mapper::run(int parent, const std::string& path) {
  const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  const auto bytes = static_cast<size_t>(::lseek(file, 0, SEEK_END));
  void* data = ::mmap(nullptr, bytes, PROT_READ, MAP_PRIVATE, file, 0);
  if (data == MAP_FAILED) return;
  ::madvise(data, bytes, MADV_RANDOM);
  char message[4096] = "";
  ssize_t length = 1;
  while (::send(parent, message, 1, MSG_NOSIGNAL) == 1 &&
         (length = ::recv(parent, message, sizeof message - 1, 0)) == sizeof(uint32_t)) {
    uint32_t page;
    std::memcpy(&page, message, sizeof page);
    peek(static_cast<const uint8_t*>(data) + page * kSmallPage);
  }
  if (length <= 0) return;
  message[length] = 0;
  ::dup2(parent, 0);
  ::dup2(parent, 1);
  ::execl(message, message, static_cast<char*>(nullptr));
}

bool Mapper::has_answered() const {
  char byte;
  return ::recv(child_.get(), &byte, 1, 0) == 1;
}

bool Mapper::touch(uint32_t page) const {
  return ::send(child_.get(), &page, sizeof page, MSG_NOSIGNAL) == sizeof page && has_answered();
}

bool Mapper::become(const std::string& path) const {
  return ::send(child_.get(), path.data(), path.size(), MSG_NOSIGNAL) > 0 &&
         ::send(child_.get(), "\n", 1, MSG_NOSIGNAL) == 1 && has_answered();
}

void Mapper::end() {
  if (pid_ <= 0) return;
  ::kill(pid_, SIGKILL);
  int status = 0;
  while (::waitpid(pid_, &status, 0) < 0 && errno == EINTR) {
  }
  pid_ = -1;
}

std::vector<uint32_t> every(uint32_t step, uint32_t first, uint32_t end) {
  std::vector<uint32_t> pages;
  for (uint32_t page = first; page < end; page += step) pages.push_back(page);
  return pages;
}

}  // namespace fixture
