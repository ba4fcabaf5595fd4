#include "message.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <ctime>

#include "lock.h"

namespace reap::interposer {

namespace {

// Suppresses SIGPIPE, which would end a VMM that does not know about this message. The signal is
// sent to the writing thread, and stays pending while it is blocked.
void write_quietly(const char* text, size_t length) {
  const Undisturbed undisturbed;
  sigset_t pending;
  sigpending(&pending);
  if (::write(STDERR_FILENO, text, length) >= 0 || errno != EPIPE) return;
  if (sigismember(&pending, SIGPIPE) == 1) return;
  sigset_t pipe;
  sigemptyset(&pipe);
  sigaddset(&pipe, SIGPIPE);
  const timespec at_once{};
  sigtimedwait(&pipe, nullptr, &at_once);
}

}  // namespace

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
  // In one write, so that lines of several processes stay whole.
  write_quietly(line, static_cast<size_t>(end - line));
}

}  // namespace reap::interposer
