// Sources of page bytes: the memory file and the working-set file.
#pragma once

#include <sys/stat.h>

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "base/failure.h"
#include "base/posix.h"
#include "files/cache_view.h"
#include "files/data_map.h"
#include "files/private_file.h"

namespace reap {

// Identity and state of a file: device, inode, size, and the times of the last change of data and
// of status, in nanoseconds.
using FileStamp = std::array<uint64_t, 5>;
FileStamp stamp_of(const struct stat& status);

// True if a file with this change time is old enough for every later change to show in it. The
// kernel stamps from its coarse clock, which ticks every 1 to 10 ms (current_time(); since 6.13 a
// time that was queried is never given twice), so a second change within one tick does not show.
// File systems with whole seconds (ext4 with small inodes) have a tick of that length. Git applies
// the same rule to its index. `age` is a minimum age in nanoseconds in addition to that.
bool is_settled(uint64_t changed_at, uint64_t age = 0);
bool is_settled_at(uint64_t changed_at, uint64_t age, uint64_t now);
// Age that a file with writers must have, in nanoseconds: a write() changes the times when it
// begins, and one of 2 GiB to a slow disk takes this long.
constexpr uint64_t kMaxWrite = 60'000'000'000;

// Whether a process has the file open for writing, or mapped writable; `unknown` if the kernel does
// not report it: to processes other than the owner's and root's, and on some file systems. `fd` is
// open for reading.
enum class Writers { none, some, unknown };
Writers writers_of(int fd);

// Difference between two stamps. A write shows in the stamp before any of its bytes can be read:
// the kernel sets the times first (file_modified(), and file_update_time() when a mapped page
// becomes writable). So bytes that were read before an unchanged stamp are those of that state. Not
// detected: a second write within one tick of the kernel's coarse clock (before 6.13), and a write
// through a shared mapping to a page that is already dirty.
enum class FileChange {
  none,
  status,   // owner, mode or links; possibly a write whose time was set back
  content,  // another file, another size, a write, or a modification time that was set
};
FileChange change_of(const FileStamp& before, const FileStamp& after);

// A descriptor for reading. On FUSE and on network file systems close() asks the server and waits
// for its answer: there it is called on another thread.
class SourceFd {
 public:
  SourceFd() = default;
  explicit SourceFd(UniqueFd fd) : fd_(std::move(fd)) {}
  SourceFd(SourceFd&&) = default;
  SourceFd& operator=(SourceFd&& other) noexcept;
  ~SourceFd() { close(); }

  int get() const { return fd_.get(); }
  explicit operator bool() const { return static_cast<bool>(fd_); }
  void close_elsewhere() { elsewhere_ = true; }

 private:
  void close();

  UniqueFd fd_;
  bool elsewhere_ = false;
};

// A file that many threads read at once, at explicit offsets.
class PageSource {
 public:
  // Returns 0 or a negative errno; -EINVAL if it is not a regular file. May wait for a server. The
  // path is used once.
  int open(const std::string& path);
  // Takes a descriptor instead; its file is read through the page cache only.
  int adopt(UniqueFd fd);
  // Asks where the file has holes, as open() does; until then it counts as data.
  void find_holes();

  explicit operator bool() const { return static_cast<bool>(fd_); }
  uint64_t bytes() const { return bytes_; }
  // A path to the open file, whatever its name has become (proc_pid_fd(5)).
  std::string path() const { return "/proc/self/fd/" + std::to_string(fd_.get()); }

  // State of the file when it was opened, and now, as far as this kernel knows; does not wait.
  const FileStamp& stamp() const { return stamp_; }
  FileStamp current_stamp() const;
  // The same, after asking the server of a file on FUSE or on a network, which may hang.
  FileStamp refreshed_stamp() const;
  Writers writers() const { return writers_of(fd_.get()); }
  Failure check_writers() const { return reap::check_writers(fd_.get()); }

  enum class Read {
    done,         // all bytes were read
    would_block,  // not in the page cache (read_cached only)
    cut_short,    // the file ends inside the range; never padded with zeros
    failed,       // see `err`
  };
  struct Result {
    Read read;
    int err = 0;          // negative errno
    bool waited = false;  // for the disk, as far as is known; read() does not set it
  };

  // Reads only from the page cache, without waiting for the disk.
  Result read_cached(uint64_t offset, void* buffer, uint64_t length) const;
  // Reads through the page cache, waiting for the disk if necessary.
  Result read(uint64_t offset, void* buffer, uint64_t length) const;
  // Reads from the page cache if it has the whole range, or is reading it, and otherwise past it
  // (O_DIRECT), which is about twice as fast for data that is read once. Buffer, offset and length
  // are multiples of 4096.
  Result read_streaming(uint64_t offset, void* buffer, uint64_t length) const;
  // Reads past the page cache, and fails with EINVAL where the file system cannot. The same
  // multiples.
  Result read_direct(uint64_t offset, void* buffer, uint64_t length) const;

  // True if the page cache has the whole range, or is reading it, or if the kernel does not report
  // residency. Starts no read.
  bool is_cached(uint64_t offset, uint64_t length) const;

  // False if the file system has no mappings that share its page cache: FUSE with direct I/O,
  // virtiofs without a cache.
  bool is_mappable() const;

  // Requests readahead; does not wait.
  void will_need(uint64_t offset, uint64_t length) const;
  // While it exists, reads through the page cache bring in only the requested pages.
  class RandomAccess {
   public:
    explicit RandomAccess(const PageSource& file);
    ~RandomAccess();
    RandomAccess(const RandomAccess&) = delete;
    RandomAccess& operator=(const RandomAccess&) = delete;

   private:
    const PageSource& file_;
  };

  // Where the file has data in this state: everywhere, unless the holes were found in this state.
  const DataMap& data_map(const FileStamp& state) const;

 private:
  bool is_settled_soon() const;

  SourceFd fd_;
  UniqueFd direct_;  // empty if the file system lacks O_DIRECT (tmpfs), and on FUSE
  uint64_t bytes_ = 0;
  FileStamp stamp_{};
  bool sparse_ = false;         // has holes
  bool has_cachestat_ = false;  // reports residency through cachestat(2)
  bool is_fuse_ = false;
  bool in_memory_ = false;  // on tmpfs: no read blocks, and RWF_NOWAIT is not supported
  bool may_hang_ = false;   // lacks RWF_NOWAIT: FUSE, overlayfs, network file systems
  CacheView view_;          // if it may hang and residency is reported
  DataMap data_{0};
  std::shared_ptr<const DataMap> found_data_;  // null: not known
};

// Failure for a memory file that was written to while it was served.
Failure changed_failure(uint64_t offset);

// Failure for a read whose outcome is not `done`.
Failure read_failure(ErrorCode code, const PageSource::Result& result, uint64_t offset);

}  // namespace reap
