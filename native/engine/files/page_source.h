// Where page bytes come from: the memory file and the working-set file.
#pragma once

#include <sys/stat.h>

#include <array>
#include <cstdint>
#include <string>

#include "base/failure.h"
#include "base/posix.h"

namespace reap {

// Which file it is, and in which state: device, inode, size, and the times of the last change of
// data and of status in nanoseconds.
using FileStamp = std::array<uint64_t, 5>;
FileStamp stamp_of(const struct stat& status);

// Whether a file with this time of change is so old that every later change shows in it. The kernel
// takes the time from its coarse clock, which ticks each 1 to 10 ms (current_time(); since 6.13 a
// time that was asked for is never given twice), so that a second change within one tick does not
// show. File systems with whole seconds (ext4 with small inodes) have a tick of that length. Git's
// rule for its index is the same. `age` is how old it must be besides, in nanoseconds.
bool is_settled(uint64_t changed_at, uint64_t age = 0);
bool is_settled_at(uint64_t changed_at, uint64_t age, uint64_t now);

// Whether a process has the file open for writing, or mapped so; `unknown` where the kernel does
// not tell: to others than its owner and root, and on some file systems. `fd` is open for reading.
enum class Writers { none, some, unknown };
Writers writers_of(int fd);

// What the difference of two stamps tells. A write shows in the stamp before any byte of it can be
// read: the kernel sets the times first (file_modified(), and file_update_time() when a page that
// is mapped becomes writable). So bytes that were read before a stamp that did not change are those
// of that state. Not seen: another write within one tick of the kernel's coarse clock (before
// 6.13), and one through a shared mapping to a page that is dirty already.
enum class FileChange {
  none,
  status,   // owner, mode or links; perhaps a write whose time was set back
  content,  // another file, another size, a write, or another time of the last write that was set
};
FileChange change_of(const FileStamp& before, const FileStamp& after);

// A file read by many threads at once, at explicit offsets.
class PageSource {
 public:
  // 0 or a negative errno; -EINVAL for what is no regular file.
  int open(const std::string& path);
  // The same of a descriptor, whose file is read through the page cache alone.
  int adopt(UniqueFd fd);

  explicit operator bool() const { return static_cast<bool>(fd_); }
  uint64_t bytes() const { return bytes_; }
  // A path of the very file that is open, whatever its name has become (proc_pid_fd(5)).
  std::string path() const { return "/proc/self/fd/" + std::to_string(fd_.get()); }

  // The state of the file when it was opened, and now.
  const FileStamp& stamp() const { return stamp_; }
  FileStamp look() const;
  Writers writers() const { return writers_of(fd_.get()); }

  enum class Read {
    done,         // every byte asked for
    would_block,  // not in the page cache (read_cached only)
    cut_short,    // the file ends inside the range: never answered with zeros
    failed,       // errno says why
  };
  struct Result {
    Read read;
    int err = 0;          // negative errno
    bool waited = false;  // for the disk, as far as is known; read() does not set it
  };

  // Reads only what the page cache has, without waiting for the disk.
  Result read_cached(uint64_t offset, void* buffer, uint64_t length) const;
  // Reads through the page cache, waiting as long as it takes.
  Result read(uint64_t offset, void* buffer, uint64_t length) const;
  // Takes what the page cache has, or is about to, whole, and reads all else past it (O_DIRECT),
  // which is about twice as fast for data that is read once. Buffer, offset and length are
  // multiples of 4096.
  Result read_streaming(uint64_t offset, void* buffer, uint64_t length) const;

  // Whether the page cache has, or is about to have, all of this; true where the kernel does not
  // tell. Starts no read.
  bool is_cached(uint64_t offset, uint64_t length) const;

  // Asks the kernel to bring this into the page cache; does not wait.
  void will_need(uint64_t offset, uint64_t length) const;
  // While it lives, reads through the page cache bring in what they ask for and no more.
  class RandomAccess {
   public:
    explicit RandomAccess(const PageSource& file);
    ~RandomAccess();
    RandomAccess(const RandomAccess&) = delete;
    RandomAccess& operator=(const RandomAccess&) = delete;

   private:
    const PageSource& file_;
  };

  // The end of the hole that covers `offset`, or `offset` itself where there is data.
  uint64_t hole_end(uint64_t offset) const;
  // The end of the data that covers `offset`, at the most the file's size.
  uint64_t data_end(uint64_t offset) const;

 private:
  UniqueFd fd_;
  UniqueFd direct_;  // empty where the file system has no O_DIRECT (tmpfs)
  uint64_t bytes_ = 0;
  FileStamp stamp_{};
  bool sparse_ = false;     // has holes at all
  bool tells_ = false;      // what is cached, by cachestat(2)
  bool in_memory_ = false;  // on tmpfs: no read waits, and RWF_NOWAIT is not known there
};

// The failure of a memory file that was written to while it was served.
Failure changed_failure(uint64_t offset);

// The failure to report for a read that did not come to `done`.
Failure read_failure(ErrorCode code, const PageSource::Result& result, uint64_t offset);

}  // namespace reap
