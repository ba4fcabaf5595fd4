// VMMs that do what Firecracker never does, and VMMs that connect at the worst moment.
#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <string>

#include "support/check.h"
#include "support/vmm_fixture.h"

namespace {

using fixture::connect_to;
using fixture::EngineRun;
using fixture::in_time;
using fixture::Restore;
using fixture::Shape;
using reap::EndState;
using reap::ErrorCode;
using reap::Event;

constexpr int kDemandThreads = 4;  // of an engine

// A VMM in a separate process that connects on command, reports when it has sent its handshake, and
// then touches its memory. Constructed before the threads of an engine, since it forks.
class LateVmm {
 public:
  LateVmm(const Shape& shape, const std::string& path) {
    int pair[2];
    if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) != 0) return;
    ours_.reset(pair[0]);
    const reap::UniqueFd theirs(pair[1]);
    pid_ = ::fork();
    if (pid_ == 0) run(shape, path, theirs.get());
  }
  ~LateVmm() {
    if (pid_ <= 0) return;
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
  }
  LateVmm(const LateVmm&) = delete;
  LateVmm& operator=(const LateVmm&) = delete;

  bool send_handshake() const {
    char byte = 1;
    return ::write(ours_.get(), &byte, 1) == 1 && ::read(ours_.get(), &byte, 1) == 1;
  }
  // The signal that killed it, 0 while it lives.
  int end_in_time() {
    int status = 0;
    if (!in_time([&] { return ::waitpid(pid_, &status, WNOHANG) == pid_; })) return 0;
    pid_ = 0;
    return WIFSIGNALED(status) ? WTERMSIG(status) : -1;
  }

 private:
  [[noreturn]] static void run(const Shape& shape, const std::string& path, int theirs) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    const fixture::Guest guest(shape);
    char byte;
    if (!guest.missing().empty() || ::read(theirs, &byte, 1) != 1) ::_exit(1);
    const reap::UniqueFd connection = connect_to(path);
    if (!fixture::send_handshake(connection.get(), guest, shape.page_size)) ::_exit(1);
    if (::write(theirs, &byte, 1) != 1) ::_exit(1);
    fixture::peek(guest.page(0));
    for (;;) ::pause();
  }

  pid_t pid_ = 0;
  reap::UniqueFd ours_;
};

// Guests whose faults occupy every demand thread, so that no thread can accept another VMM.
class BusyThreads {
 public:
  BusyThreads() {
    for (int i = 0; i < kDemandThreads; ++i) restores_.push_back(std::make_unique<Restore>());
    reap::hooks::before_serve = [this] {
      if (arrived_++ < kDemandThreads) released_.wait();
    };
  }
  ~BusyThreads() { release(); }

  void hold(EngineRun& run) {
    for (const auto& restore : restores_) {
      const EngineRun::Opened session = run.open(options_of(*restore));
      connections_.push_back(connect_guest(*restore));
      run.wait(Event::Kind::connected, session.id);
      vcpus_.emplace_back([&restore] { CHECK(restore->has_file_bytes(0)); });
    }
    fixture::eventually([this] { return arrived_ == kDemandThreads; });
  }
  void release() {
    released_.set();
    for (std::thread& vcpu : vcpus_) vcpu.join();
    vcpus_.clear();
  }

 private:
  fixture::Hooks hooks_;
  std::atomic<int> arrived_{0};
  fixture::Flag released_;
  std::vector<std::unique_ptr<Restore>> restores_;
  std::vector<reap::UniqueFd> connections_;
  std::vector<std::thread> vcpus_;
};

}  // namespace

TEST(a_vmm_that_makes_its_userfaultfd_block_holds_no_demand_thread) {
  constexpr int kGuests = kDemandThreads + 1;
  std::vector<std::unique_ptr<Restore>> restores;
  for (int i = 0; i <= kGuests; ++i) restores.push_back(std::make_unique<Restore>());
  const Restore& other = *restores.back();
  if (!other.missing().empty()) SKIP(other.missing());
  EngineRun run;
  std::vector<reap::UniqueFd> connections;
  for (const auto& restore : restores) {
    const EngineRun::Opened session = run.open(options_of(*restore));
    connections.push_back(connect_guest(*restore));
    run.wait(Event::Kind::connected, session.id);
  }
  const auto set_flags = [&](int flags) {
    for (int i = 0; i < kGuests; ++i) {
      CHECK_EQ(::fcntl(restores[static_cast<size_t>(i)]->guest.uffd(), F_SETFL, flags), 0);
    }
  };
  set_flags(0);
  std::vector<std::thread> vcpus;
  std::atomic<int> served{0};
  for (const auto& restore : restores) {
    vcpus.emplace_back([&] {
      CHECK(restore->has_file_bytes(5));
      ++served;
    });
  }
  CHECK(in_time([&] { return served == kGuests + 1; }));
  fixture::Flag down;
  std::thread end([&] {
    run.shut_down();
    down.set();
  });
  CHECK(in_time([&] { return down.is_set(); }));
  std::vector<std::thread> rescue;
  if (!down.is_set()) {
    // Releases a thread that is held after all: a fault ends the blocking read.
    set_flags(O_NONBLOCK);
    for (const auto& restore : restores) {
      rescue.emplace_back([&] { fixture::peek(restore->guest.page(9)); });
    }
  }
  end.join();
  for (const auto& restore : restores) restore->guest.unregister_all();
  for (std::thread& thread : vcpus) thread.join();
  for (std::thread& thread : rescue) thread.join();
}

