// Strict, sequential RFC 8259 reader without recursion or allocation.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace reap::json {

// Maximum nesting of arrays and objects, including the outermost one.
constexpr unsigned kMaxDepth = 32;
// Stands for the byte at the end of the text.
constexpr uint64_t kEnd = 256;

// Reason for refusing a text. The meaning of the numbers depends on `check`.
struct Refusal {
  const char* check = "";
  uint64_t offset = 0;
  uint64_t want = 0;
  uint64_t got = 0;
};

constexpr uint32_t bit(unsigned index) { return uint32_t{1} << index; }

inline bool is_space(uint32_t byte) {
  return byte == ' ' || byte == '\t' || byte == '\n' || byte == '\r';
}

inline bool is_digit(uint32_t byte) { return byte >= '0' && byte <= '9'; }

inline bool starts_value(uint32_t byte) {
  return byte == '{' || byte == '[' || byte == '"' || byte == '-' || is_digit(byte) ||
         byte == 't' || byte == 'f' || byte == 'n';
}

// A decoded string, as far as it can still be one of the known keys: those are short and ASCII, so
// a long string or one with other characters is only marked as different.
class KeyText {
 public:
  void append(uint32_t code_point) {
    if (code_point > 0x7f || size_ == sizeof(text_)) {
      different_ = true;
    } else {
      text_[size_++] = static_cast<char>(code_point);
    }
  }
  bool is(std::string_view key) const {
    return !different_ && std::string_view(text_, size_) == key;
  }

 private:
  char text_[24];
  size_t size_ = 0;
  bool different_ = false;
};

struct Number {
  uint64_t value = 0;
  bool is_u64 = true;  // no sign, fraction or exponent, and within range
};

// Each read function starts at the first byte of its token, and returns false after it has filled
// in the refusal.
class Reader {
 public:
  Reader(std::string_view text, Refusal* why) : text_(text), why_(why) {}

  size_t position() const { return position_; }

  uint32_t peek() const {
    if (position_ == text_.size()) return kEnd;
    return static_cast<unsigned char>(text_[position_]);
  }

  void skip_space() {
    while (is_space(peek())) ++position_;
  }

  bool take_if(char byte) {
    if (peek() != static_cast<unsigned char>(byte)) return false;
    ++position_;
    return true;
  }

  bool take(char byte) { return take_if(byte) || refuse_byte(); }

  bool refuse(const char* check, uint64_t offset, uint64_t want, uint64_t got) {
    *why_ = {check, offset, want, got};
    return false;
  }

  bool refuse_byte() { return refuse("json", position_, 0, peek()); }

  // Reads a key and its colon, up to the first byte of the value.
  bool read_key(KeyText* key) {
    if (!read_string(key)) return false;
    skip_space();
    if (!take(':')) return false;
    skip_space();
    return true;
  }

  bool read_literal(std::string_view literal) {
    return std::all_of(literal.begin(), literal.end(), [this](char byte) { return take(byte); });
  }

  bool read_number(Number* number) {
    if (take_if('-')) number->is_u64 = false;
    if (!is_digit(peek())) return refuse_byte();
    if (!take_if('0')) {
      for (; is_digit(peek()); ++position_) {
        if (__builtin_mul_overflow(number->value, uint64_t{10}, &number->value) ||
            __builtin_add_overflow(number->value, peek() - '0', &number->value)) {
          number->is_u64 = false;
        }
      }
    }
    if (take_if('.')) {
      number->is_u64 = false;
      if (!skip_digits()) return false;
    }
    if (take_if('e') || take_if('E')) {
      number->is_u64 = false;
      if (!take_if('+')) take_if('-');
      if (!skip_digits()) return false;
    }
    return true;
  }

  bool read_string(KeyText* decoded) {
    if (!take('"')) return false;
    for (;;) {
      const uint32_t byte = peek();
      uint32_t code_point = byte;
      if (byte == kEnd || byte < 0x20) return refuse_byte();
      if (byte == '"') {
        ++position_;
        return true;
      }
      if (byte == '\\') {
        if (!read_escape(&code_point)) return false;
      } else if (byte < 0x80) {
        ++position_;
      } else if (!skip_multibyte()) {
        return false;
      }
      decoded->append(code_point);
    }
  }

