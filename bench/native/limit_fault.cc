// Wait of a guest for one page: a process touches pages one by one, and a minimal handler in
// another process serves them from resident memory.
#include <sys/prctl.h>
#include <sys/wait.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdlib>

#include "files.h"
#include "options.h"
#include "pager.h"
#include "report.h"
#include "touch.h"

namespace reap::bench {

namespace {

// A folder for the socket, removed with the process.
class Folder {
 public:
  Folder() {
    if (!::mkdtemp(path_)) fail("make a folder in /tmp", errno);
  }
  Folder(const Folder&) = delete;
  ~Folder() { ::rmdir(path_); }
  std::string socket() const { return std::string(path_) + "/uffd.sock"; }

 private:
  char path_[32] = "/tmp/reap-bench-XXXXXX";
};

// Runs in the child.
[[noreturn]] void touch_pages(const std::string& socket, uint64_t pages, uint64_t* waited_ns) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (const guest::Error error = touch_each(socket, pages * kPageBytes, pages, waited_ns)) {
    // The parent waits for a connection that will not come.
    ::kill(::getppid(), SIGTERM);
    fail(error.message);
  }
  ::_exit(0);
}

// Wait per page, measured by the touching process; empty when interrupted.
std::vector<uint64_t> measure(const Mapping& source, bool spinning) {
  const uint64_t pages = source.size() / kPageBytes;
  void* data = ::mmap(nullptr, pages * sizeof(uint64_t), PROT_READ | PROT_WRITE,
                      MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
  if (data == MAP_FAILED) fail("map memory for the results", errno);
  const Mapping shared = Mapping::adopt(data, pages * sizeof(uint64_t));
  auto* waited_ns = static_cast<uint64_t*>(data);

  const Folder folder;
  Pager pager(folder.socket(), source.data(), source.size());
  const pid_t child = ::fork();
  if (child < 0) fail("fork", errno);
  if (child == 0) touch_pages(folder.socket(), pages, waited_ns);
  if (!pager.connect()) return {};
  const std::string reason = spinning ? pager.serve_spinning() : pager.serve();
  if (reason != "vm-exited") return {};
  int status = 0;
  ::waitpid(child, &status, 0);
  if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) fail("the touching process failed");
  if (pager.counters().installed != pages) fail("not every page was served once");
  return {waited_ns, waited_ns + pages};
}

int run(const Options& options) {
  const uint64_t pages = options.number("--pages");
  const Mapping source = Mapping::buffer(pages * kPageBytes);
  if (!source) fail("allocate memory", ENOMEM);
  std::fill_n(source.data(), source.size(), 1);

  struct Arm {
    const char* name;
    bool spinning;
    std::vector<uint64_t> p50, p99;  // of each repetition
  };
  Arm arms[] = {{"sleeping", false, {}, {}}, {"spinning", true, {}, {}}};
  for (uint64_t round = options.number("--repetitions"); round > 0; round--) {
    for (Arm& arm : arms) {
      std::vector<uint64_t> waited = measure(source, arm.spinning);
      if (waited.empty()) return 1;
      arm.p50.push_back(quantile(waited, 0.5));
      arm.p99.push_back(quantile(waited, 0.99));
    }
  }

  Json line;
  line.text("limit", "fault")
      .number("pages", pages)
      .number("repetitions", options.number("--repetitions"));
  for (const Arm& arm : arms) {
    line.json(arm.name, Json()
                            .json("p50", to_json(summarize(arm.p50)).str())
                            .json("p99", to_json(summarize(arm.p99)).str())
                            .str());
  }
  print(line);
  return 0;
}

}  // namespace

const Command kLimitFault{
    "limit-fault",
    "times served faults as a touching process sees them; the handler sleeps between, or spins",
    {{"--pages", "N", "2000", "touched one by one, in ascending order"},
     {"--repetitions", "N", "5", "of each variant, interleaved, a new process each"}},
    run};

}  // namespace reap::bench