TEST(a_vmm_that_is_unaccepted_when_its_session_ends_is_killed_and_not_left_frozen) {
  for (const char* how : {"close", "shutdown", "deadline"}) {
    const std::string way = how;
    Restore restore;
    if (!restore.missing().empty()) SKIP(restore.missing());
    LateVmm vmm(restore.shape, socket_of(restore));
    BusyThreads busy;
    EngineRun run;
    busy.hold(run);
    check::about = way;
    const EngineRun::Opened session = run.open(options_of(restore, true));
    CHECK(vmm.send_handshake());
    std::thread end([&] {
      reap::ServeBuffers buffers;
      if (way == "close") CHECK(run.close(session.id, true));
      if (way == "shutdown") run.shut_down();
      if (way == "deadline") {
        run.find(session.id)->on_event(reap::Session::Role::connect_deadline, buffers);
      }
    });
    CHECK_EQ(vmm.end_in_time(), SIGKILL);
    busy.release();
    end.join();
    const Event ended = run.wait_for_end(session.id);
    CHECK_EQ(ended.state, EndState::vm_killed);
    CHECK_EQ(ended.failure.check, way == "deadline" ? "connect" : "");
  }
}

// The VMM has sent its handshake and does not wait for an answer. Whatever a demand thread is about
// to do with it, close() must detect that its guest depends on us.
TEST(every_vmm_whose_session_is_closed_as_its_handshake_arrives_is_killed) {
  const char* const next_step[] = {"accept it", "receive its message", "serve its first fault"};
  for (int step = 0; step < 3; ++step) {
    check::about = std::string("a thread that is about to ") + next_step[step];
    fixture::Hooks hooks;
    fixture::Hold held;
    Restore restore;
    if (!restore.missing().empty()) SKIP(restore.missing());
    LateVmm vmm(restore.shape, socket_of(restore));
    std::atomic<int> events{0};
    reap::hooks::before_event = [&] {
      if (events++ == step) held();
    };
    EngineRun run;
    const EngineRun::Opened session = run.open(options_of(restore, true));
    CHECK(vmm.send_handshake());
    held.wait_until_held();
    CHECK(run.close(session.id, true));
    CHECK_EQ(vmm.end_in_time(), SIGKILL);
    held.release();
    const Event ended = run.wait_for_end(session.id);
    CHECK_EQ(ended.state, EndState::vm_killed);
    CHECK_EQ(ended.failure.code, ErrorCode::none);
  }
}

TEST(every_vmm_whose_session_is_closed_at_any_moment_of_its_handshake_is_killed) {
  constexpr int kVmms = 24;
  Restore restore;
  if (!restore.missing().empty()) SKIP(restore.missing());
  const auto path = [&](int i) { return restore.directory.path(std::to_string(i)); };
  std::vector<std::unique_ptr<LateVmm>> vmms;
  for (int i = 0; i < kVmms; ++i) {
    vmms.push_back(std::make_unique<LateVmm>(restore.shape, path(i)));
  }
  EngineRun run;
  for (int i = 0; i < kVmms; ++i) {
    check::about = "VMM " + std::to_string(i);
    fixture::SessionOptions options = options_of(restore, true);
    options.socket_path = path(i);
    const EngineRun::Opened session = run.open(options);
    CHECK(vmms[static_cast<size_t>(i)]->send_handshake());
    CHECK(run.close(session.id, true));
    CHECK_EQ(run.wait_for_end(session.id).state, EndState::vm_killed);
    CHECK_EQ(vmms[static_cast<size_t>(i)]->end_in_time(), SIGKILL);
  }
}

TEST(a_peer_that_sends_descriptors_with_every_byte_is_refused_at_the_first_that_is_too_many) {
  constexpr int kMessages = 64;
  Restore restore;
  if (!restore.missing().empty()) SKIP(restore.missing());
  const reap::UniqueFd null(::open("/dev/null", O_RDWR | O_CLOEXEC));
  EngineRun run;
  const uint64_t before = fixture::descriptors_here();
  const EngineRun::Opened session = run.open(options_of(restore));
  reap::UniqueFd connection = connect_to(socket_of(restore));
  uint64_t most = 0;
  for (int i = 0; i < kMessages; ++i) {
    if (!fixture::send(connection.get(), i == 0 ? "[" : " ", std::vector<int>(4, null.get()))) {
      break;
    }
    most = std::max(most, fixture::descriptors_here());
  }
  connection.reset();
  const Event ended = run.wait_for_end(session.id);
  CHECK_EQ(ended.failure.code, ErrorCode::handshake_invalid);
  CHECK_EQ(ended.failure.check, "descriptors");
  CHECK_EQ(ended.failure.got, 4);
  // Both ends of the connection, the listener, the memory file twice, and those of one message.
  CHECK(most <= before + 16);
  CHECK_EQ(fixture::descriptors_here(), before);
}

