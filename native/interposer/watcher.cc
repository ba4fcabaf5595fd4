#include "watcher.h"

#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>

namespace reap::interposer {

int Watcher::start(int userfaultfd, void (*on_fault)()) {
  userfaultfd_ = userfaultfd;
  on_fault_ = on_fault;
  stop_ = ::eventfd(0, EFD_CLOEXEC);
  if (stop_ < 0) return -errno;
  pthread_attr_t detached;
  pthread_attr_init(&detached);
  pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED);
  pthread_t thread;
  const int error = pthread_create(&thread, &detached, run, this);
  pthread_attr_destroy(&detached);
  if (error != 0) ::close(stop_);
  return -error;
}

void Watcher::stop() const { ::eventfd_write(stop_, 1); }

void* Watcher::run(void* self) {
  const auto* watcher = static_cast<const Watcher*>(self);
  pollfd watched[] = {{watcher->userfaultfd_, POLLIN, 0}, {watcher->stop_, POLLIN, 0}};
  while (::poll(watched, 2, -1) < 0 && errno == EINTR) continue;
  // If both are ready, the thread that stops the watcher holds the lock that on_fault() waits for.
  if (watched[1].revents == 0) watcher->on_fault_();
  ::close(watcher->stop_);
  return nullptr;
}

}  // namespace reap::interposer
