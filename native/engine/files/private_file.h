// Files by whom they can have been written.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/failure.h"

namespace reap {

// Fails (`owner`, `mode`) if another user than this one and root owns the open file or may write to
// it. An ACL that lets others write shows in the mode's bits of the group (acl(5)).
Failure check_writers(int fd);

// Reads folder/name, at most 1 MiB. Returns false if it is missing, or if another user can have put
// it there: the folder and the file must pass check_writers() (else *untrusted is set) and must not
// be links.
bool read_private_file(const std::string& folder, const std::string& name,
                       std::vector<uint8_t>* bytes, Failure* untrusted = nullptr);

}  // namespace reap
