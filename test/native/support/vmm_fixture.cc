#include "vmm_fixture.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "check.h"

namespace fixture {

reap::UniqueFd connect_to(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, path.data(), std::min(path.size(), sizeof address.sun_path - 1));
  for (;;) {
    reap::UniqueFd connection(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    if (::connect(connection.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) == 0) {
      return connection;
    }
    ::usleep(1000);
  }
}

bool send(int connection, const std::string& text, const std::vector<int>& descriptors) {
  const size_t bytes = descriptors.size() * sizeof(int);
  iovec part{const_cast<char*>(text.data()), text.size()};
  std::vector<char> control(CMSG_SPACE(bytes));
  msghdr header{};
  header.msg_iov = &part;
  header.msg_iovlen = 1;
  if (!descriptors.empty()) {
    header.msg_control = control.data();
    header.msg_controllen = control.size();
    cmsghdr* rights = CMSG_FIRSTHDR(&header);
    rights->cmsg_level = SOL_SOCKET;
    rights->cmsg_type = SCM_RIGHTS;
    rights->cmsg_len = CMSG_LEN(bytes);
    std::memcpy(CMSG_DATA(rights), descriptors.data(), bytes);
  }
  return ::sendmsg(connection, &header, MSG_NOSIGNAL) == static_cast<ssize_t>(text.size());
}

std::string handshake_text(const Guest& guest, uint64_t page_size) {
  std::string text;
  for (const reap::Region& region : guest.regions()) {
    text += (text.empty() ? "[{" : ",{");
    text += "\"base_host_virt_addr\":" + std::to_string(region.base) +
            ",\"size\":" + std::to_string(region.size) +
            ",\"offset\":" + std::to_string(region.offset) +
            ",\"page_size\":" + std::to_string(page_size) +
            ",\"page_size_kib\":" + std::to_string(page_size) + "}";
  }
  return text + "]";
}

bool send_handshake(int connection, const Guest& guest, uint64_t page_size) {
  return send(connection, handshake_text(guest, page_size), {guest.uffd()});
}

VmmProcess::VmmProcess(const Shape& shape, std::string socket_path, Manner manner, uid_t uid) {
  int report[2];
  int command[2];
  if (::pipe2(report, O_CLOEXEC) != 0 || ::pipe2(command, O_CLOEXEC) != 0) return;
  report_.reset(report[0]);
  command_.reset(command[1]);
  const reap::UniqueFd its_report(report[1]);
  const reap::UniqueFd its_command(command[0]);
  pid_ = ::fork();
  if (pid_ != 0) return;
  report_.reset(its_report.get());
  command_.reset(its_command.get());
  run(shape, socket_path, manner, uid);
}

VmmProcess::~VmmProcess() {
  if (pid_ <= 0) return;
  ::kill(pid_, SIGKILL);
  end();
}

void VmmProcess::run(const Shape& shape, const std::string& path, Manner manner, uid_t uid) {
  if (uid != 0 && (::setgid(uid) != 0 || ::setuid(uid) != 0)) ::_exit(1);
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  const Guest guest(shape);
  if (!guest.missing().empty()) ::_exit(1);
  const std::vector<uint8_t> bytes = memory_bytes(shape);
  const reap::UniqueFd connection = connect_to(path);
  std::string text = handshake_text(guest, shape.page_size);
  if (manner == Manner::stops_half_way) text.resize(text.size() / 2);
  if (manner == Manner::sends_nonsense) text = "[1]";
  if (!send(connection.get(), text, {guest.uffd()})) ::_exit(1);
  if (manner == Manner::touches_its_memory) {
    char right = 1;
    for (uint64_t page = 0; page < shape.pages(); ++page) {
      const uint64_t at = page * shape.page_size;
      if (std::memcmp(guest.page(page), bytes.data() + at, shape.page_size) != 0) right = 0;
    }
    if (::write(report_.get(), &right, 1) != 1) ::_exit(1);
  }
  char none;
  while (::read(command_.get(), &none, 1) > 0) {
  }
  ::_exit(0);
}

bool VmmProcess::had_the_right_bytes() {
  char right = 0;
  return ::read(report_.get(), &right, 1) == 1 && right == 1;
}

bool VmmProcess::is_alive() {
  siginfo_t info{};
  return ::waitid(P_PID, static_cast<id_t>(pid_), &info, WEXITED | WNOHANG | WNOWAIT) == 0 &&
         info.si_pid == 0;
}

int VmmProcess::end() {
  int status = 0;
  while (::waitpid(pid_, &status, 0) < 0 && errno == EINTR) {
  }
  pid_ = -1;
  return WIFSIGNALED(status) ? WTERMSIG(status) : 0;
}

void VmmProcess::exit_by_itself() { command_.reset(); }

std::string socket_of(const Restore& restore) { return restore.directory.path("uffd.sock"); }

SessionOptions options_of(const Restore& restore, bool kill_vm) {
  SessionOptions options;
  options.socket_path = socket_of(restore);
  options.memory_file = restore.path;
  options.kill_vm = kill_vm;
  return options;
}

reap::UniqueFd connect_guest(const Restore& restore) {
  reap::UniqueFd connection = connect_to(socket_of(restore));
  CHECK(send_handshake(connection.get(), restore.guest, restore.page_size()));
  return connection;
}

EngineRun::EngineRun(OnEvent on_event) {
  reap::Failure failure;
  engine_ = reap::Engine::create(
      [this, on_event = std::move(on_event)](reap::Event&& event) {
        if (on_event) on_event(event);
        std::lock_guard<std::mutex> lock(mutex_);
        events_.push_back(std::move(event));
        changed_.notify_all();
      },
      &failure);
  CHECK(!failure);
  threads_ = engine_->threads();
}

EngineRun::Opened EngineRun::open(const SessionOptions& options) {
  Opened opened;
  reap::SessionOptions all;
  all.socket_path = options.socket_path;
  CHECK_EQ(all.memory_file.open(options.memory_file), 0);
  all.record = options.record;
  all.kill_vm = options.kill_vm;
  all.peer_uid = options.peer_uid;
  all.vmm = options.vmm;
  all.connect_timeout = options.connect_timeout;
  all.read_timeout = options.read_timeout;
  all.plan = options.plan;
  all.proven = options.proven;
  opened.id = engine_->open(std::move(all), opened.measured, &opened.failure);
  CHECK_EQ(opened.id == 0, static_cast<bool>(opened.failure));
  return opened;
}

reap::Event EngineRun::wait(reap::Event::Kind kind, uint64_t session) {
  std::unique_lock<std::mutex> lock(mutex_);
  for (;;) {
    const auto found = std::find_if(events_.begin(), events_.end(), [&](const reap::Event& event) {
      return event.session == session && event.kind == kind;
    });
    if (found != events_.end()) {
      reap::Event event = std::move(*found);
      events_.erase(found);
      return event;
    }
    changed_.wait(lock);
  }
}

bool EngineRun::close(uint64_t session, bool kill_vm) {
  const std::shared_ptr<reap::Session> found = engine_->find(session);
  if (found) found->close(kill_vm);
  return found != nullptr;
}

}  // namespace fixture
