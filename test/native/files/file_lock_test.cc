// Locks between processes: one owner at a time, whatever happens to it and to the file.
#include "files/file_lock.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <string>
#include <utility>

#include "base/test_hooks.h"
#include "support/check.h"
#include "support/guest_fixture.h"

namespace {

using reap::ErrorCode;
using reap::Failure;
using reap::FileLock;

bool takes(const std::string& path, FileLock* lock) {
  const Failure failure = lock->try_take(path);
  CHECK(!failure);
  return lock->is_held();
}

bool is_free(const std::string& path) {
  FileLock lock;
  return takes(path, &lock);
}

}  // namespace

TEST(a_lock_has_one_owner_and_is_free_once_it_is_released) {
  const fixture::TempDir folder;
  const std::string path = folder.path("lock");
  FileLock lock;
  CHECK(takes(path, &lock));
  CHECK(!is_free(path));
  FileLock moved = std::move(lock);
  CHECK(!is_free(path));
  moved.release();
  moved.release();
  CHECK(is_free(path));
  struct stat status {};
  CHECK_EQ(::stat(path.c_str(), &status), 0);
  CHECK_EQ(status.st_mode & 07777, 0600);
  ::unlink(path.c_str());
}

TEST(a_lock_is_free_when_its_process_is_killed) {
  const fixture::TempDir folder;
  const std::string path = folder.path("lock");
  int ready[2];
  CHECK_EQ(::pipe2(ready, O_CLOEXEC), 0);
  const pid_t owner = ::fork();
  if (owner == 0) {
    FileLock lock;
    const char is_held = takes(path, &lock) ? 1 : 0;
    if (::write(ready[1], &is_held, 1) == 1) ::pause();
    ::_exit(1);
  }
  char is_held = 0;
  CHECK_EQ(::read(ready[0], &is_held, 1), 1);
  CHECK_EQ(is_held, 1);
  CHECK(!is_free(path));
  ::kill(owner, SIGKILL);
  CHECK_EQ(::waitpid(owner, nullptr, 0), owner);
  CHECK(is_free(path));
  ::close(ready[0]);
  ::close(ready[1]);
  ::unlink(path.c_str());
}

TEST(a_lock_that_is_released_is_free_although_a_child_has_the_descriptor) {
  const fixture::TempDir folder;
  const std::string path = folder.path("lock");
  FileLock lock;
  CHECK(takes(path, &lock));
  const pid_t child = ::fork();
  if (child == 0) {
    ::pause();
    ::_exit(0);
  }
  lock.release();
  CHECK(is_free(path));
  ::kill(child, SIGKILL);
  CHECK_EQ(::waitpid(child, nullptr, 0), child);
  ::unlink(path.c_str());
}

TEST(a_lock_on_a_file_that_was_removed_meanwhile_is_taken_on_the_new_one) {
  const fixture::TempDir folder;
  const std::string path = folder.path("lock");
  int opened = 0;
  reap::hooks::before_lock = [&] {
    if (++opened == 1) ::unlink(path.c_str());
  };
  FileLock lock;
  CHECK(takes(path, &lock));
  CHECK_EQ(opened, 2);
  reap::hooks::before_lock = nullptr;
  CHECK(!is_free(path));
  ::unlink(path.c_str());
}

TEST(a_path_that_is_no_file_of_this_user_is_not_locked) {
  const fixture::TempDir folder;
  const std::string path = folder.path("lock");
  FileLock lock;
  CHECK_EQ(::symlink("elsewhere", path.c_str()), 0);
  Failure failure = lock.try_take(path);
  CHECK(failure.code == ErrorCode::store_io);
  CHECK_EQ(failure.err, -ELOOP);
  ::unlink(path.c_str());

  CHECK_EQ(::mkfifo(path.c_str(), 0600), 0);
  failure = lock.try_take(path);
  CHECK(failure.code == ErrorCode::store_io);
  CHECK_EQ(failure.check, "regular-file");
  ::unlink(path.c_str());

  failure = lock.try_take(folder.path("no folder/lock"));
  CHECK(failure.code == ErrorCode::store_io);
  CHECK_EQ(failure.err, -ENOENT);

  CHECK(takes(path, &lock));
  lock.release();
  CHECK_EQ(::chmod(path.c_str(), 0666), 0);
  failure = lock.try_take(path);
  CHECK(failure.code == ErrorCode::untrusted_file);
  CHECK_EQ(failure.check, "mode");
  CHECK(!lock.is_held());
  ::unlink(path.c_str());
}
