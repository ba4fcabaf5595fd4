// A small file that only this user can have written.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace reap {

// Reads folder/name, at most 1 MiB. Returns false if it is missing, or if somebody else may have
// put it there: the folder and the file must belong to this user, must not be links, and must not
// be writable by others.
bool read_private_file(const std::string& folder, const std::string& name,
                       std::vector<uint8_t>* bytes);

}  // namespace reap
