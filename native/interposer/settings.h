// Settings of the interposer, from the environment.
#pragma once

#include <sys/un.h>

#include <climits>

namespace reap::interposer {

struct Settings {
  char memory_file[PATH_MAX];
  char socket[sizeof(sockaddr_un::sun_path)];
  // Exit, rather than continue with the plain file, if the file cannot be served.
  bool stop;
};

// Null if the environment configures nothing. Read once, when the library is loaded or first used:
// a VMM may clear its environment before it maps its memory.
const Settings* settings();

}  // namespace reap::interposer
