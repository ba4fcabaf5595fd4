// Commands for the fake VMM's own process.
#include <dirent.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <memory>
#include <thread>

#include "command.h"
#include "vmm.h"

namespace reap::guest {

namespace {

constexpr uint64_t kWaitMs = 5000;

Answer run_in_background(Vmm& vmm, const Call& call) {
  const std::string& name = call.text(0);
  if (!vmm.jobs.begin(name)) {
    return Error{"a command runs in the background as '" + name + "' already", -EEXIST};
  }
  std::thread([&vmm, name, line = call.text(1)] {
    vmm.jobs.finish(name, execute(vmm, line));
  }).detach();
  return {};
}

Answer wait(Vmm& vmm, const Call& call) {
  std::optional<Answer> answer;
  const uint64_t timeout_ms = call.count() > 1 ? call.number(1) : kWaitMs;
  if (Error error = vmm.jobs.wait(call.text(0), timeout_ms, &answer)) return error;
  return answer ? answer->boolean("done", true) : Answer().boolean("done", false);
}

Answer count_fds(Vmm&, const Call&) {
  const std::unique_ptr<DIR, int (*)(DIR*)> directory(::opendir("/proc/self/fd"), ::closedir);
  if (!directory) return system_error("open /proc/self/fd", errno);
  int64_t count = 0;
  while (const dirent* entry = ::readdir(directory.get())) {
    if (entry->d_name[0] != '.') count++;
  }
  return Answer().number("fds", count - 1);  // without the directory's own descriptor
}

// No answer: it could be mistaken for that of a command that still waits for a page.
Answer exit_now(Vmm&, const Call& call) { ::_exit(static_cast<int>(call.number(0))); }

Answer crash(Vmm&, const Call&) {
  ::kill(::getpid(), SIGKILL);
  return {};
}

}  // namespace

const std::vector<Command> kProcessCommands = {
    {"bg", "NAME COMMAND", run_in_background},
    {"wait", "NAME [TIMEOUT_MS]", wait},
    {"fds", "", count_fds},
    {"exit", "CODE", exit_now},
    {"crash", "", crash},
};

}  // namespace reap::guest
