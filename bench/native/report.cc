#include "report.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <system_error>

#include "guest/answer.h"

namespace reap::bench {

uint64_t now_ns() {
  timespec time{};
  ::clock_gettime(CLOCK_MONOTONIC, &time);
  return static_cast<uint64_t>(time.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(time.tv_nsec);
}

Json& Json::number(const char* name, uint64_t value) { return json(name, std::to_string(value)); }

Json& Json::micros(const char* name, uint64_t ns) {
  char text[32];
  std::snprintf(text, sizeof text, "%.3f", static_cast<double>(ns) / 1e3);
  return json(name, text);
}

Json& Json::boolean(const char* name, bool value) { return json(name, value ? "true" : "false"); }

Json& Json::text(const char* name, const char* value) {
  return json(name, guest::json_string(value));
}

Json& Json::json(const char* name, const std::string& value) {
  if (!fields_.empty()) fields_ += ",";
  fields_ += guest::json_string(name) + ":" + value;
  return *this;
}

std::string json_list(const std::vector<std::string>& values) {
  std::string list;
  for (const std::string& value : values) list += (list.empty() ? "" : ",") + value;
  return "[" + list + "]";
}

void print(const Json& line) {
  std::puts(line.str().c_str());
  std::fflush(stdout);
}

Json event(const char* name, uint64_t at_ns) {
  return Json().text("event", name).micros("us", at_ns);
}

uint64_t quantile(std::vector<uint64_t>& samples, double share) {
  std::sort(samples.begin(), samples.end());
  const auto at = static_cast<size_t>(share * static_cast<double>(samples.size()));
  return samples[std::min(at, samples.size() - 1)];
}

Summary summarize(std::vector<uint64_t> samples) {
  return {quantile(samples, 0.5), quantile(samples, 0.25), quantile(samples, 0.75), samples.front(),
          samples.back()};
}

Json to_json(const Summary& summary) {
  return Json()
      .micros("medianUs", summary.median)
      .micros("p25Us", summary.p25)
      .micros("p75Us", summary.p75)
      .micros("leastUs", summary.least)
      .micros("mostUs", summary.most);
}

void usage_error(const std::string& sentence) {
  std::fprintf(stderr, "error: %s\nhint: reap-bench --help\n", sentence.c_str());
  std::exit(2);
}

void fail(const std::string& sentence) {
  std::fprintf(stderr, "error: %s\n", sentence.c_str());
  std::exit(1);
}

void fail(const std::string& action, int error) {
  fail("cannot " + action + ": " + std::generic_category().message(error));
}

}  // namespace reap::bench
