// Owners of kernel resources: the only places that call close() and munmap(). Also a read that
// retries until it is complete.
#pragma once

#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <utility>

namespace reap {

class UniqueFd {
 public:
  UniqueFd() = default;
  explicit UniqueFd(int fd) : fd_(fd) {}
  UniqueFd(UniqueFd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  UniqueFd& operator=(UniqueFd&& other) noexcept {
    if (this != &other) reset(std::exchange(other.fd_, -1));
    return *this;
  }
  ~UniqueFd() { reset(); }

  int get() const { return fd_; }
  explicit operator bool() const { return fd_ >= 0; }
  // Releases ownership to an owner of another type.
  int release() { return std::exchange(fd_, -1); }
  void reset(int fd = -1) {
    // EINTR is not retried: on Linux the descriptor is gone either way (close(2)).
    if (fd_ >= 0) ::close(fd_);
    fd_ = fd;
  }

 private:
  int fd_ = -1;
};

// Reads with preadv2(2) and its flags until `length` bytes have been read or the file ends; one
// call reads at most 2 GiB less a page (read(2)). Returns the number of bytes, or a negative errno.
inline int64_t read_whole(int fd, uint64_t offset, void* buffer, uint64_t length, int flags = 0) {
  uint64_t done = 0;
  while (done < length) {
    iovec part{static_cast<uint8_t*>(buffer) + done, length - done};
    const ssize_t got = ::preadv2(fd, &part, 1, static_cast<off_t>(offset + done), flags);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return -errno;
    if (got == 0) break;
    done += static_cast<uint64_t>(got);
  }
  return static_cast<int64_t>(done);
}

class Mapping {
 public:
  Mapping() = default;
  Mapping(Mapping&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  Mapping& operator=(Mapping&& other) noexcept {
    if (this != &other) {
      reset();
      data_ = std::exchange(other.data_, nullptr);
      size_ = std::exchange(other.size_, 0);
    }
    return *this;
  }
  ~Mapping() { reset(); }

  // Private zeroed memory that uses no pages until it is touched. Empty if the kernel refuses.
  static Mapping anonymous(size_t size) {
    void* data = ::mmap(nullptr, size, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return data == MAP_FAILED ? Mapping() : Mapping(data, size);
  }
  // Memory to read files into. Excluded from fork(), which would write-protect it and make each
  // next write a fault; an orchestrator forks for each VMM. Excluded from core dumps: the bytes are
  // those of guests. Uses transparent huge pages for at
  // least the size of one: O_DIRECT passes the device one segment per physically contiguous range,
  // 256 for 1 MiB of small pages, and virtio-blk took twice as long for those.
  static Mapping buffer(size_t size) {
    constexpr size_t kHuge = 2 << 20;  // PMD_SIZE on x86-64, and on arm64 with 4 KiB pages
    const bool huge = size >= kHuge;
    Mapping mapping = huge ? aligned(size, kHuge) : anonymous(size);
    if (!mapping) return mapping;
    ::madvise(mapping.data(), size, MADV_DONTFORK);
    ::madvise(mapping.data(), size, MADV_DONTDUMP);
    if (huge) ::madvise(mapping.data(), size, MADV_HUGEPAGE);
    return mapping;
  }
  // Takes ownership of an existing mapping.
  static Mapping adopt(void* data, size_t size) { return Mapping(data, size); }

  explicit operator bool() const { return data_ != nullptr; }
  uint8_t* data() const { return static_cast<uint8_t*>(data_); }
  size_t size() const { return size_; }
  // Returns the memory to the kernel; the mapping reads as zeros from then on.
  void release_pages() {
    if (data_) ::madvise(data_, size_, MADV_DONTNEED);
  }

 private:
  Mapping(void* data, size_t size) : data_(data), size_(size) {}
  // anonymous() at a multiple of `alignment`. Sizes are multiples of the page size.
  static Mapping aligned(size_t size, size_t alignment) {
    Mapping wide = anonymous(size + alignment);
    if (!wide) return wide;
    const size_t before = -reinterpret_cast<uintptr_t>(wide.data()) % alignment;
    if (before > 0) ::munmap(wide.data(), before);
    ::munmap(wide.data() + before + size, alignment - before);
    wide.size_ = 0;
    return Mapping(static_cast<uint8_t*>(std::exchange(wide.data_, nullptr)) + before, size);
  }
  void reset() {
    if (data_) ::munmap(data_, size_);
    data_ = nullptr;
    size_ = 0;
  }

  void* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace reap
