#include "handshake/parser.h"

#include <algorithm>
#include <array>
#include <iterator>

#include "base/page.h"
#include "handshake/json_reader.h"

namespace reap {
namespace {

using json::bit;

enum Key : unsigned { kBase, kSize, kOffset, kPageSizeKib, kPageSize, kIsGuestMemfd, kUnknown };
static_assert(std::size(kHandshakeKeys) == kUnknown);

Key find_key(const json::KeyText& text) {
  unsigned key = 0;
  while (key < kUnknown && !text.is(kHandshakeKeys[key])) ++key;
  return static_cast<Key>(key);
}

struct NumberedRegion {
  Region region;
  uint64_t index;  // position in the message
};

class HandshakeReader {
 public:
  HandshakeReader(std::string_view message, const HandshakeLimits& limits, HandshakeRefusal* why)
      : json_(message, why), limits_(limits) {}

  bool read(Handshake* out) {
    if (!read_array() || !check_offsets() || !check_addresses()) return false;
    out->page_size = page_size_;
    out->regions.clear();
    out->regions.reserve(count_);
    sort_by([](const Region& region) { return region.offset; });
    for (size_t i = 0; i < count_; ++i) out->regions.push_back(regions_[i].region);
    return true;
  }

 private:
  bool read_array() {
    json_.skip_space();
    if (json_.peek() == json::kEnd) return json_.refuse_byte();
    if (!json_.take_if('[')) {
      return json_.refuse("not-an-array", json_.position(), '[', json_.peek());
    }
    json_.skip_space();
    if (json_.take_if(']')) return json_.refuse("region-count", 0, 1, 0);
    do {
      json_.skip_space();
      if (!read_region()) return false;
      json_.skip_space();
    } while (json_.take_if(','));
    if (!json_.take(']')) return false;
    json_.skip_space();
    return json_.peek() == json::kEnd || json_.refuse_byte();
  }

  bool read_region() {
    if (!json::starts_value(json_.peek())) return json_.refuse_byte();
    if (count_ == kMaxRegions) {
      return json_.refuse("region-count", count_, kMaxRegions, kMaxRegions + 1);
    }
    if (!json_.take_if('{')) return json_.refuse("region-type", count_, '{', json_.peek());
    present_ = 0;
    json_.skip_space();
    if (!json_.take_if('}')) {
      do {
        json_.skip_space();
        if (!read_member()) return false;
        json_.skip_space();
      } while (json_.take_if(','));
      if (!json_.take('}')) return false;
    }
    return finish_region();
  }

  bool read_member() {
    const size_t start = json_.position();
    json::KeyText text;
    if (!json_.read_key(&text)) return false;
    const Key key = find_key(text);
    if (key == kUnknown) return json_.skip_value(2);
    if (present_ & bit(key)) return json_.refuse("region-key-twice", count_, key, start);
    present_ |= bit(key);
    return key == kIsGuestMemfd ? read_guest_memfd() : read_u64(key);
  }

  bool read_u64(Key key) {
    const size_t start = json_.position();
    const uint32_t byte = json_.peek();
    if (!json::starts_value(byte)) return json_.refuse_byte();
    json::Number number;
    const bool numeric = byte == '-' || json::is_digit(byte);
    if (numeric && !json_.read_number(&number)) return false;
    if (!numeric || !number.is_u64) return json_.refuse("region-key-type", count_, key, start);
    values_[key] = number.value;
    return true;
  }

  // Memory of this kind is filled by another protocol, through descriptors that accompany the
  // message; pages copied into it would not reach the guest.
  bool read_guest_memfd() {
    switch (json_.peek()) {
      case 'f':
        return json_.read_literal("false");
      case 't':
        return json_.read_literal("true") && json_.refuse("guest-memfd", count_, 0, 1);
      default:
        if (!json::starts_value(json_.peek())) return json_.refuse_byte();
        return json_.refuse("region-key-type", count_, kIsGuestMemfd, json_.position());
    }
  }

  bool finish_region() {
    for (const Key key : {kBase, kSize, kOffset}) {
      if (!(present_ & bit(key))) return json_.refuse("region-key-missing", count_, key, 0);
    }
    uint64_t page_size = 0;
    if (!read_page_size(&page_size)) return false;
    if (count_ == 0) page_size_ = page_size;
    if (page_size != page_size_) {
      return json_.refuse("page-size-mixed", count_, page_size_, page_size);
    }
    if (values_[kSize] == 0) return json_.refuse("region-empty", count_, page_size, 0);
    for (const Key key : {kBase, kSize, kOffset}) {
      if (values_[key] % page_size != 0) {
        return json_.refuse("alignment", count_, page_size, values_[key]);
      }
    }
    const uint64_t room = UINT64_MAX - values_[kBase];
    if (values_[kSize] > room) {
      return json_.refuse("address-overflow", count_, room, values_[kSize]);
    }
    regions_[count_] = {{values_[kBase], values_[kSize], values_[kOffset]}, count_};
    ++count_;
    return true;
  }

