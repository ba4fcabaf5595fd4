#include "pager.h"

#include <poll.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstring>

#include "report.h"
#include "uffd/uffd.h"

namespace reap::bench {

namespace {

constexpr int kHandshakeMs = 5000;
constexpr int kDeferredMs = 1;

UniqueFd take_signals() {
  sigset_t signals;
  ::sigemptyset(&signals);
  ::sigaddset(&signals, SIGTERM);
  ::sigaddset(&signals, SIGINT);
  ::sigprocmask(SIG_BLOCK, &signals, nullptr);
  UniqueFd fd(::signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK));
  if (!fd) fail("create a signalfd", errno);
  return fd;
}

}  // namespace

Pager::Pager(const std::string& socket_path, const uint8_t* bytes, uint64_t byte_count)
    : bytes_(bytes),
      byte_count_(byte_count),
      epoll_(::epoll_create1(EPOLL_CLOEXEC)),
      signals_(take_signals()) {
  if (!epoll_) fail("create an epoll instance", errno);
  if (const Failure failure = listener_.open(socket_path, {})) {
    fail(std::string(failure.syscall) + " " + socket_path, -failure.err);
  }
}

bool Pager::connect() {
  HandshakeReceiver receiver;
  const HandshakeLimits limits{byte_count_, static_cast<uint64_t>(::sysconf(_SC_PAGESIZE))};
  auto state = HandshakeReceiver::State::incomplete;
  while (state == HandshakeReceiver::State::incomplete) {
    pollfd waits[] = {{signals_.get(), POLLIN, 0},
                      {connection_ ? connection_.get() : listener_.fd(), POLLIN, 0}};
    const int ready = ::poll(waits, 2, connection_ ? kHandshakeMs : -1);
    if (ready == 0) {
      listener_.close();
      fail("the VMM connected and sent no handshake");
    }
    if (waits[0].revents != 0) return false;
    if (connection_) {
      state = receiver.receive(connection_.get(), limits);
      continue;
    }
    int error = 0;
    connection_ = listener_.accept(&error);
    if (error != 0) fail("accept a connection", -error);
  }
  listener_.close();
  if (state == HandshakeReceiver::State::refused) {
    fail(std::string("the handshake was refused: ") + receiver.failure().check);
  }
  Handshake handshake = receiver.take_handshake();
  memory_ = GuestMemory(std::move(handshake.regions), handshake.page_size);
  uffd_ = receiver.take_uffd();
  uffd::make_nonblocking(uffd_.get());
  identify_peer(connection_.get(), &peer_);

  watch(uffd_.get(), EPOLLIN);
  watch(signals_.get(), EPOLLIN);
  // The socket shows the VMM's exit only if the VMM keeps it open (Firecracker since 1.12).
  if (peer_.pidfd) {
    watch(peer_.pidfd.get(), EPOLLIN);
  } else {
    watch(connection_.get(), EPOLLRDHUP);
  }
  return true;
}

void Pager::watch(int fd, uint32_t events) {
  epoll_event event{};
  event.events = events;
  event.data.fd = fd;
  if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) != 0) fail("watch a descriptor", errno);
}

const char* Pager::serve() { return serve(-1); }
const char* Pager::serve_spinning() { return serve(0); }

const char* Pager::serve(int timeout_ms) {
  while (step(timeout_ms)) continue;
  return ended_;
}

bool Pager::step(int timeout_ms) {
  epoll_event event{};
  const int wait_ms = pending_.empty() ? timeout_ms : kDeferredMs;
  if (::epoll_wait(epoll_.get(), &event, 1, wait_ms) > 0) {
    if (event.data.fd == uffd_.get()) {
      read_one();
    } else {
      ended_ = event.data.fd == signals_.get() ? "terminated" : "vm-exited";
    }
  }
  if (!ended_) answer_pending();
  return !ended_;
}

void Pager::read_one() {
  uffd_msg message;
  const int got = uffd::read_messages(uffd_.get(), &message, 1);
  if (got < 0) fail_vm("cannot read the userfaultfd: " + std::string(std::strerror(-got)));
  if (got == 0) return;
  if (message.event == UFFD_EVENT_PAGEFAULT) {
    counters_.faults++;
    pending_.push_back(message.arg.pagefault.address & ~(memory_.page_size() - 1));
  } else if (message.event == UFFD_EVENT_REMOVE) {
    // The kernel fills removed pages with zeros from here on.
    counters_.removed++;
    uffd::unregister(uffd_.get(), message.arg.remove.start,
                     message.arg.remove.end - message.arg.remove.start);
  }
}

void Pager::answer_pending() {
  pending_.erase(std::remove_if(pending_.begin(), pending_.end(),
                                [this](uint64_t address) { return answer(address); }),
                 pending_.end());
}

// False if an unread REMOVE prevents it, which step() reads next.
bool Pager::answer(uint64_t address) {
  const Region* region = memory_.region_at(address);
  if (!region) fail_vm("a fault outside of guest memory");
  const uint8_t* source = bytes_ + region->offset + (address - region->base);
  const uffd::Result result = uffd::copy(uffd_.get(), address, source, memory_.page_size());
  switch (result.outcome) {
    case uffd::Outcome::installed:
      counters_.installed++;
      return true;
    case uffd::Outcome::present:
      // EEXIST wakes nobody. The published handlers do not wake either, and a thread that met an
      // install without a wake-up waits for ever; that bug is not part of the algorithm.
      counters_.present++;
      uffd::wake(uffd_.get(), address, memory_.page_size());
      return true;
    case uffd::Outcome::unregistered:  // removed concurrently
      uffd::wake(uffd_.get(), address, memory_.page_size());
      return true;
    case uffd::Outcome::deferred:
      return false;
    case uffd::Outcome::gone:
      ended_ = "vm-exited";
      return true;
    default:
      fail_vm("cannot install a page: " + std::string(std::strerror(-result.err)));
  }
}

void Pager::fail_vm(const std::string& sentence) const {
  if (peer_.pidfd) ::syscall(SYS_pidfd_send_signal, peer_.pidfd.get(), SIGKILL, nullptr, 0);
  fail(sentence);
}

}  // namespace reap::bench
