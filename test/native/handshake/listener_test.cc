// The socket: who gets it, what it replaces, and what it leaves alone.
#include "handshake/listener.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string>
#include <thread>

#include "support/check.h"
#include "support/guest_fixture.h"
#include "support/vmm_fixture.h"

namespace {

using fixture::kNobody;
using reap::ErrorCode;
using reap::Failure;
using reap::Listener;

// A socket at `path` that this library did not create.
reap::UniqueFd bind_to(const std::string& path, bool listening) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, path.data(), path.size());
  reap::UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  CHECK_EQ(::bind(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  if (listening) CHECK_EQ(::listen(fd.get(), 1), 0);
  return fd;
}

bool exists(const std::string& path) {
  struct stat status {};
  return ::lstat(path.c_str(), &status) == 0;
}

}  // namespace

TEST(a_stale_socket_is_replaced_and_others_are_not) {
  const fixture::TempDir directory;
  const std::string path = directory.path("socket");
  const auto open = [&] {
    Listener listener;
    return listener.open(path, {});
  };
  bind_to(path, true);
  CHECK(exists(path));
  CHECK_EQ(open().code, ErrorCode::none);
  CHECK(!exists(path));
  {
    const reap::UniqueFd live = bind_to(path, true);
    const Failure failure = open();
    CHECK_EQ(failure.code, ErrorCode::socket);
    CHECK_EQ(failure.err, -EADDRINUSE);
    CHECK_EQ(failure.check, "in-use");
    CHECK(exists(path));
  }
  ::unlink(path.c_str());
  const reap::UniqueFd file(::open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
  CHECK_EQ(open().err, -EADDRINUSE);
  CHECK(exists(path));
  ::unlink(path.c_str());
  CHECK_EQ(::symlink("/nowhere/at/all", path.c_str()), 0);
  CHECK_EQ(open().err, -EADDRINUSE);
}

TEST(a_listener_unlinks_its_own_path_and_no_other) {
  const fixture::TempDir directory;
  const std::string path = directory.path("socket");
  Listener listener;
  CHECK_EQ(listener.open(path, {}).code, ErrorCode::none);
  CHECK_EQ(::rename(path.c_str(), directory.path("moved").c_str()), 0);
  const reap::UniqueFd other = bind_to(path, false);
  listener.close();
  CHECK(exists(path));
}

TEST(a_look_at_a_living_socket_is_not_noticed_there) {
  const fixture::TempDir directory;
  const std::string path = directory.path("socket");
  fixture::Hooks hooks;
  Listener listener;
  Listener other;
  bool looked = false;
  // It does not listen yet.
  reap::hooks::after_bind = [&] {
    looked = true;
    CHECK_EQ(other.open(path, {}).check, "in-use");
  };
  CHECK_EQ(listener.open(path, {}).code, ErrorCode::none);
  CHECK(looked);
  CHECK_EQ(other.open(path, {}).check, "in-use");
  CHECK(exists(path));
  CHECK(!listener.has_waiting_peer());
}

TEST(of_two_handlers_that_start_at_once_over_a_stale_socket_one_wins_and_it_works) {
  constexpr int kRounds = 100;
  const fixture::TempDir directory;
  const std::string path = directory.path("socket");
  for (int round = 0; round < kRounds; ++round) {
    check::about = "round " + std::to_string(round);
    bind_to(path, true);
    fixture::Barrier start(2);
    Listener listeners[2];
    Failure failures[2];
    const auto open = [&](int i) {
      start.arrive_and_wait();
      failures[i] = listeners[i].open(path, {});
    };
    std::thread second(open, 1);
    open(0);
    second.join();
    const int winner = failures[0] ? 1 : 0;
    CHECK_EQ(failures[winner].code, ErrorCode::none);
    CHECK_EQ(failures[1 - winner].check, "in-use");
    CHECK(!listeners[winner].has_waiting_peer());
    CHECK(exists(path));
    if (!exists(path)) continue;
    const reap::UniqueFd connection = fixture::connect_to(path);
    CHECK(listeners[winner].has_waiting_peer());
  }
}

TEST(a_handler_waits_for_another_that_replaces_a_stale_socket) {
  const fixture::TempDir directory;
  const std::string path = directory.path("socket");
  bind_to(path, true);
  fixture::Hooks hooks;
  fixture::Hold replacing;
  fixture::Flag waits;
  reap::hooks::before_replace = replacing.hook();
  reap::hooks::waits_for_folder = [&] { waits.set(); };
  Listener first;
  Listener second;
  std::thread other([&] { CHECK_EQ(first.open(path, {}).code, ErrorCode::none); });
  replacing.wait_until_held();
  std::thread late([&] { CHECK_EQ(second.open(path, {}).check, "in-use"); });
  waits.wait();
  replacing.release();
  other.join();
  late.join();
  const reap::UniqueFd connection = fixture::connect_to(path);
  CHECK(first.has_waiting_peer());
}

TEST(a_socket_that_is_swapped_for_something_else_gives_nothing_away) {
  const uid_t peer = ::geteuid() == 0 ? kNobody : ::geteuid();
  const fixture::TempDir directory;
  const std::string path = directory.path("socket");
  const std::string target = directory.path("target");
  enum class Swap { symlink, hard_link, file, socket_of_the_peer };
  for (const Swap swap : {Swap::symlink, Swap::hard_link, Swap::file, Swap::socket_of_the_peer}) {
    check::about = "swap " + std::to_string(static_cast<int>(swap));
    if (swap == Swap::socket_of_the_peer && ::geteuid() != 0) continue;
    reap::UniqueFd held(::open(target.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
    if (swap == Swap::hard_link) {
      ::unlink(target.c_str());
      held = bind_to(target, true);
    }
    fixture::Hooks hooks;
    reap::hooks::after_bind = [&] {
      CHECK_EQ(::unlink(path.c_str()), 0);
      if (swap == Swap::symlink) CHECK_EQ(::symlink(target.c_str(), path.c_str()), 0);
      if (swap == Swap::hard_link || swap == Swap::file) {
        CHECK_EQ(::link(target.c_str(), path.c_str()), 0);
      }
      if (swap == Swap::socket_of_the_peer) {
        held = bind_to(path, true);
        CHECK_EQ(::chown(path.c_str(), peer, peer), 0);
      }
    };
    Listener listener;
    const Failure failure = listener.open(path, peer);
    CHECK_EQ(failure.code, ErrorCode::socket);
    CHECK_EQ(failure.check, "replaced");
    struct stat status {};
    CHECK_EQ(::stat(target.c_str(), &status), 0);
    CHECK_EQ(status.st_uid, ::geteuid());
    CHECK(exists(path));
    ::unlink(path.c_str());
    ::unlink(target.c_str());
  }
}

TEST(a_socket_that_is_swapped_after_the_last_look_gives_nothing_away) {
  if (::geteuid() != 0) SKIP("needs root");
  const fixture::TempDir directory;
  const std::string path = directory.path("socket");
  const std::string target = directory.path("target");
  const reap::UniqueFd file(::open(target.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
  fixture::Hooks hooks;
  bool swapped = false;
  reap::hooks::before_give_away = [&] {
    swapped = ::unlink(path.c_str()) == 0 && ::symlink(target.c_str(), path.c_str()) == 0;
  };
  Listener listener;
  CHECK_EQ(listener.open(path, kNobody).code, ErrorCode::none);
  CHECK(swapped);
  struct stat status {};
  CHECK_EQ(::fstat(file.get(), &status), 0);
  CHECK_EQ(status.st_uid, 0);
}

TEST(a_socket_for_another_user_belongs_to_that_user) {
  if (::geteuid() != 0) SKIP("needs root");
  const fixture::TempDir directory;
  const std::string path = directory.path("socket");
  Listener listener;
  CHECK_EQ(listener.open(path, kNobody).code, ErrorCode::none);
  struct stat status {};
  CHECK_EQ(::lstat(path.c_str(), &status), 0);
  CHECK_EQ(status.st_uid, kNobody);
  CHECK_EQ(status.st_gid, ::getegid());
  CHECK_EQ(status.st_mode & 0777, 0600);
}
