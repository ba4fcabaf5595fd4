// Runs the tests in a child process, so that a test that hangs or crashes is named, and changes to
// the machine are undone in any case.
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "base/posix.h"
#include "check.h"
#include "hanging_folder.h"

namespace {

constexpr int kTestLimitMs = 120000;
constexpr long long kWorthATimeMs = 500;
constexpr long kHugePages = 48;
constexpr char kHugePagesPath[] = "/proc/sys/vm/nr_hugepages";

bool selected(const char* name, int argc, char** argv) {
  for (int i = 1; i < argc; ++i) {
    if (std::strstr(name, argv[i])) return true;
  }
  return argc < 2;
}

long huge_pages() {
  long pages = -1;
  if (std::FILE* file = std::fopen(kHugePagesPath, "r")) {
    if (std::fscanf(file, "%ld", &pages) != 1) pages = -1;
    std::fclose(file);
  }
  return pages;
}

void set_huge_pages(long pages) {
  if (std::FILE* file = std::fopen(kHugePagesPath, "w")) {
    std::fprintf(file, "%ld\n", pages < 0 ? 0 : pages);
    std::fclose(file);
  }
}

// Adds some huge pages to the pool for the tests, if this process may; without them tests skip. The
// pool is the machine's, and tests empty it, so concurrent runs take turns
// (test/uffd/huge-pages.test.ts takes the same lock).
class HugePageLoan {
 public:
  HugePageLoan() : pool_(::open(kHugePagesPath, O_RDONLY | O_CLOEXEC)) {
    while (pool_ && ::flock(pool_.get(), LOCK_EX) != 0 && errno == EINTR) {
    }
    const long before = huge_pages();
    if (before < 0) return;
    set_huge_pages(before + kHugePages);
    added_ = huge_pages() - before;
  }
  ~HugePageLoan() {
    // Pages that others added meanwhile stay.
    if (added_ > 0) set_huge_pages(huge_pages() - added_);
  }

 private:
  const reap::UniqueFd pool_;
  long added_ = 0;
};

int run_tests(int progress, int argc, char** argv) {
  int passed = 0;
  int failed = 0;
  int skipped = 0;
  for (const check::Test& test : check::tests()) {
    if (!selected(test.name, argc, argv)) continue;
    const std::string line = std::string(test.name) + "\n";
    if (::write(progress, line.data(), line.size()) < 0) return 1;
    check::failures = 0;
    check::skipped.clear();
    check::about.clear();
    const auto began = std::chrono::steady_clock::now();
    test.run();
    const long long took_ms = std::chrono::duration_cast<std::chrono::milliseconds>(
                                  std::chrono::steady_clock::now() - began)
                                  .count();
    if (check::failures > 0) {
      ++failed;
      std::printf("FAIL %s\n", test.name);
    } else if (!check::skipped.empty()) {
      ++skipped;
      std::printf("SKIP %s: %s\n", test.name, check::skipped.c_str());
    } else {
      ++passed;
      std::printf("ok   %s", test.name);
      std::printf(took_ms < kWorthATimeMs ? "\n" : " (%lld ms)\n", took_ms);
    }
    std::fflush(stdout);
  }
  std::printf("%d passed, %d failed, %d skipped\n", passed, failed, skipped);
  std::fflush(stdout);
  // A filter that selects nothing is an error.
  return failed == 0 && passed + skipped > 0 ? 0 : 1;
}

// Waits for the tests; returns whether each of them began in time. `running` is the last one that
// did.
bool watch(int progress, std::string* running) {
  std::string line;
  for (;;) {
    pollfd readable{progress, POLLIN, 0};
    if (::poll(&readable, 1, kTestLimitMs) <= 0) return false;
    char bytes[512];
    const ssize_t got = ::read(progress, bytes, sizeof bytes);
    if (got <= 0) return got == 0;
    line.append(bytes, static_cast<size_t>(got));
    for (size_t end; (end = line.find('\n')) != std::string::npos; line.erase(0, end + 1)) {
      *running = line.substr(0, end);
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  const HugePageLoan loan;
  int progress[2];
  if (::pipe(progress) != 0) return 1;
  const pid_t tests = ::fork();
  if (tests == 0) {
    struct sigaction on_kill {};
    on_kill.sa_handler = [](int) {
      fixture::HangingFolder::abort_all();
      ::_exit(1);
    };
    ::sigaction(SIGTERM, &on_kill, nullptr);
    ::prctl(PR_SET_PDEATHSIG, SIGTERM);
    ::close(progress[0]);
    std::exit(run_tests(progress[1], argc, argv));
  }
  // Interrupts poll() above.
  struct sigaction on_end {};
  on_end.sa_handler = [](int) {};
  ::sigaction(SIGTERM, &on_end, nullptr);
  ::sigaction(SIGINT, &on_end, nullptr);
  ::sigaction(SIGALRM, &on_end, nullptr);
  ::close(progress[1]);

  std::string running;
  const bool in_time = watch(progress[0], &running);
  if (!in_time) {
    std::printf("HANG %s\n", running.c_str());
    ::kill(tests, SIGTERM);
    ::alarm(10);  // interrupts waitpid() if the process does not end
  }
  int status = 0;
  while (::waitpid(tests, &status, 0) < 0 && errno == EINTR) {
    if (!in_time) ::kill(tests, SIGKILL);
  }
  if (in_time && WIFEXITED(status)) return WEXITSTATUS(status);
  if (in_time) std::printf("DIED %s: signal %d\n", running.c_str(), WTERMSIG(status));
  return 1;
}
