// Prints one line on stderr, prefixed with the program's name.
#pragma once

#include <initializer_list>

namespace reap::interposer {

void say(std::initializer_list<const char*> words);

}  // namespace reap::interposer
