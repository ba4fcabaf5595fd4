// Processes that connect beside the VMM, VMMs that cannot be killed, and full tables.
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <functional>
#include <iterator>
#include <string>
#include <thread>
#include <vector>

#include "support/check.h"
#include "support/vmm_fixture.h"

namespace {

using fixture::connect_to;
using fixture::EngineRun;
using fixture::kNobody;
using fixture::Manner;
using fixture::Restore;
using fixture::VmmProcess;
using reap::EndState;
using reap::ErrorCode;
using reap::Event;
using Role = reap::Session::Role;

// The limit of open descriptors, for as long as it exists.
class DescriptorLimit {
 public:
  DescriptorLimit() { ::getrlimit(RLIMIT_NOFILE, &before_); }
  ~DescriptorLimit() { lift(); }
  // From here on no descriptor can be opened; those that are open stay.
  void forbid() {
    rlimit none = before_;
    none.rlim_cur = 3;
    CHECK_EQ(::setrlimit(RLIMIT_NOFILE, &none), 0);
  }
  void lift() { ::setrlimit(RLIMIT_NOFILE, &before_); }
  // Uses up all descriptors but `spare`.
  void fill(size_t spare) {
    rlimit low = before_;
    low.rlim_cur = 256;
    CHECK_EQ(::setrlimit(RLIMIT_NOFILE, &low), 0);
    for (;;) {
      reap::UniqueFd fd(::open("/dev/null", O_RDONLY | O_CLOEXEC));
      if (!fd) break;
      held_.push_back(std::move(fd));
    }
    for (; spare > 0; --spare) held_.pop_back();
  }

 private:
  rlimit before_{};
  std::vector<reap::UniqueFd> held_;
};

bool refuses_its_vmm(const fixture::SessionOptions& options) {
  EngineRun run;
  const Event ended = run.wait_for_end(run.open(options).id);
  return ended.state == EndState::closed && ended.failure.code == ErrorCode::peer_refused &&
         std::string(ended.failure.check) == "process";
}

bool leaves_its_vmm(const fixture::SessionOptions& options) {
  EngineRun run;
  const EngineRun::Opened session = run.open(options);
  const bool is_unknown = run.wait(Event::Kind::connected, session.id).pid == 0;
  return is_unknown && run.close(session.id, true) &&
         run.wait_for_end(session.id).state == EndState::vm_left;
}

size_t descriptor_count() {
  const std::filesystem::directory_iterator descriptors("/proc/self/fd");
  return static_cast<size_t>(std::distance(begin(descriptors), end(descriptors)));
}

// Waits until a process that connected to the session is one of its callers. There were `before`
// descriptors here without its connection.
void wait_until_accepted(EngineRun& run, uint64_t session, size_t before) {
  fixture::eventually([&] { return descriptor_count() >= before + 2; });
  run.find(session)->detach();  // waits for the thread that accepts
}

// To be called before the engine has threads. The child exits with 0 if `run` returns true.
pid_t fork_as_nobody(const std::function<bool()>& run) {
  const pid_t child = ::fork();
  if (child != 0) return child;
  if (::setresuid(kNobody, kNobody, kNobody) != 0) ::_exit(1);
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  ::_exit(run() ? 0 : 1);
}

}  // namespace

TEST(a_connection_that_closes_without_a_word_is_not_the_vmm) {
  Restore restore;
  if (!restore.missing().empty()) SKIP(restore.missing());
  EngineRun run;
  const fixture::SessionOptions options = options_of(restore);
  const EngineRun::Opened session = run.open(options);
  for (int i = 0; i < 50; ++i) connect_to(options.socket_path);
  const reap::UniqueFd connection = connect_guest(restore);
  CHECK(restore.has_file_bytes(5));
  CHECK(run.close(session.id, false));
  CHECK_EQ(run.wait_for_end(session.id).state, EndState::vm_left);
}

