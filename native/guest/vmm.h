// The fake VMM: a process that does what it is told, one line at a time.
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

// Commands that run on threads of their own. Their threads are detached: one of them may wait for
// ever for a page.
class Jobs {
 public:
  // Reserves the name: false when it is in use.
  bool begin(const std::string& name);
  void finish(const std::string& name, const Answer& answer);
  // The answer, which frees the name, or nothing when it is not there in time.
  Error wait(const std::string& name, uint64_t timeout_ms, std::optional<Answer>* answer);

 private:
  std::mutex mutex_;
  std::condition_variable finished_;
  std::map<std::string, std::optional<Answer>> jobs_;
};

// Only commands that are not in the background change anything here but `jobs`, and none that
// makes or drops what a background command uses may run beside it.
struct Vmm {
  VmmMemory memory;
  Userfault userfault;
  std::vector<UniqueFd> sockets;  // open for the life of the VMM, as Firecracker keeps them
  Arena arena;
  Jobs jobs;

  // Whether there is memory with these pages in it.
  Error check_pages(uint64_t first, uint64_t count) const;
};

// Answers the lines of stdin on stdout until it ends.
int run_vmm();

}  // namespace reap::guest
