#include "session/session.h"

#include <signal.h>
#include <sys/epoll.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "base/test_hooks.h"
#include "uffd/uffd.h"

namespace reap {

namespace {

// Maximum wait for the exit of a killed VM. A process in an uninterruptible read from a dead disk
// may take longer; it is reported as killed all the same.
constexpr auto kKillTimeout = std::chrono::seconds(5);
// For faults that wait for the VMM's madvise() to complete.
constexpr auto kServeAgain = std::chrono::microseconds(200);

}  // namespace

Session::Session(const Environment& environment, uint64_t id, SessionOptions options,
                 std::shared_ptr<Measurements> measurements)
    : environment_(environment),
      reactor_(environment.reactor),
      id_(id),
      options_(std::move(options)),
      measured_(std::move(measurements)),
      memory_file_(std::move(options_.memory_file)),
      watch_(environment.reactor, id, memory_file_.stamp()[0]),
      read_limit_(environment.reactor, id, options_.read_timeout) {}

Session::~Session() {
  environment_.forget(id_);
  if (phase_ == Phase::idle) return;  // start() failed and already reported it
  // Close descriptors before emitting `ended`: listeners may count open ones.
  handler_.reset();
  vm_.connection.reset();
  vm_.receiver = HandshakeReceiver();
  vm_.peer.pidfd.reset();
  memory_file_ = PageSource();
  report_end();
}

void Session::report_end() {
  if (is_reported_.exchange(true)) return;
  Event event{};
  event.kind = Event::Kind::ended;
  event.session = id_;
  event.state = state_;
  event.oom = state_ == EndState::vm_exited && oom_.has_killed();
  event.failure = failure_;
  event.pid = vm_.peer.pid;
  environment_.emit(std::move(event));
}

Failure Session::start() {
  std::lock_guard<std::mutex> lock(mutex_);
  if (const int error = spare_.hold()) return failed_call(ErrorCode::socket, error, "eventfd");
  if (Failure failure = watch_vmm()) return failure;
  if (Failure failure = listener_.open(options_.socket_path, options_.peer_uid)) return failure;
  if (!reactor_.watch(id_, Role::listener, listener_.fd(), EPOLLIN)) {
    Failure failure;
    failure.code = ErrorCode::socket;
    failure.err = -errno;
    failure.syscall = "epoll_ctl";
    return failure;
  }
  phase_ = Phase::listening;
  measured_->steps.reach(SessionStep::listening);
  if (vmm_) reactor_.watch(id_, Role::vmm, vmm_.get(), EPOLLIN);
  if (options_.plan) {
    environment_.prefetcher.start(shared_from_this(), options_.plan, std::move(options_.proven));
  }
  if (options_.connect_timeout.count() > 0) {
    reactor_.after(options_.connect_timeout, id_, Role::connect_deadline);
  }
  return {};
}

void Session::on_event(Role role, ServeBuffers& buffers) {
  REAP_HOOK(before_event);
  switch (role) {
    case Role::poll_fallback:
    case Role::serve_held:
    case Role::serve_again:
    case Role::disk_is_free:
    case Role::uffd:
      watch_.fired(role);
      serve(buffers);
      return;
    case Role::listener:
    case Role::accept_again:
      accept_callers();
      return;
    case Role::vmm: {
      std::lock_guard<std::mutex> lock(mutex_);
      end_if_vmm_is_gone();
      return;
    }
    case Role::connection:
      on_message();
      return;
    case Role::process: {
      std::lock_guard<std::mutex> lock(mutex_);
      if (phase_ == Phase::ending) {
        environment_.release(id_);
      } else {
        end_locked(EndState::vm_exited, {}, Vm::leave);
      }
      return;
    }
    case Role::kill_deadline:
      environment_.release(id_);
      return;
    case Role::read_deadline:
      if (read_limit_.is_exceeded()) on_hung_read(false);
      return;
    case Role::end_deadline:
    case Role::prefetch_watch:
      return;  // of the engine
    case Role::connect_deadline:
      on_connect_deadline();
      return;
    case Role::message_deadline:
      on_message_deadline();
      return;
  }
}

// Ends the session unless the kernel watches the descriptor. mutex_ is held.
bool Session::ensure_watched(bool watched) {
  if (watched) return true;
  Failure failure;
  failure.code = ErrorCode::socket;
  failure.err = -errno;
  failure.syscall = "epoll_ctl";
  refuse(failure, phase_ == Phase::serving || vm_.receiver.guest_depends_on_us());
  return false;
}

bool Session::watch(Role role, int fd) {
  return ensure_watched(reactor_.watch(id_, role, fd, EPOLLIN));
}

void Session::serve(ServeBuffers& buffers) {
  if (stopping_.load(std::memory_order_acquire)) return;
  FaultHandler& handler = *handler_;
  if (!buffers.reserve(handler.memory().page_size())) {
    watch_.serve_again(kServeAgain);
    return;
  }
  bool blocked = false;
  bool refused = false;
  ReadLimit::Reads reads(read_limit_);
  const auto admit_others = [&] {
    if (!blocked) blocked = watch_.begin_blocking();
    refused = !blocked;
    if (!blocked) return false;
    watch_.admit_others();
    reads.begin();
    return true;
  };
  FaultHandler::Served served;
  {
    Reactor::Spin spin(reactor_);
    served = handler.serve(buffers, spin.duration(), admit_others);
    spin.end(buffers.lost_core);
  }
  if (blocked) watch_.end_blocking();
  if (!refused) watch_.reset_delay();
  const Retry retry = blocked ? Retry::now : refused ? Retry::when_disk_is_free : Retry::soon;
  if (!continues_after(served, retry)) return;
  // A VMM that cleared O_NONBLOCK would keep this thread spinning in epoll.
  uffd::make_nonblocking(handler.fd());
  watch_.resume();
}

// Returns true if the session continues after a thread has served. Pending faults are tried again.
bool Session::continues_after(FaultHandler::Served served, Retry retry) {
  switch (served) {
    case FaultHandler::Served::later:
      if (handler_->is_short_of_memory()) {
        watch_.serve_again(FaultHandler::kMemoryWait);
      } else if (retry == Retry::when_disk_is_free) {
        watch_.serve_when_free();
      } else {
        watch_.serve_again(retry == Retry::now ? std::chrono::nanoseconds(0) : kServeAgain);
      }
      [[fallthrough]];
    case FaultHandler::Served::idle:
      if (handler_->holds_faults()) watch_.serve_held();
      return true;
    case FaultHandler::Served::gone:
      end(EndState::vm_exited, {}, Vm::leave);
      return false;
    case FaultHandler::Served::failed:
      fail(handler_->failure());
      return false;
  }
  return false;
}

void Session::poll_faults(ServeBuffers& buffers) {
  FaultHandler& handler = *handler_;
  if (stopping_.load(std::memory_order_acquire) || !uffd::has_messages(handler.fd()) ||
      !buffers.reserve(handler.memory().page_size())) {
    return;
  }
  continues_after(handler.serve_once(buffers), Retry::now);
}

void Session::on_prefetched(const PrefetchReport& report) {
  measured_->steps.reach(SessionStep::prefetched);
  Event event{};
  event.kind = Event::Kind::prefetched;
  event.session = id_;
  event.prefetch = report;
  event.failure = report.failure;
  environment_.emit(std::move(event));
  watch_.serve_again(std::chrono::nanoseconds(0));  // faults held for this prefetch
  if (report.failure.code == ErrorCode::source_read && handler_->memory_file_changed()) {
    fail(report.failure);
  }
}

void Session::on_hung_read(bool is_of_working_set) {
  Failure failure;
  failure.code = is_of_working_set ? ErrorCode::working_set_io : ErrorCode::source_read;
  failure.check = "hangs";
  failure.want = static_cast<uint64_t>(options_.read_timeout.count());
  // Without the working set, the guest is served from the memory file.
  if (options_.fails_if_read_hangs && !is_of_working_set) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (phase_ == Phase::ending) return;
    refuse(failure, phase_ == Phase::serving || meet_pending_vmm());
    return;
  }
  Event event{};
  event.kind = Event::Kind::read_hangs;
  event.session = id_;
  event.failure = failure;
  environment_.emit(std::move(event));
}

