// The fake VMM: a process that executes commands, one line at a time.
#pragma once

#include <condition_variable>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "answer.h"
#include "arena.h"
#include "userfault.h"
#include "vmm_memory.h"

namespace reap::guest {

// Background commands, each on a detached thread, since it may wait for a page for ever.
class Jobs {
 public:
  // Reserves the name: false when it is in use.
  bool begin(const std::string& name);
  void finish(const std::string& name, const Answer& answer);
  // The answer, which frees the name, or nothing if it does not arrive in time.
  Error wait(const std::string& name, uint64_t timeout_ms, std::optional<Answer>* answer);

 private:
  std::mutex mutex_;
  std::condition_variable finished_;
  std::map<std::string, std::optional<Answer>> jobs_;
};

// Only foreground commands change anything here except `jobs`; one that creates or drops something
// in use by a background command must not run concurrently with it.
struct Vmm {
  VmmMemory memory;
  Userfault userfault;
  std::vector<UniqueFd> sockets;  // open as long as the VMM, as in Firecracker
  Arena arena;
  Jobs jobs;

  // Checks that these pages exist.
  Error check_pages(uint64_t first, uint64_t count) const;
};

// Answers the lines of stdin on stdout until stdin closes.
int run_vmm();

}  // namespace reap::guest
