// A small file that only this user can have written.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace reap {

// Reads folder/name, of up to 1 MiB. False where it is not there, and where somebody else may have
// put it there: the folder and the file must be this user's, no link, and writable by nobody else.
bool read_private_file(const std::string& folder, const std::string& name,
                       std::vector<uint8_t>* bytes);

}  // namespace reap
