// reap-bench: baselines and limits for reap-trace.
#include <sys/prctl.h>

#include <csignal>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "options.h"
#include "report.h"

namespace reap::bench {

namespace {

const Command* const kCommands[] = {&kReap,         &kReapPack,  &kOnDemand,
                                    &kLimitInstall, &kLimitRead, &kLimitFault,
                                    &kLimitCompare, &kTouch,     &kSpin};

int help() {
  std::puts(
      "usage: reap-bench COMMAND [OPTION VALUE]...\n\n"
      "Events and results are lines of JSON on stdout; times are of CLOCK_MONOTONIC, in\n"
      "microseconds. Lists of pages are files of numbers, 32 bits each, little-endian.");
  for (const Command* command : kCommands) {
    std::printf("\n%s\n    %s\n", command->name, command->help);
    for (const Option& option : command->options) {
      const std::string head = std::string(option.name) + " " + option.value;
      std::printf("    %-20s %s", head.c_str(), option.help);
      if (option.fallback) std::printf(" [%s]", option.fallback);
      std::puts("");
    }
  }
  return 0;
}

int run(const std::vector<std::string>& words) {
  if (words.empty()) usage_error("no command");
  for (const std::string& word : words) {
    if (word == "--help") return help();
  }
  for (const Command* command : kCommands) {
    if (words[0] != command->name) continue;
    return command->run(Options(command->options, {words.begin() + 1, words.end()}));
  }
  usage_error("no command '" + words[0] + "'");
}

}  // namespace

}  // namespace reap::bench

int main(int argc, char** argv) {
  // Exits with its parent, however that ends.
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  return reap::bench::run({argv + 1, argv + argc});
}