  // Skips any value inside `depth` open containers. Iterative, with one bit per container: the peer
  // chooses the nesting.
  bool skip_value(const unsigned depth) {
    unsigned inner = depth;
    uint32_t objects = 0;
    for (;;) {
      const bool object = peek() == '{';
      if (object || peek() == '[') {
        if (inner == kMaxDepth) return refuse("depth", position_, inner, inner + 1);
        ++position_;
        skip_space();
        if (!take_if(object ? '}' : ']')) {
          objects = object ? objects | bit(inner) : objects & ~bit(inner);
          ++inner;
          if (object && !skip_key()) return false;
          continue;
        }
      } else if (!skip_scalar()) {
        return false;
      }
      for (;; --inner) {
        if (inner == depth) return true;
        skip_space();
        const bool in_object = objects & bit(inner - 1);
        if (take_if(',')) {
          skip_space();
          if (in_object && !skip_key()) return false;
          break;
        }
        if (!take(in_object ? '}' : ']')) return false;
      }
    }
  }

 private:
  bool skip_key() {
    KeyText ignored;
    return read_key(&ignored);
  }

  bool skip_scalar() {
    switch (peek()) {
      case '"': {
        KeyText ignored;
        return read_string(&ignored);
      }
      case 't':
        return read_literal("true");
      case 'f':
        return read_literal("false");
      case 'n':
        return read_literal("null");
      default: {
        Number ignored;
        return read_number(&ignored);
      }
    }
  }

  bool skip_digits() {
    if (!is_digit(peek())) return refuse_byte();
    while (is_digit(peek())) ++position_;
    return true;
  }

  bool read_escape(uint32_t* code_point) {
    const size_t start = position_++;
    const uint32_t byte = peek();
    if (byte == 'u') {
      if (!read_code_unit(code_point)) return false;
      if (*code_point < 0xd800 || *code_point > 0xdfff) return true;
      const uint32_t high = *code_point;
      uint32_t low = 0;
      if (high > 0xdbff || !take_if('\\') || peek() != 'u') return refuse_text(start, high);
      if (!read_code_unit(&low)) return false;
      if (low < 0xdc00 || low > 0xdfff) return refuse_text(start, high);
      *code_point = 0x10000 + ((high - 0xd800) << 10) + (low - 0xdc00);
      return true;
    }
    constexpr std::string_view kEscapes = "\"\\/bfnrt";
    constexpr std::string_view kMeanings = "\"\\/\b\f\n\r\t";
    const size_t found =
        byte == kEnd ? std::string_view::npos : kEscapes.find(static_cast<char>(byte));
    if (found == std::string_view::npos) return refuse_byte();
    *code_point = static_cast<unsigned char>(kMeanings[found]);
    ++position_;
    return true;
  }

  // A character that is cut off by the end of the message is reported as the end, not as invalid.
  bool refuse_text(size_t start, uint32_t got) {
    return peek() == kEnd ? refuse_byte() : refuse("utf8", start, 0, got);
  }

  // Reads the `u` of an escape and its four hexadecimal digits.
  bool read_code_unit(uint32_t* unit) {
    ++position_;
    *unit = 0;
    for (int digit = 0; digit < 4; ++digit, ++position_) {
      const uint32_t byte = peek();
      const uint32_t letter = byte | 0x20;
      if (is_digit(byte)) {
        *unit = *unit << 4 | (byte - '0');
      } else if (letter >= 'a' && letter <= 'f') {
        *unit = *unit << 4 | (letter - 'a' + 10);
      } else {
        return refuse_byte();
      }
    }
    return true;
  }

  // Unicode 15, table 3-7: no overlong forms, no surrogates, nothing above U+10FFFF.
  bool skip_multibyte() {
    const size_t start = position_;
    const uint32_t lead = peek();
    const int following = lead < 0xc2 || lead > 0xf4 ? 0 : lead < 0xe0 ? 1 : lead < 0xf0 ? 2 : 3;
    uint32_t lowest = lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80;
    uint32_t highest = lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf;
    if (following == 0) return refuse_text(start, lead);
    ++position_;
    for (int byte = 0; byte < following; ++byte, ++position_) {
      if (peek() < lowest || peek() > highest) return refuse_text(start, lead);
      lowest = 0x80;
      highest = 0xbf;
    }
    return true;
  }

  std::string_view text_;
  Refusal* why_;
  size_t position_ = 0;
};

}  // namespace reap::json
