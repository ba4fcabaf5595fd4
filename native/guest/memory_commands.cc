// Commands that create, announce and change the fake VMM's memory without touching it.
#include <fcntl.h>
#include <sys/mman.h>

#include <algorithm>
#include <cerrno>

#include "command.h"
#include "vmm.h"

namespace reap::guest {

namespace {

Error parse_sizes(const std::string& list, std::vector<uint64_t>* sizes) {
  for (const std::string& text : split(list, ',')) {
    uint64_t size;
    if (!parse_number(text, &size)) return {"not a size: '" + text + "'", -EINVAL};
    sizes->push_back(size);
  }
  return {};
}

Answer map(Vmm& vmm, const Call& call) {
  if (vmm.memory) return Error{"there is memory already", -EEXIST};
  RegionLayout layout;
  layout.page_size = call.number(0);
  if (Error error = parse_sizes(call.text(1), &layout.sizes)) return error;
  const std::string order = call.text("order", "asc");
  layout.order = order == "asc"    ? RegionOrder::kAscending
                 : order == "desc" ? RegionOrder::kDescending
                                   : RegionOrder::kShuffled;
  layout.gap_bytes = call.number("gap", 0);

  VmmMemory memory;
  Userfault userfault;
  if (Error error = VmmMemory::map(layout, &memory)) return error;
  if (Error error = Userfault::open(&userfault)) return error;
  std::string regions;
  for (const HandshakeRegion& region : memory.regions()) {
    auto* address = reinterpret_cast<void*>(region.base_host_virt_addr);
    if (Error error = userfault.register_missing(address, region.size)) return error;
    regions += (regions.empty() ? "" : ",") + std::string("{\"baseAddress\":") +
               json_string(std::to_string(region.base_host_virt_addr)) +
               ",\"size\":" + std::to_string(region.size) +
               ",\"offset\":" + std::to_string(region.offset) + "}";
  }
  vmm.memory = std::move(memory);
  vmm.userfault = std::move(userfault);
  return Answer()
      .json("regions", "[" + regions + "]")
      .number("pages", static_cast<int64_t>(vmm.memory.pages()))
      .boolean("userModeOnly", vmm.userfault.user_mode_only);
}

// Drops what is left of a restore, so that the process can be reused.
Answer drop(Vmm& vmm, const Call&) {
  vmm.userfault = Userfault();
  vmm.memory = VmmMemory();
  vmm.sockets.clear();
  return {};
}

bool from_hex(const std::string& text, std::string* bytes) {
  for (size_t i = 0; i < text.size(); i += 2) {
    uint64_t byte;
    if (!parse_number("0x" + text.substr(i, 2), &byte)) return false;
    bytes->push_back(static_cast<char>(byte));
  }
  return text.size() % 2 == 0;
}

template <typename T>
struct Choice {
  const char* name;
  T value;
};

constexpr Choice<Tweak> kTweaks[] = {
    {"none", Tweak::kNone},
    {"overlap", Tweak::kOverlap},
    {"gap", Tweak::kGap},
    {"odd-size", Tweak::kOddSize},
    {"mixed-page", Tweak::kMixedPage},
    {"unaligned", Tweak::kUnaligned},
    {"too-short", Tweak::kTooShort},
    {"too-long", Tweak::kTooLong},
};

constexpr Choice<PageSizeKeys> kKeys[] = {
    {"none", PageSizeKeys::kNone},
    {"kib", PageSizeKeys::kKib},
    {"page_size", PageSizeKeys::kPageSize},
    {"both", PageSizeKeys::kBoth},
};

template <typename T, size_t N>
T choose(const Choice<T> (&choices)[N], const std::string& name) {
  for (const Choice<T>& choice : choices) {
    if (name == choice.name) return choice.value;
  }
  return choices[0].value;
}

Answer handshake(Vmm& vmm, const Call& call) {
  if (!vmm.memory && !call.has("raw") && !call.has("hold")) {
    return Error{"no memory: map comes first"};
  }
  HandshakeOptions options;
  options.keys = choose(kKeys, call.text("keys", "both"));
  options.tweak = choose(kTweaks, call.text("tweak", "none"));
  options.unknown_keys = call.has("extra");
  options.guest_memfd = call.has("guest_memfd");
  options.pad_bytes = call.number("pad", 0);
  options.fd_count = static_cast<unsigned>(call.number("fds", 1));
  options.pieces = std::max<size_t>(1, call.number("pieces", 1));
  options.hold = call.has("hold");
  if (call.has("truncate")) options.truncate_bytes = call.number("truncate", 0);
  if (call.has("raw")) {
    options.raw.emplace();
    if (!from_hex(call.text("raw", ""), &*options.raw)) {
      return Error{"raw must be hexadecimal, two digits a byte", -EINVAL};
    }
  }

  const UniqueFd wrong(::open("/dev/null", O_RDWR | O_CLOEXEC));
  const bool send_wrong = call.has("wrong-fd") || !vmm.userfault.fd;
  HandshakeReport report;
  if (Error error =
          send_handshake(call.text(0), vmm.memory.regions(),
                         send_wrong ? wrong.get() : vmm.userfault.fd.get(), options, &report)) {
    return error;
  }
  if (!call.has("close")) vmm.sockets.push_back(std::move(report.socket));
  if (call.has("drop-uffd")) vmm.userfault.fd.reset();
  return Answer()
      .number("sentBytes", static_cast<int64_t>(report.sent_bytes))
      .number("totalBytes", static_cast<int64_t>(report.total_bytes))
      .number("sendErrno", report.send_error);
}

// Calls `change` on the memory of FIRST and COUNT, region by region, until a call fails.
template <typename Change>
Answer for_pieces(Vmm& vmm, const Call& call, Change change) {
  if (Error error = vmm.check_pages(call.number(0), call.number(1))) return error;
  for (const VmmMemory::Piece& piece : vmm.memory.pieces(call.number(0), call.number(1))) {
    if (Error error = change(piece)) return error;
  }
  return {};
}

// Returns when the handler has read the event of every region.
Answer remove(Vmm& vmm, const Call& call) {
  return for_pieces(vmm, call, [](const VmmMemory::Piece& piece) -> Error {
    if (::madvise(piece.data, piece.bytes, MADV_DONTNEED) == 0) return {};
    return system_error("give memory back", errno);
  });
}

Answer unregister(Vmm& vmm, const Call& call) {
  return for_pieces(vmm, call, [&vmm](const VmmMemory::Piece& piece) {
    return vmm.userfault.unregister(piece.data, piece.bytes);
  });
}

Answer protect(Vmm& vmm, const Call& call) {
  const int protection = call.text(2) == "none" ? PROT_NONE : PROT_READ | PROT_WRITE;
  return for_pieces(vmm, call, [protection](const VmmMemory::Piece& piece) -> Error {
    if (::mprotect(piece.data, piece.bytes, protection) == 0) return {};
    return system_error("protect memory", errno);
  });
}

Answer unmap(Vmm& vmm, const Call& call) {
  return for_pieces(vmm, call, [](const VmmMemory::Piece& piece) -> Error {
    if (::munmap(piece.data, piece.bytes) == 0) return {};
    return system_error("unmap memory", errno);
  });
}

}  // namespace

const std::vector<Command> kMemoryCommands = {
    {"map", "PAGE_SIZE LIST [order=asc|desc|shuffle] [gap=BYTES]", map},
    {"drop", "", drop},
    {"handshake",
     "SOCKET [keys=none|kib|page_size|both] [extra=1] [guest_memfd=1] [fds=COUNT] [wrong-fd=1] "
     "[tweak=overlap|gap|odd-size|mixed-page|unaligned|too-short|too-long] [raw=HEX] [pad=BYTES] "
     "[pieces=COUNT] [truncate=BYTES] [hold=1] [close=1] [drop-uffd=1]",
     handshake},
    {"remove", "FIRST COUNT", remove},
    {"unregister", "FIRST COUNT", unregister},
    {"mprotect", "FIRST COUNT none|rw", protect},
    {"munmap", "FIRST COUNT", unmap},
};

}  // namespace reap::guest
