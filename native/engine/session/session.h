// One restore from the listening socket to its end: phases, deadlines, the fate of the VM.
#pragma once

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "base/failure.h"
#include "base/named_enum.h"
#include "base/spare_descriptors.h"
#include "files/page_source.h"
#include "handshake/listener.h"
#include "handshake/receiver.h"
#include "prefetch/prefetcher.h"
#include "session/oom_watch.h"
#include "session/reactor.h"
#include "session/read_limit.h"
#include "session/uffd_watch.h"
#include "uffd/fault_handler.h"
#include "uffd/measurements.h"

namespace reap {

struct SessionOptions {
  std::string socket_path;
  PageSource memory_file;
  std::shared_ptr<const Plan> plan;  // null: no prefetch
  std::shared_ptr<const ProvenFile> proven;
  std::vector<uint32_t> held_out;  // pages of the plan, in units of the guest's page size
  bool record = false;
  bool kill_vm = true;  // if the session fails or the process ends while the VM is alive
  std::optional<uid_t> peer_uid;
  pid_t vmm = 0;  // the process that will connect, or its ancestor; 0: unknown
  std::chrono::milliseconds connect_timeout{0};  // 0: none
  std::chrono::milliseconds read_timeout{0};     // after which a read hangs; 0: none
  bool fails_if_read_hangs = false;              // else it is only reported
};

#define REAP_END_STATES(X)                                                    \
  X(closed, "closed") /* before any VM was served */                          \
  X(vm_exited, "vm-exited")                                                   \
  X(vm_killed, "vm-killed")                                                   \
  X(vm_left, "vm-left") /* alive, without a handler: its next fault blocks */ \
  X(detached, "detached")
// End of a session, and the fate of its VM.
REAP_NAMED_ENUM(EndState, kEndStates, REAP_END_STATES)

#define REAP_EVENT_KINDS(X)         \
  X(connected, "connected")         \
  X(prefetched, "prefetched")       \
  X(detach_failed, "detach-failed") \
  X(read_hangs, "read-hangs")       \
  X(ended, "ended")
REAP_NAMED_ENUM(EventKind, kEventKinds, REAP_EVENT_KINDS)

// An event for JavaScript.
struct Event {
  using Kind = EventKind;
  Kind kind;
  uint64_t session = 0;
  std::chrono::steady_clock::time_point at{};
  Failure failure;
  pid_t pid = 0;  // connected
  uint64_t page_size = 0;
  std::vector<Region> regions;
  PrefetchReport prefetch;            // prefetched
  EndState state = EndState::closed;  // ended
  bool oom = false;                   // the OOM killer has ended the VM
};

class Session : public PrefetchClient, public std::enable_shared_from_this<Session> {
 public:
  using Role = Reactor::Role;
  // Shared by all sessions of an engine.
  struct Environment {
    Reactor& reactor;
    Prefetcher& prefetcher;
    const std::function<void(Event&&)> emit;
    // Releases a session that has ended.
    const std::function<void(uint64_t id)> release;
    // Called when no thread uses it any more.
    const std::function<void(uint64_t id)> forget;
  };

  Session(const Environment& environment, uint64_t id, SessionOptions options,
          std::shared_ptr<Measurements> measurements);
  // Reports the end, unless report_end() has: by then no thread uses the session and all its
  // resources are released.
  ~Session() override;

  // Listens and starts to fetch.
  Failure start();
  // Called on a demand thread, one at a time per role except for those that serve faults.
  void on_event(Role role, ServeBuffers& buffers);

  // Ends the session in any phase; the first end counts.
  void close(bool kill_vm);
  // Ends the session when the process exits.
  void abandon() { close(options_.kill_vm); }
  // Reports the end of a session that was released, though a thread still waits for storage.
  void report_end();
  // Starts to install every missing page; after that the session ends and the VM keeps running.
  // Returns false if no VM is being served.
  bool detach();

  FaultHandler& handler() override { return *handler_; }
  const PageSource& memory_file() override { return memory_file_; }
  Measurements& measurements() override { return *measured_; }
  const std::atomic<bool>& stopping() override { return stopping_; }
  void begin_installs() override { watch_.begin_installs(); }
  void poll_faults(ServeBuffers& buffers) override;
  void end_installs() override { watch_.end_installs(); }
  void on_prefetched(const PrefetchReport& report) override;
  void on_filled(FaultHandler::Filled end, const Failure& failure) override;
  std::chrono::milliseconds read_timeout() const override { return options_.read_timeout; }
  void on_hung_read(bool is_of_working_set) override;

 private:
  enum class Phase { idle, listening, handshaking, serving, ending };
  enum class Vm { leave, kill };
  // A process that has connected.
  struct Caller {
    UniqueFd connection;
    Peer peer;
    HandshakeReceiver receiver;
    std::chrono::steady_clock::time_point since;
  };

  Failure watch_vmm();
  void end_if_vmm_is_gone();
  void forget_vmm();
  void accept_callers();
  std::optional<Caller> accept_caller(int* error);
  HandshakeReceiver::State receive(Caller& caller);
  void on_message();
  void hear_callers();
  Failure refusal_of(const Peer& peer) const;
  void choose(Caller caller);
  void after_message(HandshakeReceiver::State state);
  void begin_serving();
  void serve(ServeBuffers& buffers);
  enum class Retry { now, soon, when_disk_is_free };
  bool continues_after(FaultHandler::Served served, Retry retry);
  bool meet_pending_vmm();
  bool may_connect(const Peer& peer) const;
  bool watch(Role role, int fd);
  bool ensure_watched(bool watched);
  void refuse(const Failure& failure, bool guest_depends_on_us);
  void fail(const Failure& failure);
  void end(EndState state, const Failure& failure, Vm vm);
  void end_locked(EndState state, const Failure& failure, Vm vm);
  void end_unconnected();
  void on_connect_deadline();
  void on_message_deadline();

  const Environment& environment_;
  Reactor& reactor_;
  const uint64_t id_;
  SessionOptions options_;
  const std::shared_ptr<Measurements> measured_;
  PageSource memory_file_;
  std::atomic<bool> stopping_{false};
  std::atomic<bool> is_reported_{false};

  UffdWatch watch_;
  ReadLimit read_limit_;

  // Guards the members below, and every phase change. Not held while faults are served: handler_ is
  // set before the uffd is watched and lives as long as the session.
  std::mutex mutex_;
  Phase phase_ = Phase::idle;
  Listener listener_;
  SpareDescriptors spare_;        // until the handshake is complete
  UniqueFd vmm_;                  // a pidfd, until the handshake begins
  bool deadline_passed_ = false;  // that of the connection
  Failure accept_failure_;        // of the last attempt, while it is repeated
  UniqueFd accepted_;             // a connection for whose pidfd no descriptor was left
  std::vector<Caller> callers_;   // while listening: those that have sent nothing so far
  Caller vm_;                     // the one that was first to send something
  OomWatch oom_;
  std::unique_ptr<FaultHandler> handler_;
  bool detaching_ = false;
  EndState state_ = EndState::closed;
  Failure failure_;
};

}  // namespace reap
