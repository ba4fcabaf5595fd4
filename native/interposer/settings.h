// What the environment tells the interposer.
#pragma once

#include <sys/un.h>

#include <climits>

namespace reap::interposer {

struct Settings {
  char memory_file[PATH_MAX];
  char socket[sizeof(sockaddr_un::sun_path)];
  // End the process, rather than go on with the plain file, when the file cannot be served.
  bool stop;
};

// Null where the environment asks for nothing. Read once, when the library is loaded or first used:
// a VMM may clean its environment before it maps its memory.
const Settings* settings();

}  // namespace reap::interposer
