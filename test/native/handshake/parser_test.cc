#include "handshake/parser.h"

#include <algorithm>
#include <string>
#include <vector>

#include "support/check.h"

namespace {

using reap::Handshake;
using reap::HandshakeLimits;
using reap::HandshakeRefusal;
using reap::MessageScanner;
using reap::Region;
using State = reap::MessageScanner::State;

constexpr uint64_t kMiB = uint64_t{1} << 20;
constexpr uint64_t kGiB = uint64_t{1} << 30;
constexpr HandshakeLimits k128MiB = {128 * kMiB, 4096};
constexpr HandshakeLimits kOnePage = {4096, 4096};

std::string region_json(const Region& region, const std::string& more = "") {
  return "{\"base_host_virt_addr\":" + std::to_string(region.base) +
         ",\"size\":" + std::to_string(region.size) +
         ",\"offset\":" + std::to_string(region.offset) + more + "}";
}

// One region of one page, with additional keys: the first of them is at byte 63.
std::string page_with(const std::string& more) {
  return "[" + region_json({0x7f0000000000, 4096, 0}, "," + more) + "]";
}

std::string array_of(const std::vector<Region>& regions, const std::string& more = "") {
  std::string message;
  for (const Region& region : regions) {
    message += (message.empty() ? "[" : ",") + region_json(region, more);
  }
  return message + "]";
}

// "ok", or the refusal as "check offset want got".
std::string outcome(const std::string& message, const HandshakeLimits& limits = kOnePage) {
  Handshake handshake;
  handshake.page_size = 1;
  HandshakeRefusal why;
  if (reap::parse_handshake(message, limits, &handshake, &why)) return "ok";
  CHECK_EQ(handshake.page_size, 1);
  CHECK(handshake.regions.empty());
  return std::string(why.check) + " " + std::to_string(why.offset) + " " +
         std::to_string(why.want) + " " + std::to_string(why.got);
}

Handshake accepted(const std::string& message, const HandshakeLimits& limits) {
  Handshake handshake;
  HandshakeRefusal why;
  CHECK(reap::parse_handshake(message, limits, &handshake, &why));
  return handshake;
}

State scan(const std::string& message) {
  return MessageScanner().feed(message.data(), message.size());
}

struct Refused {
  std::string message;
  std::string expected;
};

void check_refused(const std::vector<Refused>& cases, const HandshakeLimits& limits = kOnePage) {
  for (const auto& [message, expected] : cases) {
    const std::string got = outcome(message, limits);
    CHECK_EQ(got, expected);
    if (got != expected) std::fprintf(stderr, "  in %s\n", message.c_str());
  }
}

TEST(every_release_of_firecracker_is_understood) {
  const std::string head =
      "[{\"base_host_virt_addr\":140321539325952,\"size\":134217728,\"offset\":0";
  for (const char* tail : {
           "}]",                                            // 1.1 to 1.6
           ",\"page_size_kib\":4096}]",                     // 1.7 to 1.11
           ",\"page_size\":4096,\"page_size_kib\":4096}]",  // since 1.12
           ",\"page_size\":4096}]",                         // after removal of the old name
           ",\"gpa_start\":0,\"page_size\":4096,\"is_guest_memfd\":false}]",
       }) {
    const Handshake handshake = accepted(head + tail, k128MiB);
    CHECK_EQ(handshake.page_size, 4096);
    CHECK_EQ(handshake.regions.size(), 1);
    CHECK_EQ(handshake.regions[0].base, 140321539325952);
    CHECK_EQ(handshake.regions[0].size, 134217728);
    CHECK_EQ(handshake.regions[0].offset, 0);
  }
}

TEST(page_size_kib_is_in_bytes) {
  const std::vector<Region> regions = {{0x7f0000000000, 128 * kMiB, 0}};
  for (const char* key : {"page_size", "page_size_kib"}) {
    const std::string more = std::string(",\"") + key + "\":2097152";
    CHECK_EQ(accepted(array_of(regions, more), k128MiB).page_size, 2 * kMiB);
  }
}

TEST(a_page_size_of_4096_means_the_system_page_size) {
  const std::vector<Region> regions = {{0x7f0000000000, 128 * kMiB, 0}};
  for (const uint64_t system : {4096, 16384, 65536}) {
    const HandshakeLimits limits = {128 * kMiB, system};
    for (const std::string& more :
         {std::string(), std::string(",\"page_size\":4096"), std::string(",\"page_size_kib\":4096"),
          ",\"page_size\":" + std::to_string(system)}) {
      CHECK_EQ(accepted(array_of(regions, more), limits).page_size, system);
    }
  }
  CHECK_EQ(outcome(array_of(regions, ",\"page_size\":8192"), {128 * kMiB, 16384}),
           "page-size 0 16384 8192");
  CHECK_EQ(outcome(array_of(regions, ",\"page_size\":0"), {128 * kMiB, 0}), "page-size 0 0 0");
}

TEST(regions_come_in_any_number_and_order) {
  for (size_t count = 1; count <= reap::kMaxRegions; ++count) {
    std::vector<Region> regions;
    uint64_t offset = 0;
    for (size_t i = 0; i < count; ++i) {
      const uint64_t size = (i % 3 + 1) * 4096;
      regions.push_back({0x7f0000000000 - offset * 2 - size, size, offset});
      offset += size;
    }
    for (size_t turn = 0; turn < count; turn += 5) {
      std::rotate(regions.begin(), regions.begin() + turn, regions.end());
      const Handshake handshake = accepted(array_of(regions), {offset, 4096});
      CHECK_EQ(handshake.regions.size(), count);
      uint64_t end = 0;
      for (const Region& region : handshake.regions) {
        CHECK_EQ(region.offset, end);
        end += region.size;
      }
      CHECK_EQ(end, offset);
    }
  }
}

TEST(adjacent_regions_and_large_addresses_are_accepted) {
  const uint64_t five_level = 0xff'ffff'ffff'f000;  // the last page below 2^56
  CHECK_EQ(accepted(array_of({{five_level, 4096, 0}}), kOnePage).regions[0].base, five_level);
  CHECK_EQ(outcome(array_of({{UINT64_MAX - 8191, 4096, 0}})), "ok");
  CHECK_EQ(
      outcome(array_of({{0x7f0000000000, 4096, 4096}, {0x7f0000001000, 4096, 0}}), {8192, 4096}),
      "ok");
  CHECK_EQ(outcome(array_of({{kGiB, 3 * kGiB, 0}, {300 * kGiB, 253 * kGiB, 3 * kGiB}}),
                   {256 * kGiB, 4096}),
           "ok");
}

TEST(unknown_keys_with_any_value_are_ignored) {
  for (const char* value :
       {"null", "true", "false", "0", "-0", "1.5e+300", "1E-2", "99999999999999999999", "\"\"",
        "{}", "[]", "[[],{}]", "[{\"a\":1},[1,2]]", "{\"size\":{\"size\":[1,{\"a\":null}]}}",
        "[ 1 , 2 ]", "{ \"a\" : 1 }", R"("\"\\\/\b\f\n\r\t\u0000\u00e9\ud83d\ude00")",
        "\"\x7f\xc3\xa9\xe2\x82\xac\"",
        "\"\xed\x9f\xbf\xee\x80\x80\xf0\x90\x80\x80\xf4\x8f\xbf\xbf\""}) {
    CHECK_EQ(outcome(page_with(std::string("\"future\":") + value)), "ok");
    CHECK_EQ(outcome(page_with(std::string("\"f\":") + value + ",\"f\":" + value)), "ok");
  }
  for (const char* key : {"", "Size", "size ", "siz\\u00e9", "\\u0173ize", "size\xc3\xa9",
                          "size\\u0000", "base_host_virt_addr_and_more_than_any_key"}) {
    CHECK_EQ(outcome(page_with("\"" + std::string(key) + "\":[]")), "ok");
  }
  CHECK_EQ(outcome(page_with("\"future\":\"" + std::string(500'000, 'x') + "\"")), "ok");
}

TEST(white_space_and_escaped_keys_are_read_as_in_json) {
  const std::string spaced =
      " \t\r\n[ { \"base_host_virt_addr\" : 4096 , \"s\\u0069ze\"\n:\t4096,\"\\u006fffset\":0 } ] "
      "\n";
  CHECK_EQ(outcome(spaced), "ok");
  CHECK(scan(spaced) == State::complete);
  CHECK_EQ(outcome(page_with("\"\\u0073ize\":4096")), "region-key-twice 0 1 63");
  check_refused({{"\xef\xbb\xbf[]", "not-an-array 0 91 239"}, {"\f[]", "not-an-array 0 91 12"}});
}

TEST(text_that_is_not_json_is_refused) {
  check_refused({
      {"", "json 0 0 256"},
      {"  ", "json 2 0 256"},
      {"{}", "not-an-array 0 91 123"},
      {"hello", "not-an-array 0 91 104"},
      {"[", "json 1 0 256"},
      {"[,]", "json 1 0 44"},
      {"[{]", "json 2 0 93"},
      {"[{\"size\" 1}]", "json 9 0 49"},
      {"[{\"size\":}]", "json 9 0 125"},
      {"[{\"size\":1,}]", "json 11 0 125"},
      {"[{\"size\":01}]", "json 10 0 49"},
      {"[{\"size\":+1}]", "json 9 0 43"},
      {"[{\"size\":1.}]", "json 11 0 125"},
      {"[{\"size\":1e}]", "json 11 0 125"},
      {"[{\"size\":-}]", "json 10 0 125"},
      {"[{size:1}]", "json 2 0 115"},
      {"[{\"a\":tru}]", "json 9 0 125"},
      {"[{\"a\":nulL}]", "json 9 0 76"},
      {"[{\"a\":[1,]}]", "json 9 0 93"},
      {"[{\"a\":[1}]", "json 8 0 125"},
      {"[{\"a\":{\"b\":1]}]", "json 12 0 93"},
      {"[{\"a\":{,}}]", "json 7 0 44"},
      {"[{\"a\":\"\n\"}]", "json 7 0 10"},
      {"[{\"a\":\"\x1f\"}]", "json 7 0 31"},
      {"[{\"a\":\"\\x\"}]", "json 8 0 120"},
      {"[{\"a\":\"\\u12g4\"}]", "json 11 0 103"},
      {"[{\"a\":\"\\", "json 8 0 256"},
      {"[{\"is_guest_memfd\":fals}]", "json 23 0 125"},
      {"[{\"is_guest_memfd\":}]", "json 19 0 125"},
      {page_with("\"a\":0") + "x", "json 70 0 120"},
      {page_with("\"a\":0") + page_with("\"a\":0"), "json 70 0 91"},
      {page_with("\"a\":0") + std::string(1, '\0'), "json 70 0 0"},
      {array_of({{4096, 4096, 0}}).insert(1, ","), "json 1 0 44"},
  });
}

TEST(every_proper_prefix_of_a_message_is_refused) {
  const std::string message =
      page_with("\"a\":[\"\\ud83d\\ude00\xe2\x82\xac\",{\"b\":-1.5e3}],\"page_size\":4096");
  CHECK_EQ(outcome(message), "ok");
  for (size_t size = 0; size < message.size(); ++size) {
    CHECK_EQ(outcome(message.substr(0, size)), "json " + std::to_string(size) + " 0 256");
    CHECK(scan(message.substr(0, size)) == State::incomplete);
  }
}

TEST(strings_that_are_not_unicode_are_refused) {
  const std::string open = "[{\"a\":\"";
  for (const auto& [text, got] : std::vector<std::pair<std::string, unsigned>>{
           {"\x80", 0x80},
           {"\xc0\xaf", 0xc0},
           {"\xc1\xbf", 0xc1},
           {"\xc3", 0xc3},
           {"\xe0\x9f\xbf", 0xe0},
           {"\xe2\x82", 0xe2},
           {"\xed\xa0\x80", 0xed},
           {"\xf0\x8f\xbf\xbf", 0xf0},
           {"\xf4\x90\x80\x80", 0xf4},
           {"\xf5\x80\x80\x80", 0xf5},
           {"\xff", 0xff},
           {"\\ud800", 0xd800},
           {"\\udbff\\n", 0xdbff},
           {"\\udfff", 0xdfff},
           {"\\udc00\\udc00", 0xdc00},
           {"\\ud800\\ud800", 0xd800},
           {"\\ud800\\ue000", 0xd800},
           {"\\ud83dx", 0xd83d},
       }) {
    CHECK_EQ(outcome(open + text + "\"}]"), "utf8 7 0 " + std::to_string(got));
    CHECK_EQ(outcome("[{\"" + text + "\":1}]"), "utf8 3 0 " + std::to_string(got));
  }
}

TEST(nesting_is_limited) {
  const auto nested = [](size_t depth) {
    return page_with("\"a\":" + std::string(depth, '[') + std::string(depth, ']'));
  };
  CHECK_EQ(outcome(nested(30)), "ok");
  CHECK(scan(nested(30)) == State::complete);
  CHECK_EQ(outcome(nested(31)), "depth 97 32 33");
  CHECK(scan(nested(31)) == State::invalid);
  std::string objects;
  for (int i = 0; i < 500'000 / 5; ++i) objects += "{\"a\":";
  CHECK_EQ(outcome("[{\"a\":" + objects), "depth 156 32 33");
}

TEST(messages_that_are_too_large_are_refused) {
  const std::string message = page_with("\"a\":0");
  const std::string padding(reap::kMaxHandshakeBytes - message.size(), ' ');
  CHECK_EQ(outcome(padding + message), "ok");
  CHECK(scan(padding + message) == State::complete);
  CHECK_EQ(outcome(padding + message + " "), "too-large 1048576 1048576 1048577");
  CHECK(scan(padding + message + " ") == State::invalid);
}

TEST(keys_of_a_region_are_required_typed_and_given_once) {
  const std::string base = "[{\"base_host_virt_addr\":4096,";
  check_refused({
      {"[{}]", "region-key-missing 0 0 0"},
      {"[{\"size\":4096,\"offset\":0}]", "region-key-missing 0 0 0"},
      {base + "\"offset\":0}]", "region-key-missing 0 1 0"},
      {base + "\"size\":4096}]", "region-key-missing 0 2 0"},
      {"[1]", "region-type 0 123 49"},
      {"[null]", "region-type 0 123 110"},
      {"[[]]", "region-type 0 123 91"},
      {base + "\"size\":4096,\"x\"}]", "json 44 0 125"},
      {"[]", "region-count 0 1 0"},
      {"[ ]", "region-count 0 1 0"},
      {array_of(std::vector<Region>(65, {4096, 4096, 0})), "region-count 64 64 65"},
  });
  for (const char* value : {"\"1\"", "-1", "-0", "1.0", "1e3", "18446744073709551616", "null",
                            "true", "[]", "{}", "99999999999999999999999999"}) {
    for (unsigned key = 0; key < 5; ++key) {
      const std::string start = std::string("[{\"") + reap::kHandshakeKeys[key] + "\":";
      CHECK_EQ(outcome(start + value + "}]"),
               "region-key-type 0 " + std::to_string(key) + " " + std::to_string(start.size()));
    }
  }
  for (unsigned key = 0; key < 6; ++key) {
    const std::string member =
        std::string("\"") + reap::kHandshakeKeys[key] + "\":" + (key == 5 ? "false" : "4096");
    CHECK_EQ(outcome("[{" + member + "," + member + "}]"),
             "region-key-twice 0 " + std::to_string(key) + " " + std::to_string(member.size() + 3));
  }
}

TEST(guest_memfd_regions_are_refused) {
  CHECK_EQ(outcome(page_with("\"is_guest_memfd\":true")), "guest-memfd 0 0 1");
  for (const char* value : {"0", "1", "null", "\"true\"", "[]", "{}"}) {
    CHECK_EQ(outcome(page_with(std::string("\"is_guest_memfd\":") + value)),
             "region-key-type 0 5 80");
  }
}

TEST(page_sizes_are_supported_and_the_same_in_all_regions) {
  check_refused({
      {page_with("\"page_size\":0"), "page-size 0 4096 0"},
      {page_with("\"page_size\":4"), "page-size 0 4096 4"},
      {page_with("\"page_size\":16384"), "page-size 0 4096 16384"},
      {page_with("\"page_size\":1073741824"), "page-size 0 4096 1073741824"},
      {page_with("\"page_size_kib\":2048"), "page-size 0 4096 2048"},
      {page_with("\"page_size\":18446744073709551615"), "page-size 0 4096 18446744073709551615"},
      {page_with("\"page_size\":4096,\"page_size_kib\":4"), "page-size-disagrees 0 4096 4"},
      {page_with("\"page_size_kib\":2097152,\"page_size\":4096"),
       "page-size-disagrees 0 4096 2097152"},
      {"[" + region_json({4096, 4096, 0}) + "," +
           region_json({2 * kMiB, 2 * kMiB, 4096}, ",\"page_size\":2097152") + "]",
       "page-size-mixed 1 4096 2097152"},
  });
}

TEST(numbers_of_a_region_are_page_aligned_and_fit) {
  const std::string huge = ",\"page_size\":2097152";
  check_refused({
      {array_of({{4096, 0, 0}}), "region-empty 0 4096 0"},
      {array_of({{4097, 4096, 0}}), "alignment 0 4096 4097"},
      {array_of({{4096, 4095, 0}}), "alignment 0 4096 4095"},
      {array_of({{4096, 4096, 1}}), "alignment 0 4096 1"},
      {array_of({{UINT64_MAX, 4096, 0}}), "alignment 0 4096 18446744073709551615"},
      {array_of({{4096, 2 * kMiB, 0}}, huge), "alignment 0 2097152 4096"},
      {array_of({{2 * kMiB, 4096, 0}}, huge), "alignment 0 2097152 4096"},
      {array_of({{2 * kMiB, 2 * kMiB, 4096}}, huge), "alignment 0 2097152 4096"},
      {array_of({{UINT64_MAX - 4095, 4096, 0}}), "address-overflow 0 4095 4096"},
      {array_of({{4096, UINT64_MAX - 4095, 0}}),
       "address-overflow 0 18446744073709547519 18446744073709547520"},
  });
}

TEST(offsets_tile_the_memory_file_exactly) {
  const uint64_t a = 0x7f0000000000, b = 0x7f0000100000;
  check_refused(
      {
          {array_of({{a, 4096, 0}}), "memory-size 0 8192 4096"},
          {array_of({{a, 8192, 0}, {b, 4096, 8192}}), "memory-size 0 8192 12288"},
          {array_of({{0, kGiB << 33, 0}, {0, kGiB << 33, 4096}}),
           "memory-size 0 8192 18446744073709551615"},
          {array_of({{a, 8192, 4096}}), "offset-gap 0 0 4096"},
          {array_of({{a, 4096, 8192}, {b, 4096, 0}}), "offset-gap 0 4096 8192"},
          {array_of({{a, 4096, 0}, {b, 4096, UINT64_MAX - 4095}}),
           "offset-gap 1 4096 18446744073709547520"},
          {array_of({{a, 4096, 0}, {b, 4096, 0}}), "offset-overlap 1 4096 0"},
      },
      {8192, 4096});
}

TEST(regions_do_not_overlap_in_address) {
  std::vector<Region> equal;
  for (uint64_t i = 0; i < 64; ++i) equal.push_back({4096, 4096, (63 - i) * 4096});
  CHECK_EQ(outcome(array_of(equal), {64 * 4096, 4096}), "region-overlap 1 8192 4096");
  check_refused(
      {
          {array_of({{4096, 4096, 0}, {4096, 8192, 4096}}), "region-overlap 1 8192 4096"},
          {array_of({{8192, 4096, 0}, {4096, 8192, 4096}}), "region-overlap 0 12288 8192"},
          {array_of({{8192, 4096, 8192}, {4096, 8192, 0}}), "region-overlap 0 12288 8192"},
      },
      {12288, 4096});
}

TEST(the_scanner_finds_the_end_whatever_the_pieces) {
  const std::string message = "\n" + page_with(R"("]":"]\"}\\","a":[{"b":"[{"}])");
  const std::string stream = message + " \n";
  CHECK_EQ(outcome(message), "ok");
  for (size_t piece = 1; piece <= stream.size(); ++piece) {
    MessageScanner scanner;
    for (size_t at = 0; at < stream.size(); at += piece) {
      const size_t size = std::min(piece, stream.size() - at);
      const bool ended = at + size >= message.size();
      CHECK(scanner.feed(stream.data() + at, size) ==
            (ended ? State::complete : State::incomplete));
      CHECK_EQ(scanner.message_size(), ended ? message.size() : 0);
    }
    CHECK(scanner.feed("[", 1) == State::invalid);
    CHECK(scanner.feed("]", 1) == State::invalid);
  }
  CHECK(MessageScanner().feed("", 0) == State::incomplete);
}

TEST(the_parser_refuses_every_message_that_the_scanner_calls_invalid) {
  for (const char* message : {"{", "x", "]", "\"", "[}", "[{]", "[[}]", "[]]", "[][]", "[],"}) {
    CHECK(scan(message) == State::invalid);
    CHECK(outcome(message) != "ok");
  }
}

}  // namespace
