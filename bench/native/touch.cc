// Wait of a guest for one page, with any handler.
#include "touch.h"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <thread>
#include <vector>

#include "files.h"
#include "guest/handshake_sender.h"
#include "guest/userfault.h"
#include "options.h"
#include "report.h"

namespace reap::bench {

guest::Error touch_each(const std::string& socket, uint64_t memory_bytes, uint64_t pages,
                        uint64_t* waited_ns, uint64_t pause_us) {
  const Mapping memory = Mapping::anonymous(memory_bytes);
  if (!memory) return guest::system_error("map guest memory", ENOMEM);
  guest::Userfault userfault;
  if (guest::Error error = guest::Userfault::open(&userfault)) return error;
  if (guest::Error error = userfault.register_missing(memory.data(), memory.size())) return error;
  guest::HandshakeReport report;
  const auto base = reinterpret_cast<uintptr_t>(memory.data());
  if (guest::Error error = guest::send_handshake(socket, {{base, memory.size(), 0, kPageBytes}},
                                                 userfault.fd.get(), {}, &report)) {
    return error;
  }
  for (uint64_t page = 0; page < pages; page++) {
    const uint64_t began = now_ns();
    const volatile uint8_t* byte = memory.data() + page * kPageBytes;
    static_cast<void>(*byte);
    waited_ns[page] = now_ns() - began;
    if (pause_us > 0) std::this_thread::sleep_for(std::chrono::microseconds(pause_us));
  }
  return {};
}

namespace {

int run(const Options& options) {
  const uint64_t bytes = map_file(options.text("--memory")).size();
  const uint64_t pages = std::min(options.number("--pages"), bytes / kPageBytes);
  std::vector<uint64_t> waited_ns(pages);
  if (const guest::Error error = touch_each(options.text("--socket"), bytes, pages,
                                            waited_ns.data(), options.number("--pause-us", 0))) {
    fail(error.message);
  }
  const uint64_t p50 = quantile(waited_ns, 0.5);
  print(Json()
            .number("pages", pages)
            .micros("p50Us", p50)
            .micros("p99Us", quantile(waited_ns, 0.99)));
  return 0;
}

}  // namespace

const Command kTouch{"touch",
                     "touches pages one by one, and says how long each took to be served",
                     {{"--socket", "PATH", nullptr, "of the fault handler"},
                      {"--memory", "FILE", nullptr, "the snapshot's memory file, for its size"},
                      {"--pages", "N", "2000", "touched one by one, in ascending order"},
                      {"--pause-us", "N", "0", "between two touches"}},
                     run};

}  // namespace reap::bench
