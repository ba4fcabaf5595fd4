#include "kvm_command.h"

#include <getopt.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <ctime>
#include <functional>
#include <iostream>
#include <map>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "answer.h"
#include "command.h"
#include "kvm_memory.h"
#include "kvm_replay.h"
#include "kvm_trace.h"
#include "thread_replay.h"

namespace reap::guest {

#if defined(__x86_64__)

namespace {

// Distribution of the entries over the vCPUs: round robin, in one chunk per vCPU, or all to each.
enum class Deal { kTurns, kChunks, kAll };

struct Options {
  std::string memory_file;
  std::string trace_file;
  std::string socket_path;  // empty: the memory file is mapped
  uint64_t vcpus = 1;
  Deal deal = Deal::kTurns;
  uint64_t spins = 0;
  uint64_t page_size = 4096;
  std::vector<std::string> pauses;
  bool verify = false;
  bool user_mode_only = false;
  bool threads = false;
  bool probe = false;
};

constexpr option kOptions[] = {
    {"memory", required_argument, nullptr, 0},
    {"trace", required_argument, nullptr, 0},
    {"socket", required_argument, nullptr, 0},
    {"vcpus", required_argument, nullptr, 0},
    {"deal", required_argument, nullptr, 0},
    {"spins", required_argument, nullptr, 0},
    {"page-size", required_argument, nullptr, 0},
    {"pause", required_argument, nullptr, 0},
    {"verify", no_argument, nullptr, 0},
    {"user-mode-only", no_argument, nullptr, 0},
    {"threads", no_argument, nullptr, 0},
    {"probe", no_argument, nullptr, 0},
    {nullptr, 0, nullptr, 0},
};

const std::map<std::string, Deal> kDeals = {
    {"turns", Deal::kTurns}, {"chunks", Deal::kChunks}, {"all", Deal::kAll}};

constexpr uint64_t kMaxVcpus = 64;

bool parse_options(int argc, char** argv, Options* options) {
  std::map<std::string, std::string> given;
  int index = 0;
  for (int found; (found = ::getopt_long(argc, argv, "", kOptions, &index)) != -1;) {
    if (found != 0) return false;
    given[kOptions[index].name] = optarg == nullptr ? "" : optarg;
  }
  const auto number = [&given](const char* name, uint64_t* value) {
    return given.count(name) == 0 || parse_number(given[name], value);
  };
  options->memory_file = given["memory"];
  options->trace_file = given["trace"];
  options->socket_path = given["socket"];
  options->pauses = split(given["pause"], ',');
  options->verify = given.count("verify") > 0;
  options->user_mode_only = given.count("user-mode-only") > 0;
  options->threads = given.count("threads") > 0;
  options->probe = given.count("probe") > 0;
  if (given.count("deal") > 0) {
    const auto named = kDeals.find(given["deal"]);
    if (named == kDeals.end()) return false;
    options->deal = named->second;
  }
  if (optind != argc || !number("vcpus", &options->vcpus) || !number("spins", &options->spins) ||
      !number("page-size", &options->page_size)) {
    return false;
  }
  if (options->probe) return true;
  return !options->memory_file.empty() && !options->trace_file.empty() && options->vcpus > 0 &&
         options->vcpus <= kMaxVcpus;
}

int64_t now_us() {
  timespec now;
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1000000ll + now.tv_nsec / 1000;
}

void print(const Answer& answer) {
  std::puts(answer.line().c_str());
  std::fflush(stdout);
}

// Exits at once: a vCPU's thread may wait for a page that never comes.
[[noreturn]] void fail(const Error& error) {
  print(error);
  ::_exit(1);
}

Answer event(const char* name, int64_t us) { return Answer().text("event", name).number("us", us); }

// Reports an event. If the caller asked for a pause after it, waits for a line on stdin and returns
// it.
std::string report(const Options& options, const char* name, const Answer& answer) {
  print(answer);
  const auto& pauses = options.pauses;
  std::string line;
  if (std::find(pauses.begin(), pauses.end(), name) != pauses.end()) std::getline(std::cin, line);
  return line;
}

void report(const Options& options, const char* name) {
  report(options, name, event(name, now_us()));
}

std::vector<ReplayShare> deal(Deal deal, uint64_t entries, uint64_t vcpus) {
  std::vector<ReplayShare> shares;
  for (uint64_t i = 0; i < vcpus; i++) {
    switch (deal) {
      case Deal::kTurns:
        shares.push_back({i, (entries + vcpus - 1 - i) / vcpus, vcpus});
        break;
      case Deal::kChunks:
        shares.push_back({entries * i / vcpus, 0, 1});
        shares.back().count = entries * (i + 1) / vcpus - shares.back().first;
        break;
      case Deal::kAll:
        shares.push_back({0, entries, 1});
        break;
    }
  }
  return shares;
}

Error restore(const Options& options, const KvmTrace& trace, KvmMemory* memory) {
  const bool from_file = options.socket_path.empty();
  Error error = from_file ? KvmMemory::map_file(options.memory_file, trace.memory_bytes, memory)
                          : KvmMemory::map_userfault(trace.memory_bytes, options.page_size,
                                                     options.user_mode_only, memory);
  if (error) return error;
  report(options, "mapped");
  if (from_file) return {};
  error = memory->connect(options.socket_path);
  if (!error) report(options, "connected");
  return error;
}

struct Vcpu {
  ReplayResult result;
  int64_t done_us = 0;
};

// Runs one vCPU per share, on the calling thread.
using RunVcpu = std::function<Error(size_t vcpu, ReplayResult* result)>;

std::vector<Vcpu> run_vcpus(const RunVcpu& run, const KvmMemory& memory, size_t count) {
  std::vector<Vcpu> vcpus(count);
  std::vector<std::thread> threads;
  for (size_t i = 0; i < count; i++) {
    threads.emplace_back([&run, &memory, &vcpus, i] {
      Error error = run(i, &vcpus[i].result);
      if (error.number == -EFAULT && memory.user_mode_only()) {
        error.message +=
            "; KVM's faults happen in the kernel, this userfaultfd has those of user mode";
      }
      if (error) fail(error);
      vcpus[i].done_us = now_us();
    });
  }
  for (std::thread& thread : threads) thread.join();
  return vcpus;
}

Error report_done(const Options& options, const KvmTrace& trace, const std::vector<Vcpu>& vcpus) {
  int64_t done_us = 0;
  int64_t replayed = 0;
  int64_t wrong = 0;
  Error error;
  for (const Vcpu& vcpu : vcpus) {
    done_us = std::max(done_us, vcpu.done_us);
    replayed += static_cast<int64_t>(vcpu.result.replayed);
    wrong += static_cast<int64_t>(vcpu.result.wrong);
    if (vcpu.result.wrong == 0 || error) continue;
    const TraceEntry& entry = trace.entries[vcpu.result.first_wrong];
    error.message = "at 0x" + hex(entry.offset(), 1) + " (entry " +
                    std::to_string(vcpu.result.first_wrong) + ") the guest found 0x" +
                    hex(vcpu.result.found, 16) + " instead of 0x" + hex(entry.word, 16);
  }
  report(options, "done",
         event("done", done_us).number("entries", replayed).number("wrong", wrong));
  return error;
}

Error verify(const Options& options, const KvmTrace& trace, const KvmMemory& memory) {
  KvmMemory::Difference difference;
  if (Error error = memory.compare(options.memory_file, trace, &difference)) return error;
  report(options, "verified",
         event("verified", now_us())
             .number("pages", static_cast<int64_t>(difference.pages))
             .number("wrong", static_cast<int64_t>(difference.wrong)));
  if (difference.wrong == 0) return {};
  return {"page " + std::to_string(difference.first_wrong) + " is not what it must be"};
}

Error replay_trace(Options options) {
  // Everything that is not part of a restore is done before the caller's clock starts.
  KvmTrace trace;
  if (Error error = KvmTrace::read(options.trace_file, &trace)) return error;
  KvmReplay replay;
  if (Error error = replay.prepare(trace, options.spins)) return error;
  const std::string order =
      report(options, "ready", event("ready", now_us()).number("pid", ::getpid()));
  // A VMM learns its backend from the restore request.
  constexpr char kSocket[] = "socket ";
  if (order == "file") options.socket_path.clear();
  if (order.rfind(kSocket, 0) == 0) options.socket_path = order.substr(sizeof kSocket - 1);

  KvmMemory memory;
  if (Error error = restore(options, trace, &memory)) return error;
  const auto shares = deal(options.deal, trace.entries.size(), options.vcpus);
  const KvmReplay::GiveBack give_back = [&memory](uint64_t offset, uint64_t bytes) {
    return memory.give_back(offset, bytes);
  };
  RunVcpu run = [&](size_t vcpu, ReplayResult* result) {
    return replay.run(vcpu, give_back, result);
  };
  if (options.threads) {
    run = [&](size_t vcpu, ReplayResult* result) {
      return replay_on_thread(memory.data(), trace, shares[vcpu], options.spins, give_back, result);
    };
  } else if (Error error = replay.create(memory.data(), shares)) {
    return error;
  }
  report(options, "running");
  const std::vector<Vcpu> vcpus = run_vcpus(run, memory, shares.size());
  if (Error error = report_done(options, trace, vcpus)) return error;
  return options.verify ? verify(options, trace, memory) : Error();
}

// Checks that KVM runs our code here: one word is read and one is written.
Error probe() {
  const Mapping memory = Mapping::anonymous(2 << 20);
  if (!memory) return system_error("map memory", errno);
  auto* words = reinterpret_cast<uint64_t*>(memory.data());
  words[0] = words[1] = 0x5eed;
  const KvmTrace trace{memory.size(), {{0, 0x5eed}, {8 | TraceEntry::kWrite, 0x5eed}}};
  KvmReplay replay;
  ReplayResult result;
  if (Error error = replay.prepare(trace, 0)) return error;
  if (Error error = replay.create(memory.data(), {{0, 2, 1}})) return error;
  if (Error error = replay.run(0, nullptr, &result)) return error;
  if (result.wrong == 0 && words[1] == ~uint64_t{0x5eed}) return {};
  return {"KVM ran the guest, and its memory is wrong"};
}

}  // namespace

int run_kvm(int argc, char** argv) {
  Options options;
  if (!parse_options(argc, argv, &options)) {
    std::fputs(kKvmUsage, stderr);
    return 2;
  }
  // Exits with its parent, however that ends.
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  ::signal(SIGPIPE, SIG_IGN);
  const Error error = options.probe ? probe() : replay_trace(options);
  if (error) fail(error);
  if (options.probe) print(Answer());
  return 0;
}

#else

int run_kvm(int, char**) {
  std::puts(Answer(Error{"the KVM guest is written for x86-64", -ENOTSUP}).line().c_str());
  return 1;
}

#endif

}  // namespace reap::guest
