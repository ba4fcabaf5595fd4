#include "vmm.h"

#include <sys/prctl.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdio>
#include <deque>
#include <iostream>
#include <thread>

#include "command.h"

namespace reap::guest {

namespace {

// Time that the previous command has to finish when the process ends.
constexpr std::chrono::seconds kLastCommandTime{5};

void print(const Answer& answer) {
  std::puts(answer.line().c_str());
  std::fflush(stdout);
}

// Runs lines in order, on a separate thread: a page that never comes blocks that thread, and the
// process can still be ended.
class Worker {
 public:
  explicit Worker(Vmm& vmm) {
    std::thread([this, &vmm] { run(vmm); }).detach();
  }

  void push(const std::string& line) {
    const std::lock_guard<std::mutex> lock(mutex_);
    lines_.push_back(line);
    changed_.notify_all();
  }

  void drain() {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait_until(lock, std::chrono::system_clock::now() + kLastCommandTime,
                        [this] { return lines_.empty(); });
  }

 private:
  [[noreturn]] void run(Vmm& vmm) {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      // Not wait(): gcc 12 binds it to a symbol that the libstdc++ of RHEL 9 does not have.
      while (lines_.empty()) {
        changed_.wait_until(lock, std::chrono::system_clock::now() + std::chrono::hours(1));
      }
      const std::string line = lines_.front();
      lock.unlock();
      print(execute(vmm, line));
      lock.lock();
      lines_.pop_front();
      changed_.notify_all();
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::string> lines_;  // the first one is running
};

bool ends_process(const std::string& line) {
  return line == "crash" || line.compare(0, 4, "exit") == 0;
}

}  // namespace

bool Jobs::begin(const std::string& name) {
  const std::lock_guard<std::mutex> lock(mutex_);
  return jobs_.emplace(name, std::nullopt).second;
}

void Jobs::finish(const std::string& name, const Answer& answer) {
  const std::lock_guard<std::mutex> lock(mutex_);
  jobs_[name] = answer;
  finished_.notify_all();
}

Error Jobs::wait(const std::string& name, uint64_t timeout_ms, std::optional<Answer>* answer) {
  std::unique_lock<std::mutex> lock(mutex_);
  const auto job = jobs_.find(name);
  if (job == jobs_.end()) return {"no command runs in the background as '" + name + "'", -EINVAL};
  finished_.wait_until(lock,
                       std::chrono::system_clock::now() + std::chrono::milliseconds(timeout_ms),
                       [&job] { return job->second.has_value(); });
  *answer = job->second;
  if (answer->has_value()) jobs_.erase(job);
  return {};
}

Error Vmm::check_pages(uint64_t first, uint64_t count) const {
  if (!memory) return {"no memory: map comes first"};
  if (first < memory.pages() && count <= memory.pages() - first) return {};
  return {"pages " + std::to_string(first) + " + " + std::to_string(count) + " are not all in " +
              std::to_string(memory.pages()),
          -EINVAL};
}

int run_vmm() {
  // Exits with its parent, however that ends.
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  ::signal(SIGPIPE, SIG_IGN);

  // Never destroyed: detached threads may use it until the process exits.
  Vmm& vmm = *new Vmm;
  Worker& worker = *new Worker(vmm);
  print(Answer().boolean("ready", true).number("pid", ::getpid()));
  std::string line;
  while (std::getline(std::cin, line)) {
    if (ends_process(line)) {
      worker.drain();
      print(execute(vmm, line));
    } else {
      worker.push(line);
    }
  }
  worker.drain();
  ::_exit(0);
}

}  // namespace reap::guest