TEST(a_caller_that_leaves_does_not_end_the_session_of_the_vmm_that_another_thread_has_met) {
  Restore restore;
  if (!restore.missing().empty()) SKIP(restore.missing());
  const fixture::SessionOptions options = options_of(restore);
  fixture::Hooks hooks;
  fixture::Hold hold;
  std::atomic<bool> holds{false};
  reap::hooks::before_event = [&] {
    if (holds) hold();
  };
  EngineRun run;
  const EngineRun::Opened session = run.open(options);
  const size_t before = descriptor_count();
  reap::UniqueFd caller = connect_to(options.socket_path);
  wait_until_accepted(run, session.id, before);
  holds = true;
  caller.reset();
  hold.wait_until_held();
  const reap::UniqueFd connection = connect_guest(restore);
  CHECK(restore.has_file_bytes(5));
  hold.release();
  // The event has no effect that could be waited for.
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  CHECK(run.close(session.id, false));
  CHECK_EQ(run.wait_for_end(session.id).state, EndState::vm_left);
}

// It has exited before it is accepted, so that older kernels have no pidfd for it.
TEST(a_look_by_a_process_that_may_not_connect_ends_no_session) {
  if (::geteuid() != 0) SKIP("needs root");
  Restore restore;
  if (!restore.missing().empty()) SKIP(restore.missing());
  const fixture::SessionOptions options = options_of(restore, true);
  const pid_t other = fork_as_nobody([&] {
    connect_to(options.socket_path);
    return true;
  });
  fixture::Hooks hooks;
  fixture::Hold hold;
  EngineRun run;
  reap::hooks::before_event = hold.hook();
  const EngineRun::Opened session = run.open(options);
  CHECK_EQ(::chmod(restore.directory.root().c_str(), 0777), 0);
  CHECK_EQ(::chmod(options.socket_path.c_str(), 0666), 0);
  int status = 0;
  CHECK_EQ(::waitpid(other, &status, 0), other);
  CHECK_EQ(status, 0);
  hold.release();
  const reap::UniqueFd connection = connect_guest(restore);
  CHECK(restore.has_file_bytes(5));
  // This process is the VMM.
  CHECK(run.close(session.id, false));
}

TEST(a_process_that_may_not_connect_is_not_the_vmm_of_a_session_that_ends) {
  if (::geteuid() != 0) SKIP("needs root");
  Restore restore;
  if (!restore.missing().empty()) SKIP(restore.missing());
  const fixture::SessionOptions options = options_of(restore, true);
  const pid_t other = fork_as_nobody([&] {
    const fixture::Guest guest(restore.shape);
    const reap::UniqueFd connection = connect_to(options.socket_path);
    return fixture::send(connection.get(), handshake_text(guest, 4096), {guest.uffd()});
  });
  fixture::Hooks hooks;
  fixture::Hold hold;
  EngineRun run;
  reap::hooks::before_event = hold.hook();
  const EngineRun::Opened session = run.open(options);
  CHECK_EQ(::chmod(restore.directory.root().c_str(), 0777), 0);
  CHECK_EQ(::chmod(options.socket_path.c_str(), 0666), 0);
  int status = 0;
  CHECK_EQ(::waitpid(other, &status, 0), other);
  CHECK_EQ(status, 0);
  // Accepted and heard now, since a thread is held that would do so.
  CHECK(run.close(session.id, true));
  CHECK_EQ(run.wait_for_end(session.id).state, EndState::closed);
  hold.release();
}

TEST(a_vmm_is_served_beside_connections_that_say_nothing) {
  Restore restore;
  if (!restore.missing().empty()) SKIP(restore.missing());
  EngineRun run;
  const fixture::SessionOptions options = options_of(restore);
  run.open(options);
  reap::UniqueFd silent[3];
  for (reap::UniqueFd& other : silent) other = connect_to(options.socket_path);
  const reap::UniqueFd connection = connect_guest(restore);
  CHECK(restore.has_file_bytes(5));
  for (const reap::UniqueFd& other : silent) {
    char none;
    CHECK(::read(other.get(), &none, 1) <= 0);
  }
}

