// Peers that may connect, when, and with what: sockets, deadlines, refused handshakes.
#include <fcntl.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string>

#include "base/test_hooks.h"
#include "support/check.h"
#include "support/vmm_fixture.h"

namespace {

using fixture::connect_to;
using fixture::EngineRun;
using fixture::handshake_text;
using fixture::kNobody;
using fixture::Manner;
using fixture::Restore;
using fixture::VmmProcess;
using reap::EndState;
using reap::ErrorCode;
using reap::Event;

// A session that listens beside others.
fixture::SessionOptions options_at(const Restore& restore, const char* name) {
  fixture::SessionOptions options = options_of(restore);
  options.socket_path = restore.directory.path(name);
  return options;
}

bool exists(const std::string& path) { return ::access(path.c_str(), F_OK) == 0; }

}  // namespace

TEST(a_session_without_a_peer_ends_at_its_deadline) {
  Restore restore;
  if (!restore.missing().empty()) SKIP(restore.missing());
  EngineRun run;
  fixture::SessionOptions options = options_of(restore);
  options.connect_timeout = std::chrono::milliseconds(5);
  const EngineRun::Opened session = run.open(options);
  const Event ended = run.wait_for_end(session.id);
  CHECK_EQ(ended.state, EndState::closed);
  CHECK_EQ(ended.failure.code, ErrorCode::handshake_timeout);
  CHECK_EQ(ended.failure.check, "connect");
  CHECK(!exists(options.socket_path));
}

TEST(a_vmm_that_has_connected_in_time_may_take_longer_for_its_message) {
  Restore restore;
  if (!restore.missing().empty()) SKIP(restore.missing());
  EngineRun run;
  fixture::SessionOptions options = options_of(restore);
  options.connect_timeout = std::chrono::hours(1);
  const EngineRun::Opened session = run.open(options);
  const reap::UniqueFd connection = connect_to(options.socket_path);
  CHECK(fixture::send(connection.get(), " ", {}));
  fixture::eventually([&] { return !exists(options.socket_path); });
  // The deadline comes after that, however fast this machine is.
  reap::ServeBuffers buffers;
  run.find(session.id)->on_event(reap::Session::Role::connect_deadline, buffers);
  CHECK(fixture::send_handshake(connection.get(), restore.guest));
  CHECK(restore.has_file_bytes(5));
  CHECK(run.close(session.id, false));
  CHECK_EQ(run.wait_for_end(session.id).failure.code, ErrorCode::none);
}

TEST(every_session_has_a_separate_deadline) {
  Restore restore;
  if (!restore.missing().empty()) SKIP(restore.missing());
  EngineRun run;
  const auto open = [&](const char* name, std::chrono::milliseconds timeout) {
    fixture::SessionOptions options = options_at(restore, name);
    options.connect_timeout = timeout;
    return run.open(options).id;
  };
  const uint64_t never = open("never", std::chrono::milliseconds(0));
  const uint64_t last = open("last", std::chrono::hours(1));
  const uint64_t second = open("second", std::chrono::milliseconds(60));
  const uint64_t first = open("first", std::chrono::milliseconds(20));
  for (const uint64_t session : {second, first}) {
    CHECK_EQ(run.wait_for_end(session).failure.check, "connect");
  }
  for (const uint64_t session : {never, last}) CHECK(run.close(session, false));
}

TEST(a_message_that_is_incomplete_at_its_deadline_is_refused) {
  Restore restore;
  Restore owned;
  if (!restore.missing().empty()) SKIP(restore.missing());
  VmmProcess vmm(owned.shape, socket_of(owned), Manner::stops_half_way);
  EngineRun run;
  const auto silent = run.open(options_at(restore, "silent"));
  const auto half = run.open(options_at(restore, "half"));
  const auto with_guest = run.open(options_of(owned, true));
  const reap::UniqueFd first = connect_to(restore.directory.path("silent"));
  const reap::UniqueFd second = connect_to(restore.directory.path("half"));
  CHECK(fixture::send(second.get(), "[{\"size\":", {}));
  for (const auto& session : {silent, half, with_guest}) {
    const Event ended = run.wait_for_end(session.id);
    CHECK_EQ(ended.failure.code, ErrorCode::handshake_timeout);
    CHECK_EQ(ended.failure.check, "message");
    CHECK_EQ(ended.state, session.id == with_guest.id ? EndState::vm_killed : EndState::closed);
  }
  CHECK_EQ(vmm.end(), SIGKILL);
}

