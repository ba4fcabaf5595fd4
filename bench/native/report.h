// Output of reap-bench: one line of JSON per event on stdout, errors on stderr.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace reap::bench {

// CLOCK_MONOTONIC, like process.hrtime() in Node.
uint64_t now_ns();

class Json {
 public:
  Json& number(const char* name, uint64_t value);
  Json& micros(const char* name, uint64_t ns);  // with three decimal places
  Json& boolean(const char* name, bool value);
  Json& text(const char* name, const char* value);
  Json& json(const char* name, const std::string& value);
  std::string str() const { return "{" + fields_ + "}"; }

 private:
  std::string fields_;
};

std::string json_list(const std::vector<std::string>& values);

void print(const Json& line);
// A line with the event's name and its time, "us" in microseconds.
Json event(const char* name, uint64_t at_ns);

// Median and spread of repeated measurements in nanoseconds.
struct Summary {
  uint64_t median, p25, p75, least, most;
};
// The value below which `share` of the samples lie. Sorts them.
uint64_t quantile(std::vector<uint64_t>& samples, double share);
Summary summarize(std::vector<uint64_t> samples);
Json to_json(const Summary& summary);

[[noreturn]] void usage_error(const std::string& sentence);
[[noreturn]] void fail(const std::string& sentence);
// "cannot <action>: <reason>", with the reason from a positive errno.
[[noreturn]] void fail(const std::string& action, int error);

}  // namespace reap::bench
