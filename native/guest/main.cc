// reap-guest: the embedded guest of the demo, and the fake VMM of the tests.
#include <cstdio>
#include <map>
#include <string>

#include "arena.h"
#include "command.h"
#include "kvm_command.h"
#include "vmm.h"

namespace reap::guest {

namespace {

constexpr const char* kUsage =
    "usage: reap-guest build --snapshot FILE [--memory-size BYTES] [--seed N]\n"
    "       reap-guest vmm\n"
    "       reap-guest kvm …\n"
    "\n"
    "build  makes the snapshot of a small in-memory store: one sparse memory file\n"
    "vmm    answers commands on stdin, a line each, with a line of JSON on stdout;\n"
    "       \"reap-guest vmm --help\" lists them\n"
    "kvm    restores a VM whose vCPUs replay a trace, with a line of JSON for each step\n"
    "\n";

constexpr const char* kVmmUsage =
    "usage: reap-guest vmm\n"
    "\n"
    "A small VMM for testing a handler. It answers each line on stdin with a line of JSON on "
    "stdout,\n"
    "and ends with its input:\n"
    "\n"
    "  $ printf 'map 4096 1048576\\nhandshake vm.sock\\nread 7 3\\n' | reap-guest vmm\n"
    "\n"
    "Numbers are decimal, or hexadecimal after 0x. [] is optional, a|b one of these words, and "
    "...\n"
    "repeats. An option such as [gap=BYTES] is written gap=4096. The LIST of map has the sizes of "
    "the\n"
    "regions in bytes, 1048576,2097152; that of removed= pages and ranges, 3,8-15; that of "
    "written= the\n"
    "first byte of each page, 3:255,9:1. The commands:\n"
    "\n";

constexpr uint64_t kDefaultMemoryBytes = 256 << 20;

void print_usage(FILE* output) {
  std::fputs(kUsage, output);
  std::fputs(kKvmUsage, output);
}

int usage() {
  print_usage(stderr);
  return 2;
}

int help(const std::string& mode) {
  if (mode == "vmm") {
    std::fputs(kVmmUsage, stdout);
    std::fputs(list_commands().c_str(), stdout);
  } else {
    print_usage(stdout);
  }
  return 0;
}

int build(const std::map<std::string, std::string>& options) {
  std::string path;
  uint64_t memory_bytes = kDefaultMemoryBytes;
  uint64_t seed = 1;
  for (const auto& [name, value] : options) {
    if (name == "--snapshot") {
      path = value;
    } else if (!(name == "--memory-size" && parse_number(value, &memory_bytes)) &&
               !(name == "--seed" && parse_number(value, &seed))) {
      return usage();
    }
  }
  if (path.empty()) return usage();

  SnapshotReport report;
  Answer answer;
  if (Error error = build_snapshot(path, memory_bytes, seed, &report)) {
    answer = error;
  } else {
    answer.number("memoryBytes", static_cast<int64_t>(report.memory_bytes))
        .number("dataPages", static_cast<int64_t>(report.data_pages))
        .number("documents", static_cast<int64_t>(report.documents));
  }
  std::puts(answer.line().c_str());
  return answer.ok() ? 0 : 1;
}

int run(int argc, char** argv) {
  const std::string mode = argc > 1 ? argv[1] : "";
  if (argc > 1 && std::string(argv[argc - 1]) == "--help") return help(mode);
  if (mode == "vmm" && argc == 2) return run_vmm();
  if (mode == "kvm") return run_kvm(argc - 1, argv + 1);
  if (mode != "build" || argc % 2 != 0) return usage();
  std::map<std::string, std::string> options;
  for (int i = 2; i < argc; i += 2) options[argv[i]] = argv[i + 1];
  return build(options);
}

}  // namespace

}  // namespace reap::guest

int main(int argc, char** argv) { return reap::guest::run(argc, argv); }
