// A session up to its first fault.
#include <poll.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "base/page.h"
#include "session/session.h"
#include "uffd/uffd.h"

namespace reap {

namespace {

// From connect() to the last byte of the message, which Firecracker sends in one call.
constexpr auto kMessageTimeout = std::chrono::seconds(5);

Failure vmm_exited(pid_t pid) {
  Failure failure;
  failure.code = ErrorCode::vmm_exited;
  failure.got = static_cast<uint64_t>(pid);
  return failure;
}

}  // namespace

void Session::time_out(Phase phase, const char* check) {
  std::lock_guard<std::mutex> lock(mutex_);
  // A peer that connected in time has the message timeout from then on.
  if (phase_ != phase) return;
  Failure failure;
  failure.code = ErrorCode::handshake_timeout;
  failure.check = check;
  refuse(failure, accept_pending_peer());
}

// If pidfds are missing (before 5.3) or refused, only the connect timeout covers the VMM.
Failure Session::watch_vmm() {
  if (options_.vmm == 0) return {};
  vmm_.reset(static_cast<int>(::syscall(SYS_pidfd_open, options_.vmm, 0)));
  return !vmm_ && errno == ESRCH ? vmm_exited(options_.vmm) : Failure{};
}

// A peer in the backlog is the VMM itself, or its child if the VMM is a jailer that has daemonized.
// Test: "a peer that connected before the named process ended is served".
void Session::on_vmm_exit() {
  std::lock_guard<std::mutex> lock(mutex_);
  if (phase_ != Phase::listening) return;
  pollfd waiting{listener_.fd(), POLLIN, 0};
  if (::poll(&waiting, 1, 0) > 0) return;
  refuse(vmm_exited(options_.vmm), false);
}

void Session::forget_vmm() {
  if (vmm_) reactor_.unwatch(vmm_.get());
  vmm_.reset();
}

void Session::accept_peer() {
  std::lock_guard<std::mutex> lock(mutex_);
  if (phase_ != Phase::listening) return;
  int error = 0;
  connection_ = listener_.accept(&error);
  if (error != 0) {
    Failure failure;
    failure.code = ErrorCode::socket;
    failure.err = error;
    failure.syscall = "accept";
    refuse(failure, accept_pending_peer());
    return;
  }
  if (!connection_) {
    reactor_.rearm(id_, Role::listener, listener_.fd(), EPOLLIN);
    return;
  }
  forget_vmm();
  // One restore per socket: nobody else may connect after this.
  reactor_.unwatch(listener_.fd());
  listener_.close();
  phase_ = Phase::handshaking;
  identify_peer(connection_.get(), &peer_);
  if (!may_connect() || !peer_.pidfd) {
    Failure failure;
    failure.code = ErrorCode::peer_refused;
    failure.check = may_connect() ? "process" : "uid";
    failure.want = ::geteuid();
    failure.got = peer_.uid;
    // A process without a pidfd can neither be killed nor be watched for its exit.
    if (!may_connect() || options_.kill_vm) {
      refuse(failure, false);
      return;
    }
  }
  reactor_.after(kMessageTimeout, id_, Role::message_deadline);
  if (!watch(Role::connection, connection_.get())) return;
}

// Accepts a waiting peer and reads its handshake before a session ends: VMMs resume their guest
// without waiting for an answer. Returns true if that guest depends on us.
bool Session::accept_pending_peer() {
  if (phase_ == Phase::listening && !connection_) {
    int error = 0;
    connection_ = listener_.accept(&error);
    if (!connection_) return false;
    identify_peer(connection_.get(), &peer_);
    if (!may_connect()) return false;
  }
  if (connection_ && !receiver_.got_uffd()) {
    receiver_.receive(connection_.get(),
                      {memory_file_.bytes(), static_cast<uint64_t>(::getpagesize())});
  }
  return receiver_.got_uffd();
}

bool Session::may_connect() const {
  return peer_.uid == ::geteuid() || peer_.uid == 0 ||
         (options_.peer_uid && peer_.uid == *options_.peer_uid);
}

void Session::receive_handshake() {
  std::lock_guard<std::mutex> lock(mutex_);
  if (phase_ == Phase::serving) {
    // Watched only for a peer without a pidfd: Firecracker keeps its end open since 1.12.
    end_locked(EndState::vm_exited, {}, Vm::leave);
    return;
  }
  if (phase_ != Phase::handshaking) return;
  const HandshakeLimits limits{memory_file_.bytes(), static_cast<uint64_t>(::getpagesize())};
  switch (receiver_.receive(connection_.get(), limits)) {
    case HandshakeReceiver::State::incomplete:
      reactor_.rearm(id_, Role::connection, connection_.get(), EPOLLIN);
      return;
    case HandshakeReceiver::State::refused:
      refuse(receiver_.failure(), receiver_.got_uffd());
      return;
    case HandshakeReceiver::State::complete:
      begin_serving();
      return;
  }
}

// From here on the guest's pages come from us: any failure ends the VM too.
void Session::begin_serving() {
  oom_.start(peer_.pid);
  Handshake handshake = receiver_.take_handshake();
  UniqueFd uffd = receiver_.take_uffd();
  uffd::make_nonblocking(uffd.get());
  handler_ =
      std::make_unique<FaultHandler>(GuestMemory(std::move(handshake.regions), handshake.page_size),
                                     std::move(uffd), memory_file_, *counters_, *trace_);
  phase_ = Phase::serving;
  if (!handler_->ready()) {
    Failure failure;
    failure.code = ErrorCode::fault_unresolved;
    failure.err = -ENOMEM;
    failure.syscall = "mmap";
    end_locked(EndState::vm_left, failure, options_.kill_vm ? Vm::kill : Vm::leave);
    return;
  }
  const GuestMemory& memory = handler_->memory();
  if (options_.record) trace_->start(memory.page_size(), memory.bytes());
  if (options_.plan) {
    handler_->expect_prefetch(
        [this](uint64_t offset) { environment_.prefetcher.prioritize(this, offset); });
    for (const PlanExtent& extent : options_.plan->extents) {
      handler_->expect(extent.first_page * kPage, extent.page_count * kPage);
    }
  }

  Event event{};
  event.kind = Event::Kind::connected;
  event.session = id_;
  event.pid = peer_.pid;
  event.page_size = memory.page_size();
  event.regions = memory.regions();
  environment_.emit(std::move(event));

  if (!ensure_watched(watch_.start(*handler_))) return;
  if (options_.plan) environment_.prefetcher.connected(this);
  if (peer_.pidfd) {
    if (!watch(Role::process, peer_.pidfd.get())) return;
    reactor_.unwatch(connection_.get());
  } else {
    reactor_.rearm(id_, Role::connection, connection_.get(), EPOLLRDHUP);
  }
}

// Ends a handshake. A peer that has sent its userfaultfd would freeze at its next fault.
void Session::refuse(const Failure& failure, bool guest_depends_on_us) {
  end_locked(guest_depends_on_us ? EndState::vm_left : EndState::closed, failure,
             guest_depends_on_us && options_.kill_vm ? Vm::kill : Vm::leave);
}

}  // namespace reap
