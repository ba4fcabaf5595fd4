// Minimal fault handler across processes: wait, read one message, copy one page; one thread.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/posix.h"
#include "handshake/listener.h"
#include "handshake/receiver.h"
#include "uffd/guest_memory.h"

namespace reap::bench {

class Pager {
 public:
  // Serves from `bytes`, laid out as in the memory file. From here on SIGTERM and SIGINT end
  // connect() and serve() instead of the process.
  Pager(const std::string& socket_path, const uint8_t* bytes, uint64_t byte_count);

  // Waits for a VMM and its handshake; false when interrupted before.
  bool connect();
  // Serves until the VMM exits or a signal arrives, and returns which: "vm-exited", "terminated".
  const char* serve();
  // Like serve(), but never sleeps: the cost of a fault without a wake-up.
  const char* serve_spinning();
  // Handles pending messages within `timeout_ms`; false if serving has ended.
  bool step(int timeout_ms);

  int uffd() const { return uffd_.get(); }
  const GuestMemory& memory() const { return memory_; }

  // Kills the VM, which would freeze at its next fault, and ends the process.
  [[noreturn]] void fail_vm(const std::string& sentence) const;

  struct Counters {
    uint64_t faults = 0;     // messages
    uint64_t installed = 0;  // pages installed to serve a fault
    uint64_t present = 0;    // faults on a present page
    uint64_t removed = 0;    // events
  };
  const Counters& counters() const { return counters_; }

 private:
  const char* serve(int timeout_ms);
  void watch(int fd, uint32_t events);
  void read_one();
  void answer_pending();
  bool answer(uint64_t address);

  const uint8_t* bytes_;
  uint64_t byte_count_;
  UniqueFd epoll_;
  UniqueFd signals_;
  Listener listener_;
  UniqueFd connection_;
  Peer peer_;
  UniqueFd uffd_;
  GuestMemory memory_{{}, 4096};
  std::vector<uint64_t> pending_;  // addresses of faults read and not answered
  const char* ended_ = nullptr;
  Counters counters_;
};

}  // namespace reap::bench
