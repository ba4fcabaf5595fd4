// REAP as published (Ustiugov et al., ASPLOS'21, section 5.2, and its first implementation in
// vHive): the whole working-set file is read past the page cache before the VMM is asked to load;
// its pages are installed in ascending order, one call per contiguous run, before the guest runs;
// missing pages are then served one at a time. One thread does everything.
//
// Differences from the original are in its favour: runs are computed before the restore begins, a
// fault on a present page is woken, and a removed page reads as zeros.
#include <fcntl.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "files.h"
#include "options.h"
#include "pager.h"
#include "report.h"
#include "uffd/uffd.h"

namespace reap::bench {

namespace {

struct Installed {
  uint64_t pages = 0;
  uint64_t present = 0;  // or removed: not installed by this program
  uint64_t calls = 0;
};

// Like uffd::copy(), without waking: a waiting thread is woken when its fault is read.
uffd::Result copy_without_wake(int uffd, uint64_t address, const void* source, uint64_t bytes) {
  uffdio_copy request{};
  request.dst = address;
  request.src = reinterpret_cast<uintptr_t>(source);
  request.len = bytes;
  request.mode = UFFDIO_COPY_MODE_DONTWAKE;
  const int error = ::ioctl(uffd, UFFDIO_COPY, &request) == 0 ? 0 : errno;
  return uffd::classify(error, request.copy, bytes);
}

// Returns false if serving has ended.
bool install(Pager& pager, const Extent& extent, const uint8_t* source, Installed* total) {
  uint64_t most = extent.bytes;  // maximum of one call
  for (uint64_t done = 0; done < extent.bytes;) {
    const auto range = pager.memory().host_range(extent.offset + done);
    const uint64_t bytes = std::min({most, extent.bytes - done, range.length});
    const auto result = copy_without_wake(pager.uffd(), range.address, source + done, bytes);
    total->calls++;
    switch (result.outcome) {
      case uffd::Outcome::installed:
      case uffd::Outcome::partial:
        total->pages += result.bytes / kPageBytes;
        done += result.bytes;
        break;
      case uffd::Outcome::unregistered:  // in part: the range includes removed pages
        most = kPageBytes;
        if (bytes > kPageBytes) break;
        [[fallthrough]];
      case uffd::Outcome::present:
        total->present++;
        done += kPageBytes;
        break;
      case uffd::Outcome::deferred:  // a REMOVE is unread
        if (!pager.step(1)) return false;
        break;
      case uffd::Outcome::gone:
        return false;
      default:
        pager.fail_vm("cannot install pages: " + std::string(std::strerror(-result.err)));
    }
  }
  return true;
}

Installed install_all(Pager& pager, const std::vector<Extent>& extents, const uint8_t* source) {
  Installed total;
  for (const Extent& extent : extents) {
    if (!install(pager, extent, source, &total)) break;
    source += extent.bytes;
  }
  return total;
}

void print_end(const Pager& pager, const char* reason) {
  const Pager::Counters& counters = pager.counters();
  print(event("ended", now_ns())
            .text("reason", reason)
            .number("faults", counters.faults)
            .number("installed", counters.installed)
            .number("present", counters.present)
            .number("removed", counters.removed));
}

// Several handlers can begin at the same moment only if all their processes run already.
void wait_for_input() {
  char byte = 0;
  ssize_t got = 0;
  do {
    got = ::read(STDIN_FILENO, &byte, 1);
  } while (got < 0 && errno == EINTR);
  if (got < 0) fail("read the standard input", errno);
  if (got == 0) fail("the standard input ended before its first byte, with which to begin");
}

int run_reap(const Options& options) {
  const std::string& path = options.text("--ws");
  const Mapping memory = map_file(options.text("--memory"));
  const auto extents = read_page_list(options.text("--pages"), memory.size());
  const std::string& fetch = options.text("--fetch");
  if (fetch != "direct" && fetch != "cached") usage_error("--fetch is direct or cached");
  const std::string& begin = options.text("--begin");
  if (begin != "at-once" && begin != "on-input") usage_error("--begin is at-once or on-input");
  bool direct = false;
  const UniqueFd file = fetch == "direct" ? open_direct(path, &direct) : open_file(path);
  const uint64_t bytes = total_bytes(extents);
  if (file_bytes(file.get(), path) != bytes) fail(path + " does not have the pages of the list");

  Pager pager(options.text("--socket"), memory.data(), memory.size());
  print(event("listening", now_ns()));
  if (begin == "on-input") wait_for_input();

  const uint64_t began = now_ns();
  // Small pages, like the published program's memory if the kernel uses huge pages only with
  // madvise(2): O_DIRECT reads into small pages take longer.
  const Mapping pages = Mapping::anonymous(bytes);
  if (!pages) fail("allocate " + std::to_string(bytes) + " bytes", ENOMEM);
  read_fully(file.get(), path, 0, pages.data(), bytes);
  const uint64_t fetched = now_ns();
  print(event("fetched", fetched)
            .number("bytes", bytes)
            .boolean("direct", direct)
            .micros("tookUs", fetched - began));

  if (!pager.connect()) {
    print_end(pager, "terminated");
    return 0;
  }
  const uint64_t connected = now_ns();
  if (pager.memory().page_size() != kPageBytes) pager.fail_vm("REAP is for pages of 4 KiB");
  const Installed total = install_all(pager, extents, pages.data());
  const uint64_t installed = now_ns();
  print(event("connected", connected));
  print(event("installed", installed)
            .number("pages", total.pages)
            .number("present", total.present)
            .number("extents", extents.size())
            .number("calls", total.calls)
            .micros("tookUs", installed - connected));
  print_end(pager, pager.serve());
  return 0;
}

int run_on_demand(const Options& options) {
  const Mapping memory = map_file(options.text("--memory"));
  Pager pager(options.text("--socket"), memory.data(), memory.size());
  print(event("listening", now_ns()));
  const char* reason = "terminated";
  if (pager.connect()) {
    print(event("connected", now_ns()));
    reason = pager.serve();
  }
  print_end(pager, reason);
  return 0;
}

int run_pack(const Options& options) {
  const Mapping memory = map_file(options.text("--memory"));
  const auto extents = read_page_list(options.text("--pages"), memory.size());
  const std::string& path = options.text("--output");
  const UniqueFd file(::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
  if (!file) fail("write " + path, errno);
  for (const Extent& extent : extents) {
    for (uint64_t done = 0; done < extent.bytes;) {
      const ssize_t written =
          ::write(file.get(), memory.data() + extent.offset + done, extent.bytes - done);
      if (written < 0 && errno == EINTR) continue;
      if (written < 0) fail("write " + path, errno);
      done += static_cast<uint64_t>(written);
    }
  }
  if (::fsync(file.get()) != 0) fail("write " + path, errno);
  print(Json()
            .number("pages", total_bytes(extents) / kPageBytes)
            .number("extents", extents.size())
            .number("bytes", total_bytes(extents)));
  return 0;
}

constexpr Option kSocket{"--socket", "PATH", nullptr, "where the VMM will connect"};
constexpr Option kMemory{"--memory", "FILE", nullptr, "the snapshot's memory file"};
constexpr Option kPages{"--pages", "FILE", nullptr, "the recorded pages, in any order"};

}  // namespace

const Command kReap{"reap",
                    "restores as REAP does; ask the VMM to load after the event 'fetched'",
                    {kSocket,
                     kMemory,
                     kPages,
                     {"--ws", "FILE", nullptr, "the same pages, as reap-pack wrote them"},
                     {"--fetch", "direct|cached", "direct",
                      "past the page cache as published, or through it as later versions do"},
                     {"--begin", "at-once|on-input", "at-once",
                      "when to read the set: on-input is with the first byte on stdin"}},
                    run_reap};

const Command kReapPack{"reap-pack",
                        "writes REAP's working-set file: the pages in ascending order, no header",
                        {kMemory, kPages, {"--output", "FILE", nullptr, "the file to write"}},
                        run_pack};

const Command kOnDemand{"on-demand",
                        "serves every fault with one page from a mapping of the memory file",
                        {kSocket, kMemory},
                        run_on_demand};

}  // namespace reap::bench