TEST(handshakes_that_are_not_understood_are_refused) {
  Restore restore;
  if (!restore.missing().empty()) SKIP(restore.missing());
  const reap::UniqueFd null(::open("/dev/null", O_RDWR | O_CLOEXEC));
  const reap::UniqueFd event(::eventfd(0, EFD_CLOEXEC));
  const int uffd = restore.guest.uffd();
  const std::string good = handshake_text(restore.guest, 4096);
  struct Row {
    const char* name;
    std::string text;
    std::vector<int> descriptors;
    const char* check;
    EndState state;
  };
  const std::string other_size =
      "[{\"base_host_virt_addr\":0,\"size\":4096,\"offset\":0,\"page_size\":4096}]";
  const Row rows[] = {
      {"no descriptor", good, {}, "descriptors", EndState::closed},
      {"two descriptors", good, {uffd, null.get()}, "descriptors", EndState::vm_left},
      {"two descriptors, the other first",
       good,
       {null.get(), uffd},
       "descriptors",
       EndState::vm_left},
      {"one uffd twice", good, {uffd, uffd}, "descriptors", EndState::vm_left},
      {"17 descriptors", good, std::vector<int>(17, null.get()), "descriptors", EndState::closed},
      {"another descriptor", good, {null.get()}, "not-a-userfaultfd", EndState::closed},
      {"another inode without a name", good, {event.get()}, "not-a-userfaultfd", EndState::closed},
      {"text", "GET / HTTP/1.1\r\n\r\n", {}, "not-an-array", EndState::closed},
      {"an object", "{}", {uffd}, "not-an-array", EndState::vm_left},
      {"no json", "[{]", {uffd}, "json", EndState::vm_left},
      {"more after it", good + "x", {uffd}, "json", EndState::vm_left},
      {"another memory", other_size, {uffd}, "memory-size", EndState::vm_left},
      {"half of it, then the end", good.substr(0, 40), {}, "truncated", EndState::closed},
  };
  EngineRun run;
  const auto refused = [&](const Row& row) {
    check::about = row.name;
    const EngineRun::Opened session = run.open(options_of(restore));
    reap::UniqueFd connection = connect_to(socket_of(restore));
    CHECK(fixture::send(connection.get(), row.text, row.descriptors));
    if (std::strcmp(row.check, "truncated") == 0) connection.reset();
    const Event ended = run.wait_for_end(session.id);
    CHECK_EQ(ended.failure.code, ErrorCode::handshake_invalid);
    CHECK_EQ(ended.failure.check, row.check);
    CHECK_EQ(ended.state, row.state);
  };
  for (const Row& row : rows) refused(row);
  // In a chroot.
  reap::hooks::lacks_proc = [] { return true; };
  for (const Row& row : rows) refused(row);
}

TEST(a_vmm_whose_handshake_is_refused_is_killed_as_its_guest_would_freeze) {
  Restore restore;
  if (!restore.missing().empty()) SKIP(restore.missing());
  VmmProcess vmm(restore.shape, socket_of(restore), Manner::sends_nonsense);
  EngineRun run;
  const Event ended = run.wait_for_end(run.open(options_of(restore, true)).id);
  CHECK_EQ(ended.state, EndState::vm_killed);
  CHECK_EQ(ended.failure.code, ErrorCode::handshake_invalid);
  CHECK_EQ(vmm.end(), SIGKILL);
}

TEST(a_vmm_of_another_user_is_refused_unless_it_was_announced) {
  if (::geteuid() != 0) SKIP("needs root");
  for (const bool announced : {false, true}) {
    check::about = announced ? "announced" : "not announced";
    Restore restore;
    if (!restore.missing().empty()) SKIP(restore.missing());
    CHECK_EQ(::chmod(restore.directory.root().c_str(), 0755), 0);
    fixture::SessionOptions options = options_of(restore);
    if (announced) options.peer_uid = kNobody;
    VmmProcess vmm(restore.shape, options.socket_path, Manner::touches_its_memory, kNobody);
    EngineRun run;
    const EngineRun::Opened session = run.open(options);
    if (announced) {
      CHECK(vmm.had_the_right_bytes());
      continue;
    }
    struct stat status {};
    CHECK_EQ(::stat(options.socket_path.c_str(), &status), 0);
    CHECK_EQ(status.st_mode & 0777, 0600);
    // The mode alone keeps it out; now only the check of the peer does.
    CHECK_EQ(::chmod(options.socket_path.c_str(), 0666), 0);
    const Event ended = run.wait_for_end(session.id);
    CHECK_EQ(ended.failure.code, ErrorCode::peer_refused);
    CHECK_EQ(ended.failure.check, "uid");
    CHECK_EQ(ended.failure.got, kNobody);
    CHECK_EQ(ended.state, EndState::closed);
  }
}

