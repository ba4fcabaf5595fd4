#include "options.h"

#include <algorithm>
#include <cerrno>
#include <cstdlib>

#include "report.h"

namespace reap::bench {

namespace {

uint64_t parse_number(const std::string& name, const std::string& text, uint64_t min) {
  char* end = nullptr;
  errno = 0;
  const uint64_t number = std::strtoull(text.c_str(), &end, 10);
  if (text.empty() || text[0] < '0' || text[0] > '9' || *end != '\0' || errno != 0 ||
      number < min) {
    usage_error(name + " takes whole numbers from " + std::to_string(min) + ", got '" + text + "'");
  }
  return number;
}

}  // namespace

Options::Options(const std::vector<Option>& table, const std::vector<std::string>& words) {
  for (const Option& option : table) {
    if (option.fallback) values_[option.name] = option.fallback;
  }
  for (size_t i = 0; i < words.size(); i += 2) {
    const bool known = std::any_of(table.begin(), table.end(),
                                   [&](const Option& option) { return words[i] == option.name; });
    if (!known) usage_error("no option '" + words[i] + "' here");
    if (i + 1 == words.size()) usage_error(words[i] + " takes a value");
    values_[words[i]] = words[i + 1];
  }
  for (const Option& option : table) {
    if (values_.count(option.name) == 0) usage_error(std::string(option.name) + " is missing");
  }
}

uint64_t Options::number(const char* name, uint64_t min) const {
  return parse_number(name, text(name), min);
}

std::vector<uint64_t> Options::numbers(const char* name) const {
  std::vector<uint64_t> numbers;
  const std::string& list = text(name);
  for (size_t start = 0; start <= list.size();) {
    const size_t end = std::min(list.find(',', start), list.size());
    numbers.push_back(parse_number(name, list.substr(start, end - start), 1));
    start = end + 1;
  }
  return numbers;
}

}  // namespace reap::bench
