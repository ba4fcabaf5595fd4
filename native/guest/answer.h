// Answer of a command: one line of JSON.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace reap::guest {

// Reason for a failure; false if nothing failed.
struct Error {
  std::string message;
  int number = 0;  // negative errno, 0 if no system call failed

  explicit operator bool() const { return !message.empty(); }
};

// "cannot <action>: <reason>", with the reason from a positive errno.
Error system_error(const std::string& action, int number);

class Answer {
 public:
  Answer() = default;
  // Implicit, so that a command can end with `return error;`, with or without an error.
  Answer(const Error& error);

  Answer& number(const char* name, int64_t value);
  Answer& boolean(const char* name, bool value);
  Answer& text(const char* name, const std::string& value);
  Answer& numbers(const char* name, const std::vector<uint64_t>& values);
  // `json` is inserted verbatim.
  Answer& json(const char* name, const std::string& json);

  bool ok() const { return ok_; }
  std::string line() const;

 private:
  bool ok_ = true;
  std::string fields_;
};

std::string json_string(const std::string& value);
std::string hex(uint64_t value, int digits);

}  // namespace reap::guest
