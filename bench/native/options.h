// Command line: one table of options per command, from which --help is generated.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace reap::bench {

struct Option {
  const char* name;      // with its dashes
  const char* value;     // its placeholder in --help
  const char* fallback;  // default; null: required
  const char* help;
};

class Options {
 public:
  // Exits with status 2 if the words do not match the table.
  Options(const std::vector<Option>& table, const std::vector<std::string>& words);

  const std::string& text(const char* name) const { return values_.at(name); }
  uint64_t number(const char* name, uint64_t min = 1) const;
  std::vector<uint64_t> numbers(const char* name) const;  // comma-separated

 private:
  std::map<std::string, std::string> values_;
};

struct Command {
  const char* name;
  const char* help;
  std::vector<Option> options;
  int (*run)(const Options& options);
};

extern const Command kReap;
extern const Command kReapPack;
extern const Command kOnDemand;
extern const Command kLimitInstall;
extern const Command kLimitRead;
extern const Command kLimitFault;
extern const Command kLimitCompare;
extern const Command kTouch;
extern const Command kSpin;

}  // namespace reap::bench