TEST(connections_that_say_nothing_take_a_bounded_number_of_descriptors) {
  constexpr uint64_t kSilent = 20;
  constexpr uint64_t kAccepted = 8;
  Restore restore;
  if (!restore.missing().empty()) SKIP(restore.missing());
  EngineRun run;
  run.open(options_of(restore));
  const uint64_t before = fixture::descriptors_here();
  std::vector<reap::UniqueFd> silent;
  for (uint64_t i = 0; i < kSilent; ++i) {
    silent.push_back(connect_to(options_of(restore).socket_path));
  }
  // Each with its pidfd.
  const uint64_t all = before + kSilent + 2 * kAccepted;
  CHECK(fixture::in_time([&] { return fixture::descriptors_here() >= all; }));
  CHECK(!fixture::Flag().set_within_a_moment());
  CHECK_EQ(fixture::descriptors_here(), all);
  const reap::UniqueFd connection = connect_guest(restore);
  silent.clear();
  CHECK(restore.has_file_bytes(5));
}

TEST(a_session_whose_deadline_passes_while_somebody_is_connected_ends_when_they_leave) {
  Restore restore;
  if (!restore.missing().empty()) SKIP(restore.missing());
  EngineRun run;
  const fixture::SessionOptions options = options_of(restore);
  const EngineRun::Opened session = run.open(options);
  const size_t before = descriptor_count();
  reap::UniqueFd silent = connect_to(options.socket_path);
  wait_until_accepted(run, session.id, before);
  reap::ServeBuffers buffers;
  run.find(session.id)->on_event(Role::connect_deadline, buffers);
  CHECK(run.find(session.id) != nullptr);
  // Too late: it cannot keep the session waiting.
  const reap::UniqueFd late = connect_to(options.socket_path);
  silent.reset();
  const Event ended = run.wait_for_end(session.id);
  CHECK_EQ(ended.failure.code, ErrorCode::handshake_timeout);
  CHECK_EQ(ended.failure.check, "connect");
}

TEST(a_vmm_is_served_although_no_descriptor_is_left) {
  Restore restore;
  if (!restore.missing().empty()) SKIP(restore.missing());
  VmmProcess vmm(restore.shape, socket_of(restore), Manner::touches_its_memory);
  fixture::Hooks hooks;
  fixture::Hold hold;
  reap::hooks::before_event = hold.hook();
  EngineRun run;
  const EngineRun::Opened session = run.open(options_of(restore, true));
  hold.wait_until_held();
  DescriptorLimit limit;
  limit.fill(0);
  hold.release();
  CHECK(vmm.had_the_right_bytes());
  vmm.exit_by_itself();
  CHECK_EQ(run.wait_for_end(session.id).state, EndState::vm_exited);
}

TEST(a_vmm_that_cannot_be_accepted_or_identified_waits_for_a_descriptor) {
  for (const bool accepted : {false, true}) {
    check::about = accepted ? "not identified" : "not accepted";
    Restore restore;
    if (!restore.missing().empty()) SKIP(restore.missing());
    VmmProcess vmm(restore.shape, socket_of(restore), Manner::touches_its_memory);
    fixture::Hooks hooks;
    DescriptorLimit limit;
    std::atomic<int> attempts{0};
    (accepted ? reap::hooks::after_accept : reap::hooks::before_event) = [&] {
      const int attempt = ++attempts;
      if (attempt == 1) limit.forbid();
      if (attempt == 3) limit.lift();
    };
    EngineRun run;
    const EngineRun::Opened session = run.open(options_of(restore, true));
    CHECK(vmm.had_the_right_bytes());
    CHECK(attempts >= 3);
    vmm.exit_by_itself();
    CHECK_EQ(run.wait_for_end(session.id).state, EndState::vm_exited);
  }
}

TEST(a_session_whose_vmm_cannot_be_accepted_until_the_deadline_names_the_limit) {
  Restore restore;
  if (!restore.missing().empty()) SKIP(restore.missing());
  VmmProcess vmm(restore.shape, socket_of(restore), Manner::waits);
  fixture::Hooks hooks;
  DescriptorLimit limit;
  std::atomic<int> attempts{0};
  reap::hooks::before_event = [&] {
    if (attempts++ == 0) limit.forbid();
  };
  EngineRun run;
  const EngineRun::Opened session = run.open(options_of(restore, true));
  fixture::eventually([&] { return attempts > 5; });
  reap::ServeBuffers buffers;
  if (const auto found = run.find(session.id)) found->on_event(Role::connect_deadline, buffers);
  const Event ended = run.wait_for_end(session.id);
  CHECK_EQ(ended.failure.code, ErrorCode::limit);
  CHECK_EQ(ended.failure.check, "RLIMIT_NOFILE");
}

