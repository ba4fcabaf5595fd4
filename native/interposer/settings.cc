#include "settings.h"

#include <pthread.h>

#include <cstdlib>
#include <cstring>

#include "message.h"

namespace reap::interposer {

namespace {

Settings values;
bool asked;
pthread_once_t once = PTHREAD_ONCE_INIT;

template <size_t N>
bool copy_value(const char* name, char (&value)[N]) {
  const char* text = std::getenv(name);
  if (!text || *text == '\0') return false;
  const size_t length = std::strlen(text);
  if (length >= N) {
    say({name, " is too long for a path, and is ignored"});
    return false;
  }
  std::memcpy(value, text, length + 1);
  return true;
}

void read_environment() {
  asked = copy_value("REAP_TRACE_MEMORY", values.memory_file) &&
          copy_value("REAP_TRACE_SOCKET", values.socket);
  const char* policy = std::getenv("REAP_TRACE_WHEN_UNREACHABLE");
  values.stop = policy && std::strcmp(policy, "stop") == 0;
}

// Libraries loaded earlier may map memory in their constructors.
__attribute__((constructor)) void read_early() { settings(); }

}  // namespace

const Settings* settings() {
  pthread_once(&once, read_environment);
  return asked ? &values : nullptr;
}

}  // namespace reap::interposer