  // Bytes under either name: page_size_kib has never been in KiB. Firecracker before 1.7 sends
  // neither key, 1.7 to 1.11 only page_size_kib.
  bool read_page_size(uint64_t* page_size) {
    const bool kib = present_ & bit(kPageSizeKib);
    const bool plain = present_ & bit(kPageSize);
    if (kib && plain && values_[kPageSizeKib] != values_[kPageSize]) {
      return json_.refuse("page-size-disagrees", count_, values_[kPageSize], values_[kPageSizeKib]);
    }
    const uint64_t system = limits_.system_page_size;
    const uint64_t sent = plain ? values_[kPageSize] : kib ? values_[kPageSizeKib] : system;
    // Firecracker sends 4096 for every guest without huge pages, on 16 and 64 KiB hosts too.
    *page_size = sent == kPage ? std::max(sent, system) : sent;
    if (sent == 0 || (*page_size != system && *page_size != kHugePage)) {
      return json_.refuse("page-size", count_, system, sent);
    }
    return true;
  }

  bool check_offsets() {
    uint64_t total = 0;
    for (size_t i = 0; i < count_; ++i) {
      if (__builtin_add_overflow(total, regions_[i].region.size, &total)) {
        return json_.refuse("memory-size", 0, limits_.memory_bytes, UINT64_MAX);
      }
    }
    if (total != limits_.memory_bytes) {
      return json_.refuse("memory-size", 0, limits_.memory_bytes, total);
    }
    sort_by([](const Region& region) { return region.offset; });
    uint64_t end = 0;
    for (size_t i = 0; i < count_; ++i) {
      const auto& [region, index] = regions_[i];
      if (region.offset > end) return json_.refuse("offset-gap", index, end, region.offset);
      if (region.offset < end) return json_.refuse("offset-overlap", index, end, region.offset);
      end += region.size;
    }
    return true;
  }

  bool check_addresses() {
    sort_by([](const Region& region) { return region.base; });
    for (size_t i = 1; i < count_; ++i) {
      const Region& below = regions_[i - 1].region;
      const auto& [region, index] = regions_[i];
      if (region.base < below.base + below.size) {
        return json_.refuse("region-overlap", index, below.base + below.size, region.base);
      }
    }
    return true;
  }

  template <typename Field>
  void sort_by(Field field) {
    std::sort(regions_.begin(), regions_.begin() + count_,
              [field](const NumberedRegion& a, const NumberedRegion& b) {
                const uint64_t left = field(a.region);
                const uint64_t right = field(b.region);
                // Ties in message order, so that a refusal always names the later one.
                return left != right ? left < right : a.index < b.index;
              });
  }

  json::Reader json_;
  const HandshakeLimits& limits_;
  std::array<NumberedRegion, kMaxRegions> regions_;
  size_t count_ = 0;  // number of complete regions, and the index of the one being read
  uint64_t page_size_ = 0;
  std::array<uint64_t, kUnknown> values_{};  // of the region being read
  unsigned present_ = 0;                     // bit k: key k is present
};

}  // namespace

MessageScanner::State MessageScanner::feed(const char* data, size_t size) {
  for (size_t i = 0; i < size && state_ != State::invalid; ++i) state_ = step(data[i]);
  return state_;
}

MessageScanner::State MessageScanner::step(char byte) {
  if (++fed_ > kMaxHandshakeBytes) return State::invalid;
  if (in_string_) {
    if (escaped_) {
      escaped_ = false;
    } else if (byte == '\\') {
      escaped_ = true;
    } else if (byte == '"') {
      in_string_ = false;
    }
    return State::incomplete;
  }
  if (depth_ == 0) {
    if (json::is_space(static_cast<unsigned char>(byte))) return state_;
    if (state_ == State::complete || byte != '[') return State::invalid;
  }
  switch (byte) {
    case '"':
      in_string_ = true;
      return State::incomplete;
    case '[':
    case '{':
      if (depth_ == json::kMaxDepth) return State::invalid;
      objects_ = byte == '{' ? objects_ | bit(depth_) : objects_ & ~bit(depth_);
      ++depth_;
      return State::incomplete;
    case ']':
    case '}':
      --depth_;
      if (((objects_ & bit(depth_)) != 0) != (byte == '}')) return State::invalid;
      if (depth_ > 0) return State::incomplete;
      message_size_ = fed_;
      return State::complete;
    default:
      return State::incomplete;
  }
}

bool parse_handshake(std::string_view message, const HandshakeLimits& limits, Handshake* out,
                     HandshakeRefusal* why) {
  if (message.size() > kMaxHandshakeBytes) {
    *why = {"too-large", kMaxHandshakeBytes, kMaxHandshakeBytes, message.size()};
    return false;
  }
  return HandshakeReader(message, limits, why).read(out);
}

}  // namespace reap
