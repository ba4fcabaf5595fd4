// One line on stderr, with the program's name before it.
#pragma once

#include <initializer_list>

namespace reap::interposer {

void say(std::initializer_list<const char*> words);

}  // namespace reap::interposer