bool Session::detach() {
  std::lock_guard<std::mutex> lock(mutex_);
  if (phase_ != Phase::serving) return false;
  if (!std::exchange(detaching_, true)) environment_.prefetcher.fill(shared_from_this());
  return true;
}

void Session::on_filled(FaultHandler::Filled filled, const Failure& failure) {
  if (filled == FaultHandler::Filled::gone) {
    end(EndState::vm_exited, {}, Vm::leave);
    return;
  }
  if (failure.code == ErrorCode::source_read) {
    fail(failure);
    return;
  }
  if (stopping_.load(std::memory_order_acquire)) return;
  Failure refused = failure;
  if (filled == FaultHandler::Filled::all) {
    // Without the lock: it waits for threads of the VMM.
    const int error = handler_->unregister();
    if (error == 0 || error == -ESRCH) {
      end(error == 0 ? EndState::detached : EndState::vm_exited, {}, Vm::leave);
      return;
    }
    refused.code = ErrorCode::fault_unresolved;
    refused.check = "detach";
    refused.err = error;
    refused.syscall = "ioctl(UFFDIO_UNREGISTER)";
  }
  std::lock_guard<std::mutex> lock(mutex_);
  if (phase_ != Phase::serving) return;
  // The guest is served as before, and the caller may retry.
  detaching_ = false;
  Event event{};
  event.kind = Event::Kind::detach_failed;
  event.session = id_;
  event.failure = refused;
  environment_.emit(std::move(event));
}