TEST(a_vmm_whose_userfaultfd_the_kernel_dropped_is_killed) {
  Restore restore;
  if (!restore.missing().empty()) SKIP(restore.missing());
  VmmProcess vmm(restore.shape, socket_of(restore), Manner::touches_its_memory);
  fixture::Hooks hooks;
  DescriptorLimit limit;
  std::atomic<int> events{0};
  reap::hooks::before_event = [&] {
    if (++events == 2) limit.forbid();  // accepted, and the message is read next
  };
  EngineRun run;
  const EngineRun::Opened session = run.open(options_of(restore, true));
  const Event ended = run.wait_for_end(session.id);
  CHECK_EQ(ended.state, EndState::vm_killed);
  CHECK_EQ(ended.failure.code, ErrorCode::limit);
  CHECK_EQ(ended.failure.check, "RLIMIT_NOFILE");
  CHECK_EQ(vmm.end(), SIGKILL);
}

TEST(a_session_opens_only_with_the_descriptors_that_its_handshake_needs) {
  Restore restore;
  if (!restore.missing().empty()) SKIP(restore.missing());
  EngineRun run;
  DescriptorLimit limit;
  limit.fill(4);
  const EngineRun::Opened session = run.open(options_of(restore));
  CHECK_EQ(session.failure.code, ErrorCode::limit);
  CHECK_EQ(session.failure.check, "RLIMIT_NOFILE");
}

// The handler runs in a separate pid namespace, as in a container.
TEST(a_vmm_of_a_foreign_pid_namespace_is_refused_unless_it_may_be_left) {
  if (::geteuid() != 0) SKIP("needs root");
  for (const bool kill : {true, false}) {
    check::about = kill ? "kill" : "leave";
    Restore restore;
    if (!restore.missing().empty()) SKIP(restore.missing());
    const fixture::SessionOptions options = options_of(restore, kill);
    VmmProcess vmm(restore.shape, options.socket_path, Manner::waits);
    const pid_t outer = ::fork();
    if (outer == 0) {
      if (::unshare(CLONE_NEWPID) != 0) ::_exit(1);
      const pid_t inner = ::fork();
      if (inner == 0) {
        ::prctl(PR_SET_PDEATHSIG, SIGKILL);
        ::_exit((kill ? refuses_its_vmm(options) : leaves_its_vmm(options)) ? 0 : 2);
      }
      int status = 0;
      ::waitpid(inner, &status, 0);
      ::_exit(WIFEXITED(status) ? WEXITSTATUS(status) : 3);
    }
    int status = 0;
    CHECK_EQ(::waitpid(outer, &status, 0), outer);
    CHECK_EQ(WEXITSTATUS(status), 0);
    vmm.exit_by_itself();
    CHECK_EQ(vmm.end(), 0);
  }
}

TEST(a_vm_that_the_kernel_protects_from_us_is_reported_as_left) {
  if (::geteuid() != 0) SKIP("needs root");
  Restore restore;
  if (!restore.missing().empty()) SKIP(restore.missing());
  CHECK_EQ(::chmod(restore.directory.root().c_str(), 0777), 0);
  VmmProcess vmm(restore.shape, socket_of(restore), Manner::waits);
  EngineRun run;
  const EngineRun::Opened session = run.open(options_of(restore, true));
  run.wait(Event::Kind::connected, session.id);
  CHECK_EQ(::setresuid(kNobody, kNobody, 0), 0);
  CHECK(run.close(session.id, true));
  CHECK_EQ(run.wait_for_end(session.id).state, EndState::vm_left);
  CHECK_EQ(::setresuid(0, 0, 0), 0);
  CHECK(vmm.is_alive());
}
