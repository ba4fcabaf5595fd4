// TEST(name) { CHECK(x); CHECK_EQ(a, b); } registers a test; main.cc runs the tests selected by its
// arguments. A failed check is printed and counted, and the test continues; checks may run on any
// thread. SKIP(reason) leaves the test if something that it needs is missing, and prints the
// reason.
#pragma once

#include <atomic>
#include <cstdio>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

namespace check {

struct Test {
  const char* name;
  void (*run)();
};

inline std::vector<Test>& tests() {
  static std::vector<Test> all;
  return all;
}

// Failed checks of the current test.
inline std::atomic<int> failures{0};

// Reason for skipping the current test, or empty.
inline std::string skipped;
// Subject of the following checks, printed with failures: the row of a table. Set on the test's own
// thread while no other thread checks.
inline std::string about;

struct Registration {
  Registration(const char* name, void (*run)()) { tests().push_back({name, run}); }
};

inline void fail(const char* file, int line, const std::string& what) {
  ++failures;
  std::fprintf(stderr, "%s:%d: %s%s%s\n", file, line, what.c_str(), about.empty() ? "" : " with ",
               about.c_str());
}

template <typename Value>
std::string describe(const Value& value) {
  if constexpr (std::is_same_v<Value, bool>) {
    return value ? "true" : "false";
  } else if constexpr (std::is_enum_v<Value>) {
    return std::to_string(static_cast<std::underlying_type_t<Value>>(value));
  } else if constexpr (std::is_arithmetic_v<Value>) {
    return std::to_string(value);
  } else if constexpr (std::is_convertible_v<const Value&, std::string_view>) {
    return '"' + std::string(std::string_view(value)) + '"';
  } else {
    return "(no text for this type)";
  }
}

// Compares integers by value: -1 equals no unsigned number, and a literal needs no suffix.
template <typename Left, typename Right>
bool equal(const Left& left, const Right& right) {
  if constexpr (std::is_convertible_v<const Left&, std::string_view> &&
                std::is_convertible_v<const Right&, std::string_view>) {
    return std::string_view(left) == std::string_view(right);
  } else if constexpr (std::is_integral_v<Left> && std::is_integral_v<Right>) {
    if ((left < Left{}) != (right < Right{})) return false;
    using Common = std::common_type_t<Left, Right>;
    return static_cast<Common>(left) == static_cast<Common>(right);
  } else {
    return left == right;
  }
}

template <typename Left, typename Right>
void expect_equal(const Left& left, const Right& right, const char* left_text,
                  const char* right_text, const char* file, int line) {
  if (equal(left, right)) return;
  fail(file, line,
       std::string("CHECK_EQ(") + left_text + ", " + right_text + "): " + describe(left) +
           " is not " + describe(right));
}

}  // namespace check

#define TEST(name)                                                        \
  static void test_##name();                                              \
  static const check::Registration registered_##name(#name, test_##name); \
  static void test_##name()

#define CHECK(condition)                                                        \
  do {                                                                          \
    if (!(condition)) check::fail(__FILE__, __LINE__, "CHECK(" #condition ")"); \
  } while (false)

#define CHECK_EQ(left, right) \
  check::expect_equal((left), (right), #left, #right, __FILE__, __LINE__)

#define SKIP(reason)         \
  do {                       \
    check::skipped = reason; \
    return;                  \
  } while (false)
