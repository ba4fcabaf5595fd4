// A session up to its first fault.
#include <poll.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "base/page.h"
#include "base/test_hooks.h"
#include "session/session.h"
#include "uffd/uffd.h"

namespace reap {

namespace {

// From connect() to the last byte of the message, which Firecracker sends in one call.
constexpr auto kMessageTimeout = std::chrono::seconds(5);
// Between attempts to accept without a descriptor.
constexpr auto kAcceptAgain = std::chrono::milliseconds(10);
// Maximum number of processes that are connected and have sent nothing.
constexpr size_t kMaxCallers = 8;

Failure timeout(const char* check) {
  Failure failure;
  failure.code = ErrorCode::handshake_timeout;
  failure.check = check;
  return failure;
}

// Positive if bytes wait to be read, 0 if the connection has ended, negative otherwise.
ssize_t peek(int connection) {
  for (;;) {
    char byte;
    const ssize_t got = ::recv(connection, &byte, 1, MSG_PEEK | MSG_DONTWAIT);
    if (got >= 0 || errno == EAGAIN) return got;
    if (errno != EINTR) return 0;
  }
}

bool has_hung_up(int connection) {
  pollfd state{connection, POLLRDHUP, 0};
  return ::poll(&state, 1, 0) > 0;
}

Failure vmm_exited(pid_t pid) {
  Failure failure;
  failure.code = ErrorCode::vmm_exited;
  failure.got = static_cast<uint64_t>(pid);
  return failure;
}

}  // namespace

// A process that connected in time has the message timeout from then on. Nobody else can connect.
void Session::on_connect_deadline() {
  std::lock_guard<std::mutex> lock(mutex_);
  deadline_passed_ = true;
  if (phase_ == Phase::listening && callers_.empty()) {
    end_unconnected();
  }
}

void Session::end_unconnected() {
  refuse(accept_failure_ ? accept_failure_ : timeout("connect"), meet_pending_vmm());
}

void Session::on_message_deadline() {
  std::lock_guard<std::mutex> lock(mutex_);
  const auto is_late = [now = std::chrono::steady_clock::now()](const Caller& caller) {
    return now - caller.since >= kMessageTimeout;
  };
  const bool late =
      phase_ == Phase::handshaking
          ? is_late(vm_)
          : phase_ == Phase::listening && std::any_of(callers_.begin(), callers_.end(), is_late);
  if (late) refuse(timeout("message"), meet_pending_vmm());
}

// If pidfds are missing (before 5.3) or refused, only the connect timeout covers the VMM.
Failure Session::watch_vmm() {
  if (options_.vmm == 0) return {};
  vmm_.reset(static_cast<int>(::syscall(SYS_pidfd_open, options_.vmm, 0)));
  return !vmm_ && errno == ESRCH ? vmm_exited(options_.vmm) : Failure{};
}

// Ends a session whose VMM is gone, unless somebody has connected: a peer in the backlog is the VMM
// itself, or its child if the VMM is a jailer that has daemonized. Test: "a peer that connected
// before the named process ended is served".
void Session::end_if_vmm_is_gone() {
  if (phase_ != Phase::listening || !callers_.empty() || listener_.has_waiting_peer()) return;
  pollfd exit{vmm_.get(), POLLIN, 0};
  if (vmm_ && ::poll(&exit, 1, 0) > 0) refuse(vmm_exited(options_.vmm), false);
}

void Session::forget_vmm() {
  if (vmm_) reactor_.unwatch(vmm_.get());
  vmm_.reset();
}

std::optional<Session::Caller> Session::accept_caller(int* error) {
  const SpareDescriptors::Use use(spare_);
  if (!accepted_) accepted_ = listener_.accept(error);
  if (!accepted_) return {};
  REAP_HOOK(after_accept);
  Caller caller;
  *error = identify_peer(accepted_.get(), &caller.peer);
  if (*error != 0) return {};
  caller.connection = std::move(accepted_);
  caller.since = std::chrono::steady_clock::now();
  return caller;
}

void Session::accept_callers() {
  std::lock_guard<std::mutex> lock(mutex_);
  if (phase_ != Phase::listening || deadline_passed_ || callers_.size() == kMaxCallers) return;
  int error = 0;
  std::optional<Caller> caller = accept_caller(&error);
  accept_failure_ = error == 0 ? Failure{} : failed_call(ErrorCode::socket, error, "accept");
  if (accept_failure_.code == ErrorCode::limit) {
    // Other threads have taken our spare descriptors. The VMM can wait.
    reactor_.after(kAcceptAgain, id_, Role::accept_again);
    return;
  }
  if (accept_failure_) {
    refuse(accept_failure_, meet_pending_vmm());
    return;
  }
  if (caller) {
    callers_.push_back(std::move(*caller));
    reactor_.after(kMessageTimeout, id_, Role::message_deadline);
    if (!watch(Role::connection, callers_.back().connection.get())) return;
  }
  reactor_.rearm(id_, Role::listener, listener_.fd(), EPOLLIN);
}

// Accepts waiting processes and reads their messages before a session ends: VMMs resume their guest
// without waiting for an answer. Returns true if a guest depends on us.
bool Session::meet_pending_vmm() {
  const auto depends_on_us = [this](Caller& caller) {
    if (!may_connect(caller.peer)) return false;
    if (!caller.receiver.guest_depends_on_us()) receive(caller);
    return caller.receiver.guest_depends_on_us();
  };
  if (phase_ == Phase::handshaking) return depends_on_us(vm_);
  if (phase_ != Phase::listening) return false;
  for (Caller& caller : callers_) {
    if (!depends_on_us(caller)) continue;
    choose(std::move(caller));
    return true;
  }
  int error = 0;
  for (int i = 0; i < Listener::kBacklog; ++i) {
    std::optional<Caller> caller = accept_caller(&error);
    if (!caller) break;
    if (!depends_on_us(*caller)) continue;
    choose(std::move(*caller));
    return true;
  }
  return false;
}

bool Session::may_connect(const Peer& peer) const {
  return peer.uid == ::geteuid() || peer.uid == 0 ||
         (options_.peer_uid && peer.uid == *options_.peer_uid);
}

Failure Session::refusal_of(const Peer& peer) const {
  const bool allowed = may_connect(peer);
  if (allowed && (!options_.kill_vm || peer.takes_signals())) return {};
  Failure failure;
  failure.code = ErrorCode::peer_refused;
  failure.check = allowed ? "process" : "uid";
  failure.want = ::geteuid();
  failure.got = peer.uid;
  return failure;
}

HandshakeReceiver::State Session::receive(Caller& caller) {
  const SpareDescriptors::Use use(spare_);
  return caller.receiver.receive(caller.connection.get(),
                                 {memory_file_.bytes(), static_cast<uint64_t>(::getpagesize())});
}

void Session::on_message() {
  std::lock_guard<std::mutex> lock(mutex_);
  if (phase_ == Phase::serving) {
    // Watched only for a peer without a pidfd: Firecracker keeps its end open since 1.12. The event
    // may also be that of another caller, whose thread waited for this lock. Test: "a caller that
    // leaves does not end the session of the VMM that another thread has met".
    if (vm_.peer.pidfd) return;
    if (has_hung_up(vm_.connection.get())) {
      end_locked(EndState::vm_exited, {}, Vm::leave);
    } else {
      reactor_.rearm(id_, Role::connection, vm_.connection.get(), EPOLLRDHUP);
    }
  } else if (phase_ == Phase::handshaking) {
    after_message(receive(vm_));
  } else if (phase_ == Phase::listening) {
    hear_callers();
  }
}

// The first caller that sends anything is the VMM. One that leaves without a word, such as a
// program that looks whether somebody listens, changes nothing.
void Session::hear_callers() {
  for (auto caller = callers_.begin(); caller != callers_.end();) {
    const int connection = caller->connection.get();
    bool is_there = true;
    if (const Failure refusal = refusal_of(caller->peer)) {
      // Its message stays unread, by which the interposer knows that it is not served. Test: "a
      // handler that never reads the message is given up at once when it refuses the user".
      const ssize_t waiting = peek(connection);
      if (waiting > 0) {
        choose(std::move(*caller));
        refuse(refusal, false);
        return;
      }
      is_there = waiting < 0;
    } else {
      const HandshakeReceiver::State state = receive(*caller);
      if (!caller->receiver.is_silent()) {
        choose(std::move(*caller));
        after_message(state);
        return;
      }
      is_there = state == HandshakeReceiver::State::incomplete;
    }
    if (is_there) {
      reactor_.rearm(id_, Role::connection, connection, EPOLLIN);
      ++caller;
    } else {
      reactor_.unwatch(connection);
      caller = callers_.erase(caller);
    }
  }
  if (deadline_passed_) {
    if (callers_.empty()) end_unconnected();
    return;
  }
  reactor_.rearm(id_, Role::listener, listener_.fd(), EPOLLIN);
  end_if_vmm_is_gone();
}

// One restore per socket: nobody else may connect after this.
void Session::choose(Caller caller) {
  vm_ = std::move(caller);
  measured_->steps.reach(SessionStep::accepted, vm_.since);
  for (const Caller& other : callers_) {
    if (other.connection) reactor_.unwatch(other.connection.get());
  }
  callers_.clear();
  forget_vmm();
  reactor_.unwatch(listener_.fd());
  listener_.close();
  phase_ = Phase::handshaking;
}

void Session::after_message(HandshakeReceiver::State state) {
  switch (state) {
    case HandshakeReceiver::State::incomplete:
      reactor_.rearm(id_, Role::connection, vm_.connection.get(), EPOLLIN);
      return;
    case HandshakeReceiver::State::refused:
      refuse(vm_.receiver.failure(), vm_.receiver.guest_depends_on_us());
      return;
    case HandshakeReceiver::State::complete:
      begin_serving();
      return;
  }
}

// From here on the guest's pages come from us: any failure ends the VM too.
void Session::begin_serving() {
  spare_.release();
  oom_.start(vm_.peer.pid);
  Handshake handshake = vm_.receiver.take_handshake();
  UniqueFd uffd = vm_.receiver.take_uffd();
  uffd::make_nonblocking(uffd.get());
  handler_ =
      std::make_unique<FaultHandler>(GuestMemory(std::move(handshake.regions), handshake.page_size),
                                     std::move(uffd), memory_file_, *measured_);
  phase_ = Phase::serving;
  bool has_memory = handler_->ready();
  if (has_memory && options_.plan) {
    handler_->expect_prefetch(
        [this](uint64_t offset) { environment_.prefetcher.prioritize(this, offset); });
    for (const PlanExtent& extent : options_.plan->extents) {
      handler_->expect(extent.first_page * kPage, extent.page_count * kPage);
    }
    has_memory = handler_->hold_out(options_.held_out);
  }
  if (!has_memory) {
    Failure failure;
    failure.code = ErrorCode::fault_unresolved;
    failure.err = -ENOMEM;
    failure.syscall = "mmap";
    end_locked(EndState::vm_left, failure, options_.kill_vm ? Vm::kill : Vm::leave);
    return;
  }
  const GuestMemory& memory = handler_->memory();
  if (options_.record) measured_->trace.start(memory.page_size(), memory.bytes());

  measured_->steps.reach(SessionStep::connected);
  Event event{};
  event.kind = Event::Kind::connected;
  event.session = id_;
  event.pid = vm_.peer.pid;
  event.page_size = memory.page_size();
  event.regions = memory.regions();
  environment_.emit(std::move(event));

  if (!ensure_watched(watch_.start(*handler_))) return;
  if (options_.plan) environment_.prefetcher.connected(this);
  if (vm_.peer.pidfd) {
    if (!watch(Role::process, vm_.peer.pidfd.get())) return;
    reactor_.unwatch(vm_.connection.get());
  } else {
    reactor_.rearm(id_, Role::connection, vm_.connection.get(), EPOLLRDHUP);
  }
}

// Ends a handshake. A peer that has sent its userfaultfd would freeze at its next fault.
void Session::refuse(const Failure& failure, bool guest_depends_on_us) {
  end_locked(guest_depends_on_us ? EndState::vm_left : EndState::closed, failure,
             guest_depends_on_us && options_.kill_vm ? Vm::kill : Vm::leave);
}

}  // namespace reap