void Session::close(bool kill_vm) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (phase_ == Phase::ending) return;
  const bool depends_on_us = phase_ == Phase::serving || meet_pending_vmm();
  end_locked(depends_on_us ? EndState::vm_left : EndState::closed, {},
             depends_on_us && kill_vm ? Vm::kill : Vm::leave);
}

void Session::fail(const Failure& failure) {
  end(EndState::vm_left, failure, options_.kill_vm ? Vm::kill : Vm::leave);
}

void Session::end(EndState state, const Failure& failure, Vm vm) {
  std::lock_guard<std::mutex> lock(mutex_);
  end_locked(state, failure, vm);
}

void Session::end_locked(EndState state, const Failure& failure, Vm vm) {
  if (phase_ == Phase::ending || phase_ == Phase::idle) return;
  const bool serving = phase_ == Phase::serving;
  phase_ = Phase::ending;
  measured_->steps.reach(SessionStep::closed, measured_->waits.close());
  stopping_.store(true, std::memory_order_release);
  state_ = state;
  failure_ = failure;
  if (listener_.fd() >= 0) reactor_.unwatch(listener_.fd());
  listener_.close();
  forget_vmm();
  for (const Caller& caller : callers_) reactor_.unwatch(caller.connection.get());
  callers_.clear();
  accepted_.reset();
  spare_.release();
  if (vm_.connection) reactor_.unwatch(vm_.connection.get());
  watch_.stop();
  environment_.prefetcher.cancel(this);

  const int pidfd = vm_.peer.pidfd.get();
  if (vm == Vm::kill && vm_.peer.pidfd) {
    const int error = vm_.peer.signal(SIGKILL);
    if (error == 0) {
      state_ = EndState::vm_killed;
      reactor_.after(kKillTimeout, id_, Role::kill_deadline);
      if (serving) {
        reactor_.rearm(id_, Role::process, pidfd, EPOLLIN);
      } else {
        reactor_.watch(id_, Role::process, pidfd, EPOLLIN);
      }
      return;
    }
    if (error == -ESRCH) state_ = EndState::vm_exited;
  }
  if (vm_.peer.pidfd) reactor_.unwatch(pidfd);
  environment_.release(id_);
}

}  // namespace reap
