// Commands for the embedded guest.
#include <cerrno>
#include <chrono>
#include <cinttypes>
#include <cstdio>
#include <fstream>

#include "command.h"
#include "hash.h"
#include "vmm.h"
#include "workload.h"

namespace reap::guest {

namespace {

using Clock = std::chrono::steady_clock;

int64_t us_since(Clock::time_point start) {
  return std::chrono::duration_cast<std::chrono::microseconds>(Clock::now() - start).count();
}

Answer restore_file(Vmm& vmm, const Call& call) { return vmm.arena.restore_file(call.text(0)); }

Answer restore_uffd(Vmm& vmm, const Call& call) {
  return vmm.arena.restore_uffd(call.text(0), call.number(1));
}

Answer request(Vmm& vmm, const std::string& input) {
  const auto start = Clock::now();
  if (Error error = vmm.arena.check()) return error;
  const Reply reply = handle_request(input);
  const int64_t us = us_since(start);
  char response[128];
  std::snprintf(response, sizeof response,
                "%016" PRIx64 " documents=%" PRIu64 " bytes=%" PRIu64 " updated=%" PRIu64,
                reply.digest, reply.documents, reply.bytes, reply.updated);
  return Answer().text("response", response).number("us", us);
}

Answer request(Vmm& vmm, const Call& call) { return request(vmm, call.text(0)); }

Answer invoke(Vmm& vmm, Error (*restore)(Arena&, const Call&), const Call& call) {
  const auto start = Clock::now();
  if (Error error = restore(vmm.arena, call)) return error;
  const int64_t restore_us = us_since(start);
  return request(vmm, call.text(call.count() - 1)).number("restoreUs", restore_us);
}

Answer invoke_file(Vmm& vmm, const Call& call) {
  return invoke(
      vmm, [](Arena& arena, const Call& call) { return arena.restore_file(call.text(0)); }, call);
}

Answer invoke_uffd(Vmm& vmm, const Call& call) {
  return invoke(
      vmm,
      [](Arena& arena, const Call& call) {
        return arena.restore_uffd(call.text(0), call.number(1));
      },
      call);
}

Answer digest_all(Vmm& vmm, const Call&) {
  if (Error error = vmm.arena.check()) return error;
  Digest digest;
  digest.add(vmm.arena.data(), vmm.arena.size() / sizeof(uint64_t));
  return Answer()
      .text("digest", hex(digest.value(), 16))
      .number("pages", static_cast<int64_t>(vmm.arena.size() / kPageBytes));
}

// The file holds page numbers as little-endian 32-bit words.
Answer digest_pages(Vmm& vmm, const Call& call) {
  if (Error error = vmm.arena.check()) return error;
  std::ifstream file(call.text(0), std::ios::binary);
  if (!file) return system_error("open " + call.text(0), errno);
  Digest digest;
  int64_t pages = 0;
  uint8_t bytes[4];
  while (file.read(reinterpret_cast<char*>(bytes), sizeof bytes)) {
    const uint64_t page =
        bytes[0] | bytes[1] << 8 | bytes[2] << 16 | static_cast<uint64_t>(bytes[3]) << 24;
    if (page >= vmm.arena.size() / kPageBytes) {
      return Error{"page " + std::to_string(page) + " is not in the guest's memory"};
    }
    digest.add(vmm.arena.data() + page * kPageBytes, kPageBytes / sizeof(uint64_t));
    pages++;
  }
  return Answer().text("digest", hex(digest.value(), 16)).number("pages", pages);
}

}  // namespace

const std::vector<Command> kGuestCommands = {
    {"restore-file", "FILE", restore_file},
    {"restore-uffd", "SOCKET MEMORY_BYTES", restore_uffd},
    {"request", "INPUT", request},
    {"invoke file", "FILE INPUT", invoke_file},
    {"invoke uffd", "SOCKET MEMORY_BYTES INPUT", invoke_uffd},
    {"digest-pages", "FILE", digest_pages},
    {"digest-all", "", digest_all},
};

}  // namespace reap::guest