TEST(the_end_of_a_session_is_reported_after_its_descriptors_are_closed) {
  Restore restore;
  if (!restore.missing().empty()) SKIP(restore.missing());
  const reap::UniqueFd null(::open("/dev/null", O_RDWR | O_CLOEXEC));
  std::atomic<uint64_t> at_the_end{0};
  EngineRun run([&](const Event& event) {
    if (event.kind == Event::Kind::ended) at_the_end = fixture::descriptors_here();
  });
  const uint64_t before = fixture::descriptors_here();
  const EngineRun::Opened session = run.open(options_of(restore));
  const reap::UniqueFd connection = connect_to(socket_of(restore));
  CHECK(fixture::send(connection.get(), "[", {null.get(), null.get()}));
  run.wait_for_end(session.id);
  // This process is also the VMM.
  const uint64_t ours = 1;
  CHECK_EQ(at_the_end.load(), before + ours);
}

TEST(a_vm_whose_pages_are_all_on_the_disk_leaves_threads_for_others) {
  constexpr uint64_t kVcpus = 7;
  fixture::Hooks hooks;
  Restore restore;
  if (!restore.missing().empty()) SKIP(restore.missing());
  std::atomic<int> arrived{0};
  fixture::Flag go_on;
  reap::hooks::is_cold = [] { return true; };
  reap::hooks::before_install = [&] {
    ++arrived;
    go_on.wait();
  };
  EngineRun run;
  const uint64_t threads = fixture::threads_here();
  const EngineRun::Opened session = run.open(options_of(restore));
  const reap::UniqueFd connection = connect_guest(restore);
  run.wait(Event::Kind::connected, session.id);
  std::vector<std::thread> vcpus;
  for (uint64_t page = 0; page < kVcpus; ++page) {
    vcpus.emplace_back([&restore, page] { CHECK(restore.has_file_bytes(page)); });
  }
  fixture::eventually([&] { return arrived >= 2; });
  // A third one would have taken its permission by then.
  CHECK(!fixture::Flag().set_within_a_moment());
  CHECK_EQ(arrived.load(), 2);
  // Further VMs may have one each, of any device.
  reap::Reactor& reactor = run.engine().reactor();
  const uint64_t device = restore.memory_file.stamp()[0];
  for (uint64_t vm = 100; vm < 120; ++vm) CHECK(reactor.begin_blocking(vm, device, true));
  CHECK(!reactor.begin_blocking(100, device, false));
  CHECK(reactor.begin_blocking(200, device + 1, false));
  for (uint64_t vm = 100; vm < 120; ++vm) reactor.end_blocking(device);
  reactor.end_blocking(device + 1);
  // 32 for a device, and 96 with the two above.
  std::vector<uint64_t> waiting;
  for (uint64_t other = device + 1; other <= device + 3; ++other) {
    for (uint64_t vm = 100; reactor.begin_blocking(vm, other, true); ++vm) waiting.push_back(other);
  }
  CHECK_EQ(std::count(waiting.begin(), waiting.end(), device + 1), 32);
  CHECK_EQ(waiting.size(), 94);
  for (const uint64_t other : waiting) reactor.end_blocking(other);
  go_on.set();
  for (std::thread& vcpu : vcpus) vcpu.join();
  CHECK(in_time([&] { return fixture::threads_here() <= threads; }));
}

TEST(a_session_that_may_not_wait_for_a_disk_is_told_when_another_has_waited) {
  constexpr uint64_t kDevice = 1;
  fixture::Hooks hooks;
  std::atomic<int> events{0};
  reap::hooks::before_event = [&] { ++events; };
  Restore restore;
  if (!restore.missing().empty()) SKIP(restore.missing());
  EngineRun run;
  const EngineRun::Opened session = run.open(options_of(restore));
  const reap::UniqueFd connection = connect_guest(restore);
  // The permission is only checked while serving.
  CHECK(restore.has_file_bytes(5));
  reap::Reactor& reactor = run.engine().reactor();
  int waiting = 0;
  while (reactor.begin_blocking(100, kDevice, true)) ++waiting;
  CHECK(!reactor.begin_blocking(session.id, kDevice, true));
  // From here on nothing else happens to it.
  reactor.forget(session.id);
  const int before = events;
  reactor.end_blocking(kDevice);
  CHECK(in_time([&] { return events > before; }));
  while (--waiting > 0) reactor.end_blocking(kDevice);
}
