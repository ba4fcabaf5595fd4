// The VMM's side of the handshake, in this process or in a separate one, and an engine for it.
#pragma once

#include <sys/types.h>

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "guest_fixture.h"
#include "session/engine.h"

namespace fixture {

constexpr uid_t kNobody = 65534;

// Waits until a listener exists that this process may connect to.
reap::UniqueFd connect_to(const std::string& path);
// One sendmsg(), as in Firecracker.
bool send(int connection, const std::string& text, const std::vector<int>& descriptors);
std::string handshake_text(const Guest& guest, uint64_t page_size);
bool send_handshake(int connection, const Guest& guest, uint64_t page_size = kSmallPage);

// Behaviour of a VMM in a separate process after it has connected.
enum class Manner {
  touches_its_memory,  // sends the handshake, reads every page, then waits
  waits,               // sends the handshake, then waits
  stops_half_way,      // sends half of the message and the userfaultfd, then waits
  sends_nonsense,      // sends a message that is refused, with its userfaultfd, then waits
};

class VmmProcess {
 public:
  VmmProcess(const Shape& shape, std::string socket_path, Manner manner, uid_t uid = 0);
  ~VmmProcess();
  VmmProcess(const VmmProcess&) = delete;
  VmmProcess& operator=(const VmmProcess&) = delete;

  pid_t pid() const { return pid_; }
  // True if every page that it read had the memory file's bytes. Waits until it has read them.
  bool had_the_right_bytes();
  bool is_alive();
  // The signal that killed it, 0 if it exited by itself. Waits for its exit.
  int end();
  void exit_by_itself();

 private:
  [[noreturn]] void run(const Shape& shape, const std::string& path, Manner manner, uid_t uid);

  pid_t pid_ = -1;
  reap::UniqueFd report_;   // whether the bytes were right
  reap::UniqueFd command_;  // closing it makes the child exit
};

// Options of a session, whose memory file is opened with the session.
struct SessionOptions {
  std::string socket_path;
  std::string memory_file;
  bool record = false;
  bool kill_vm = true;
  std::optional<uid_t> peer_uid;
  pid_t vmm = 0;
  std::chrono::milliseconds connect_timeout{0};
  std::chrono::milliseconds read_timeout{0};
  std::shared_ptr<const reap::Plan> plan;
  std::shared_ptr<const reap::ProvenFile> proven;
};

// The session of a guest of this process, and its VMM.
std::string socket_of(const Restore& restore);
SessionOptions options_of(const Restore& restore, bool kill_vm = false);
reap::UniqueFd connect_guest(const Restore& restore);

// An engine whose events can be awaited.
class EngineRun {
 public:
  using OnEvent = std::function<void(const reap::Event&)>;

  // `on_event` is called for each event on the thread that emits it.
  explicit EngineRun(OnEvent on_event = {});
  // Waits even for threads that shut_down() left behind.
  ~EngineRun() {
    shut_down();
    threads_.wait_for_end();
  }

  struct Opened {
    uint64_t id = 0;
    std::shared_ptr<reap::Measurements> measured = std::make_shared<reap::Measurements>();
    reap::Failure failure;
    uint64_t get(Counter counter) const { return measured->counters.get(counter); }
  };
  Opened open(const SessionOptions& options);
  // Waits for the event, and removes it from the queue.
  reap::Event wait(reap::Event::Kind kind, uint64_t session);
  reap::Event wait_for_end(uint64_t session) { return wait(reap::Event::Kind::ended, session); }
  bool close(uint64_t session, bool kill_vm);
  std::shared_ptr<reap::Session> find(uint64_t session) { return engine_->find(session); }
  reap::Engine& engine() { return *engine_; }
  void shut_down() {
    if (engine_) engine_->shutdown();
    engine_.reset();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<reap::Event> events_;
  std::shared_ptr<reap::Engine> engine_;
  reap::ThreadGroup threads_;
};

}  // namespace fixture