TEST(only_one_vmm_can_connect_to_a_session) {
  Restore restore;
  if (!restore.missing().empty()) SKIP(restore.missing());
  EngineRun run;
  const fixture::SessionOptions options = options_of(restore);
  const EngineRun::Opened session = run.open(options);
  const reap::UniqueFd silent = connect_to(options.socket_path);
  const reap::UniqueFd first = connect_to(options.socket_path);
  CHECK(fixture::send_handshake(first.get(), restore.guest));
  CHECK(restore.has_file_bytes(1));
  char none;
  CHECK(::read(silent.get(), &none, 1) <= 0);
  CHECK(!exists(options.socket_path));
}

TEST(a_session_that_cannot_open_reports_why) {
  Restore restore;
  if (!restore.missing().empty()) SKIP(restore.missing());
  struct Row {
    std::string socket_path;
    int err;
  };
  const Row rows[] = {
      {restore.directory.path("none/uffd.sock"), -ENOENT},
      {"/tmp/" + std::string(120, 'x'), -ENAMETOOLONG},
      {"", -ENOENT},
  };
  EngineRun run;
  const uint64_t descriptors = fixture::descriptors_here();
  for (const Row& row : rows) {
    check::about = row.socket_path;
    fixture::SessionOptions options = options_of(restore);
    options.socket_path = row.socket_path;
    const EngineRun::Opened session = run.open(options);
    CHECK_EQ(session.failure.code, ErrorCode::socket);
    CHECK_EQ(session.failure.err, row.err);
  }
  CHECK_EQ(fixture::descriptors_here(), descriptors);
}

namespace {

// A process that exits on command.
class Bystander {
 public:
  Bystander() {
    int ends[2];
    CHECK_EQ(::pipe2(ends, O_CLOEXEC), 0);
    pid_ = ::fork();
    if (pid_ == 0) {
      ::close(ends[1]);
      char byte;
      ::_exit(::read(ends[0], &byte, 1) == 0 ? 0 : 1);
    }
    ::close(ends[0]);
    until_.reset(ends[1]);
  }
  ~Bystander() {
    end();
    ::waitpid(pid_, nullptr, 0);
  }
  pid_t pid() const { return pid_; }
  // It remains a zombie.
  void end() { until_.reset(); }

 private:
  pid_t pid_ = -1;
  reap::UniqueFd until_;
};

}  // namespace

TEST(a_session_ends_at_once_with_the_vmm_that_was_named) {
  const Restore restore;
  if (!restore.missing().empty()) SKIP(restore.missing());
  for (const bool before : {true, false}) {
    check::about = before ? "before the session" : "while it listens";
    Bystander vmm;
    if (before) vmm.end();
    fixture::SessionOptions options = options_of(restore);
    options.vmm = vmm.pid();
    options.connect_timeout = std::chrono::hours(1);
    EngineRun run;
    const EngineRun::Opened session = run.open(options);
    vmm.end();
    const Event ended = run.wait_for_end(session.id);
    CHECK(ended.state == reap::EndState::closed);
    CHECK_EQ(ended.failure.code, ErrorCode::vmm_exited);
    CHECK_EQ(ended.failure.got, static_cast<uint64_t>(vmm.pid()));
    CHECK(!exists(options.socket_path));
  }
}

TEST(a_pid_without_a_process_is_refused_before_anything_listens) {
  const Restore restore;
  if (!restore.missing().empty()) SKIP(restore.missing());
  fixture::SessionOptions options = options_of(restore);
  {
    Bystander vmm;
    options.vmm = vmm.pid();
  }
  EngineRun run;
  CHECK_EQ(run.open(options).failure.code, ErrorCode::vmm_exited);
  CHECK(!exists(options.socket_path));
}

TEST(a_peer_that_connected_before_the_named_process_ended_is_served) {
  const Restore restore;
  if (!restore.missing().empty()) SKIP(restore.missing());
  fixture::Hooks hooks;
  fixture::Hold hold;
  reap::hooks::before_event = hold.hook();
  Bystander jailer;
  fixture::SessionOptions options = options_of(restore);
  options.vmm = jailer.pid();
  EngineRun run;
  const EngineRun::Opened session = run.open(options);
  const reap::UniqueFd connection = connect_to(options.socket_path);
  hold.wait_until_held();
  jailer.end();
  hold.release();
  CHECK(fixture::send_handshake(connection.get(), restore.guest));
  CHECK_EQ(run.wait(Event::Kind::connected, session.id).failure.code, ErrorCode::none);
  CHECK(restore.has_file_bytes(3));
}
