// libFuzzer target for the handshake parser and its scanner.
//
//   CXX=clang++-14 node scripts/build-native.mjs --configuration=Fuzz fuzz-handshake
//   build/Fuzz/fuzz-handshake -dict=test/native/handshake/corpus/handshake.dict <new>
//     test/native/handshake/corpus/handshake
//
// The input is the message itself, so that a corpus file can be read and written by hand; limits
// and pieces are derived from it.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <string_view>

#include "base/page.h"
#include "handshake/parser.h"

namespace {

using reap::Handshake;
using reap::HandshakeLimits;
using reap::HandshakeRefusal;
using reap::MessageScanner;
using reap::Region;
using State = reap::MessageScanner::State;

void require(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "broken: %s\n", what);
  std::abort();
}
#define REQUIRE(condition) require((condition), #condition)

// xorshift64*, seeded with the FNV-1a hash of the message.
class Random {
 public:
  explicit Random(std::string_view message) {
    for (const char byte : message) state_ = (state_ ^ static_cast<uint8_t>(byte)) * 0x100000001b3;
    if (state_ == 0) state_ = 1;
  }
  uint64_t below(uint64_t bound) {
    state_ ^= state_ >> 12;
    state_ ^= state_ << 25;
    state_ ^= state_ >> 27;
    return (state_ * 0x2545f4914f6cdd1d >> 16) % bound;
  }

 private:
  uint64_t state_ = 0xcbf29ce484222325;
};

void check_accepted(const Handshake& handshake, const HandshakeLimits& limits) {
  const uint64_t page_size = handshake.page_size;
  REQUIRE(page_size == limits.system_page_size || page_size == reap::kHugePage);
  REQUIRE(!handshake.regions.empty() && handshake.regions.size() <= reap::kMaxRegions);
  uint64_t end = 0;
  for (const Region& region : handshake.regions) {
    REQUIRE(region.offset == end);
    REQUIRE(region.size > 0);
    REQUIRE((region.base | region.size | region.offset) % page_size == 0);
    REQUIRE(region.base + region.size > region.base);
    REQUIRE(end + region.size > end);
    end += region.size;
    for (const Region& other : handshake.regions) {
      REQUIRE(&other == &region || other.base + other.size <= region.base ||
              region.base + region.size <= other.base);
    }
  }
  REQUIRE(end == limits.memory_bytes);
}

void check_refused(const HandshakeRefusal& why, size_t message_size) {
  static constexpr std::string_view kOfBytes[] = {"json", "utf8", "depth", "not-an-array"};
  static constexpr std::string_view kOfRegions[] = {
      "region-count",     "region-type", "region-key-missing",  "region-key-type",
      "region-key-twice", "guest-memfd", "page-size-disagrees", "page-size",
      "page-size-mixed",  "memory-size", "region-empty",        "alignment",
      "address-overflow", "offset-gap",  "offset-overlap",      "region-overlap"};
  const bool of_bytes = std::count(std::begin(kOfBytes), std::end(kOfBytes), why.check) == 1;
  const bool of_regions = std::count(std::begin(kOfRegions), std::end(kOfRegions), why.check) == 1;
  REQUIRE(of_bytes || of_regions || std::string_view(why.check) == "too-large");
  if (of_bytes) REQUIRE(why.offset <= message_size);
  if (of_regions) REQUIRE(why.offset <= reap::kMaxRegions);
}

// An accepted message, rewritten in another order and with other keys, is accepted as the same.
void check_round_trip(const Handshake& handshake, const HandshakeLimits& limits, Random* random) {
  std::string message;
  const size_t count = handshake.regions.size();
  const size_t first = random->below(count);
  for (size_t i = 0; i < count; ++i) {
    const Region& region = handshake.regions[(first + i) % count];
    message += message.empty() ? "[" : ",\n";
    message += "{\"offset\":" + std::to_string(region.offset) +
               ", \"base_host_virt_\\u0061ddr\":" + std::to_string(region.base) +
               ", \"later\":[{\"size\":{}}], \"page_size\":" + std::to_string(handshake.page_size) +
               ",\"size\":" + std::to_string(region.size) + "}";
  }
  message += "]";
  Handshake again;
  HandshakeRefusal why;
  REQUIRE(reap::parse_handshake(message, limits, &again, &why));
  REQUIRE(again.page_size == handshake.page_size);
  REQUIRE(again.regions.size() == count);
  REQUIRE(std::memcmp(again.regions.data(), handshake.regions.data(), count * sizeof(Region)) == 0);
}

bool parse(std::string_view message, const HandshakeLimits& limits, Handshake* out,
           HandshakeRefusal* why) {
  if (reap::parse_handshake(message, limits, out, why)) return true;
  REQUIRE(out->regions.empty() && out->page_size == 0);
  check_refused(*why, message.size());
  return false;
}

void check_parser(std::string_view message, const MessageScanner& scanner, State state,
                  uint64_t system_page_size, Random* random) {
  HandshakeLimits limits = {128 << 20, system_page_size};
  Handshake handshake;
  HandshakeRefusal why;
  bool accepted = parse(message, limits, &handshake, &why);
  if (!accepted && std::string_view(why.check) == "memory-size") {
    limits.memory_bytes = why.got;
    accepted = parse(message, limits, &handshake, &why);
  }
  if (!accepted) return;
  check_accepted(handshake, limits);
  check_round_trip(handshake, limits, random);

  // The scanner found the same end, and no shorter prefix is a message for either of them.
  REQUIRE(state == State::complete);
  const size_t size = scanner.message_size();
  REQUIRE(message[size - 1] == ']');
  Handshake shorter;
  REQUIRE(parse(message.substr(0, size), limits, &shorter, &why));
  shorter = {};
  const std::string_view prefix = message.substr(0, random->below(size));
  REQUIRE(!parse(prefix, limits, &shorter, &why));
  REQUIRE(MessageScanner().feed(prefix.data(), prefix.size()) == State::incomplete);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view message(reinterpret_cast<const char*>(data), size);
  Random random(message);

  MessageScanner whole;
  const State state = whole.feed(message.data(), message.size());
  MessageScanner pieces;
  State last = State::incomplete;
  for (size_t at = 0; at < size;) {
    const size_t piece = std::min<size_t>(size - at, random.below(random.below(8) ? 9 : 200));
    const State next = pieces.feed(message.data() + at, piece);
    REQUIRE(last != State::invalid || next == State::invalid);
    REQUIRE(last != State::complete || next != State::incomplete);
    last = next;
    at += piece;
  }
  REQUIRE(last == state);
  REQUIRE(pieces.message_size() == whole.message_size());
  REQUIRE(state != State::complete || whole.message_size() > 0);

  for (const uint64_t system_page_size : {4096, 16384, 65536}) {
    check_parser(message, whole, state, system_page_size, &random);
  }
  return 0;
}
