// Owners of what the kernel hands out: the only places that call close() and munmap().
#pragma once

#include <sys/mman.h>
#include <unistd.h>

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
  // Gives it away to an owner of another kind.
  int release() { return std::exchange(fd_, -1); }
  void reset(int fd = -1) {
    // EINTR is not retried: on Linux the descriptor is gone either way (close(2)).
    if (fd_ >= 0) ::close(fd_);
    fd_ = fd;
  }

 private:
  int fd_ = -1;
};

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

  // Private zeroed memory that costs nothing until it is touched. Empty when the kernel refuses.
  static Mapping anonymous(size_t size) {
    void* data = ::mmap(nullptr, size, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return data == MAP_FAILED ? Mapping() : Mapping(data, size);
  }
  // Memory to read files into. A fork would write-protect it and make every next write a fault, and
  // an orchestrator forks for each VMM.
  static Mapping buffer(size_t size) {
    Mapping mapping = anonymous(size);
    if (mapping) ::madvise(mapping.data(), size, MADV_DONTFORK);
    return mapping;
  }
  // Takes over a mapping made elsewhere.
  static Mapping adopt(void* data, size_t size) { return Mapping(data, size); }

  explicit operator bool() const { return data_ != nullptr; }
  uint8_t* data() const { return static_cast<uint8_t*>(data_); }
  size_t size() const { return size_; }

 private:
  Mapping(void* data, size_t size) : data_(data), size_(size) {}
  void reset() {
    if (data_) ::munmap(data_, size_);
    data_ = nullptr;
    size_ = 0;
  }

  void* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace reap
