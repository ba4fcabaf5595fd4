// Commands of the fake VMM: tables, and the parser of a line.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "answer.h"

namespace reap::guest {

struct Vmm;

// A command's arguments, checked against its usage.
class Call {
 public:
  size_t count() const { return arguments_.size(); }
  const std::string& text(size_t i) const { return arguments_[i]; }
  uint64_t number(size_t i) const;

  bool has(const std::string& option) const { return options_.count(option) > 0; }
  std::string text(const std::string& option, const std::string& fallback) const;
  uint64_t number(const std::string& option, uint64_t fallback) const;

 private:
  friend Error parse_call(const std::string& usage, const std::string& line, Call* call);
  std::vector<std::string> arguments_;
  std::map<std::string, std::string> options_;
};

// The usage is the grammar. Words are separated by single spaces:
//   PAGE          a number; FILE, INPUT, NAME, HEX, LIST and SOCKET are text
//   none|rw       one of these words
//   [PAGE]        optional
//   [gap=BYTES]   an option, written gap=4096 anywhere after the command's name
//   PAGE...       one or more
//   COMMAND       the rest of the line
struct Command {
  const char* name;  // one or two words
  const char* usage;
  Answer (*run)(Vmm& vmm, const Call& call);
};

Error parse_call(const std::string& usage, const std::string& line, Call* call);

// Numbers are decimal, or hexadecimal after 0x.
bool parse_number(const std::string& text, uint64_t* number);
std::vector<std::string> split(const std::string& text, char separator);

// The commands with their usage, a line each.
std::string list_commands();

// Runs one line and returns its answer, for any input.
Answer execute(Vmm& vmm, const std::string& line);

// Runs `body(i)` on `count` threads, which start together.
void run_threads(size_t count, const std::function<void(size_t)>& body);

// One table per group of commands.
extern const std::vector<Command> kMemoryCommands;
extern const std::vector<Command> kTouchCommands;
extern const std::vector<Command> kGuestCommands;
extern const std::vector<Command> kProcessCommands;
extern const std::vector<Command> kFileCommands;
extern const std::vector<Command> kMappingCommands;

}  // namespace reap::guest
