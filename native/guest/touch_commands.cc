// Commands of the fake VMM that touch its memory, and one that inspects it without a touch.
#include <fcntl.h>
#include <pthread.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <functional>
#include <thread>

#include "command.h"
#include "expectation.h"
#include "hash.h"
#include "vmm.h"

namespace reap::guest {

namespace {

constexpr size_t kWrongShown = 16;

Error check_threads(uint64_t count) {
  if (count >= 1 && count <= 256) return {};
  return {"THREADS must be 1 to 256, got " + std::to_string(count), -EINVAL};
}

Answer read(Vmm& vmm, const Call& call) {
  std::string digests, zero;
  for (size_t i = 0; i < call.count(); i++) {
    if (Error error = vmm.check_pages(call.number(i), 1)) return error;
    const uint8_t* page = vmm.memory.page(call.number(i));
    const std::string comma = i == 0 ? "" : ",";
    digests += comma + json_string(hex(page_digest(page, vmm.memory.page_size()), 8));
    zero += comma + (Expectation::is_zero(page, vmm.memory.page_size()) ? "true" : "false");
  }
  return Answer().json("digests", "[" + digests + "]").json("zero", "[" + zero + "]");
}

Answer write(Vmm& vmm, const Call& call) {
  if (Error error = vmm.check_pages(call.number(0), 1)) return error;
  if (call.number(1) > 255) return Error{"VALUE must be a byte", -EINVAL};
  __atomic_store_n(vmm.memory.page(call.number(0)), static_cast<uint8_t>(call.number(1)),
                   __ATOMIC_RELAXED);
  return {};
}

Answer race(Vmm& vmm, const Call& call) {
  if (Error error = vmm.check_pages(call.number(0), 1)) return error;
  if (Error error = check_threads(call.number(1))) return error;
  const uint8_t* page = vmm.memory.page(call.number(0));
  std::vector<uint32_t> seen(call.number(1));
  run_threads(seen.size(), [&](size_t i) { seen[i] = page_digest(page, vmm.memory.page_size()); });
  std::string digests;
  for (uint32_t digest : seen) {
    digests += (digests.empty() ? "" : ",") + json_string(hex(digest, 8));
  }
  return Answer().json("digests", "[" + digests + "]");
}

Answer report(std::vector<uint64_t> wrong, uint64_t pages) {
  const auto count = static_cast<int64_t>(wrong.size());
  std::sort(wrong.begin(), wrong.end());
  wrong.resize(std::min(wrong.size(), kWrongShown));
  return Answer()
      .numbers("wrong", wrong)
      .number("wrongCount", count)
      .number("pages", static_cast<int64_t>(pages));
}

Answer verify_range(Vmm& vmm, const Call& call, uint64_t first, uint64_t count) {
  if (Error error = vmm.check_pages(first, count)) return error;
  Expectation expected;
  if (Error error = Expectation::make(vmm.memory, call.text(0), call.text("removed", ""),
                                      call.text("written", ""), &expected)) {
    return error;
  }
  std::vector<uint64_t> wrong;
  for (uint64_t page = first; page < first + count; page++) {
    if (!expected.matches(page)) wrong.push_back(page);
  }
  return report(wrong, count);
}

Answer verify(Vmm& vmm, const Call& call) { return verify_range(vmm, call, 0, vmm.memory.pages()); }

Answer verify_pages(Vmm& vmm, const Call& call) {
  return verify_range(vmm, call, call.number(1), call.number(2));
}

Answer sweep(Vmm& vmm, const Call& call) {
  if (Error error = vmm.check_pages(0, 1)) return error;
  if (Error error = check_threads(call.number(0))) return error;
  Expectation expected;
  if (Error error = Expectation::make(vmm.memory, call.text(2), call.text("removed", ""),
                                      call.text("written", ""), &expected)) {
    return error;
  }
  const bool write = call.has("write");
  std::vector<std::vector<uint64_t>> wrong(call.number(0));
  run_threads(wrong.size(), [&](size_t i) {
    const Permutation order(vmm.memory.pages(), mix(call.number(1)) + i);
    for (uint64_t step = 0; step < vmm.memory.pages(); step++) {
      const uint64_t page = order[step];
      // A write fault that changes nothing, so that all threads can continue comparing.
      if (write) __atomic_fetch_or(vmm.memory.page(page), 0, __ATOMIC_RELAXED);
      if (!expected.matches(page)) wrong[i].push_back(page);
    }
  });
  std::vector<uint64_t> all;
  for (const auto& some : wrong) all.insert(all.end(), some.begin(), some.end());
  return report(all, vmm.memory.pages() * wrong.size());
}

// The page map has one 64-bit word for each 4 KiB: bit 63 present, bit 62 swapped out.
Answer present(Vmm& vmm, const Call& call) {
  const uint64_t first = call.number(0), count = call.number(1);
  if (Error error = vmm.check_pages(first, count)) return error;
  const UniqueFd map(::open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC));
  if (!map) return system_error("open /proc/self/pagemap", errno);
  std::string runs;
  uint64_t total = 0, run_start = 0, run_length = 0;
  const auto end_run = [&] {
    if (run_length == 0) return;
    runs += (runs.empty() ? "[" : ",[") + std::to_string(run_start) + "," +
            std::to_string(run_length) + "]";
    run_length = 0;
  };
  for (uint64_t page = first; page < first + count; page++) {
    const uintptr_t address = reinterpret_cast<uintptr_t>(vmm.memory.page(page));
    uint64_t entry = 0;
    if (::pread(map.get(), &entry, sizeof entry, static_cast<off_t>(address / 4096 * 8)) !=
        sizeof entry) {
      return system_error("read /proc/self/pagemap", errno);
    }
    if (entry >> 62 == 0) {
      end_run();
      continue;
    }
    if (run_length++ == 0) run_start = page;
    total++;
  }
  end_run();
  return Answer().number("count", static_cast<int64_t>(total)).json("runs", "[" + runs + "]");
}

}  // namespace

void run_threads(size_t count, const std::function<void(size_t)>& body) {
  pthread_barrier_t barrier;
  pthread_barrier_init(&barrier, nullptr, static_cast<unsigned>(count));
  std::vector<std::thread> threads;
  for (size_t i = 0; i < count; i++) {
    threads.emplace_back([&barrier, &body, i] {
      pthread_barrier_wait(&barrier);
      body(i);
    });
  }
  for (std::thread& thread : threads) thread.join();
  pthread_barrier_destroy(&barrier);
}

const std::vector<Command> kTouchCommands = {
    {"read", "PAGE...", read},
    {"write", "PAGE VALUE", write},
    {"race", "PAGE THREADS", race},
    {"sweep", "THREADS SEED FILE [removed=LIST] [written=LIST] [write=1]", sweep},
    {"verify", "FILE [removed=LIST] [written=LIST]", verify},
    {"verify-pages", "FILE FIRST COUNT [removed=LIST] [written=LIST]", verify_pages},
    {"present", "FIRST COUNT", present},
};

}  // namespace reap::guest
