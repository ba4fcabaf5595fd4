#include "answer.h"

#include <cinttypes>
#include <cstdio>
#include <system_error>

namespace reap::guest {

Error system_error(const std::string& action, int number) {
  return {"cannot " + action + ": " + std::generic_category().message(number), -number};
}

Answer::Answer(const Error& error) : ok_(!error) {
  if (ok_) return;
  text("error", error.message);
  if (error.number != 0) number("errno", error.number);
}

Answer& Answer::number(const char* name, int64_t value) {
  return json(name, std::to_string(value));
}

Answer& Answer::boolean(const char* name, bool value) {
  return json(name, value ? "true" : "false");
}

Answer& Answer::text(const char* name, const std::string& value) {
  return json(name, json_string(value));
}

Answer& Answer::numbers(const char* name, const std::vector<uint64_t>& values) {
  std::string list;
  for (uint64_t value : values) list += (list.empty() ? "" : ",") + std::to_string(value);
  return json(name, "[" + list + "]");
}

Answer& Answer::json(const char* name, const std::string& json) {
  fields_ += "," + json_string(name) + ":" + json;
  return *this;
}

std::string Answer::line() const {
  return std::string("{\"ok\":") + (ok_ ? "true" : "false") + fields_ + "}";
}

std::string json_string(const std::string& value) {
  std::string quoted = "\"";
  for (char c : value) {
    if (c == '"' || c == '\\') {
      quoted += {'\\', c};
    } else if (static_cast<unsigned char>(c) < 0x20) {
      quoted += "\\u" + hex(static_cast<unsigned char>(c), 4);
    } else {
      quoted += c;
    }
  }
  return quoted + "\"";
}

std::string hex(uint64_t value, int digits) {
  char text[17];
  std::snprintf(text, sizeof text, "%0*" PRIx64, digits, value);
  return text;
}

}  // namespace reap::guest
