// A folder on FUSE with the files f0, f1, …, which hang on command. Served by threads of this
// process, one per request.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "base/posix.h"

namespace fixture {

class HangingFolder {
 public:
  enum class Call { lookup, attributes, open, read, seek };

  struct Options {
    bool has_holes = false;            // claims holes, so that they are looked for
    bool remembers_attributes = true;  // the kernel asks once, not each time
  };

  // All files have these bytes. Mounts over `path`, an empty folder.
  HangingFolder(std::string path, std::vector<uint8_t> bytes, Options options);
  ~HangingFolder();
  HangingFolder(const HangingFolder&) = delete;
  HangingFolder& operator=(const HangingFolder&) = delete;

  // Answers all calls with an error, for a signal handler: a thread that waits for an answer of its
  // own process survives SIGKILL, and with it all that the process holds, as the lock of main.cc.
  static void abort_all();

  // What this process lacks to mount it, or empty.
  const std::string& missing() const { return missing_; }
  std::string file(int number) const { return path_ + "/f" + std::to_string(number); }

  // From now on such calls for a file are not answered.
  void hold(Call call, int file);
  void release(Call call, int file);
  void release_all();
  // Waits until this many calls are held.
  void wait_until_held(size_t calls);

 private:
  void serve();
  void answer(std::vector<uint8_t> request);
  void pass(Call call, uint64_t node);
  void reply(uint64_t request, int error, const void* data = nullptr, size_t bytes = 0) const;

  const std::string path_;
  const std::vector<uint8_t> bytes_;
  const Options options_;
  std::string missing_;
  reap::UniqueFd device_;

  std::mutex mutex_;  // guards what follows
  std::condition_variable changed_;
  std::set<std::pair<Call, int>> held_;
  size_t waiting_ = 0;  // calls that are held
  size_t threads_ = 0;
};

}  // namespace fixture
