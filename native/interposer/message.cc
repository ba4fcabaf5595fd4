#include "interposer/message.h"

#include <unistd.h>

#include <algorithm>
#include <cstring>

namespace reap::interposer {

void say(std::initializer_list<const char*> words) {
  char line[8192];
  char* end = line;
  const auto add = [&](const char* word) {
    const size_t room = static_cast<size_t>(line + sizeof line - end) - 1;
    end = std::copy_n(word, std::min(std::strlen(word), room), end);
  };
  add("reap-trace: ");
  for (const char* word : words) add(word);
  *end++ = '\n';
  // In one piece, so that lines of several processes stay whole. Nobody may read it.
  if (::write(STDERR_FILENO, line, static_cast<size_t>(end - line)) < 0) return;
}

}  // namespace reap::interposer
