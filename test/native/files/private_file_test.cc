// Findings about working sets are trusted only if nobody else can have written them.
#include "files/private_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <functional>
#include <string>
#include <vector>

#include "base/posix.h"
#include "support/check.h"
#include "support/guest_fixture.h"

namespace {

constexpr uid_t kAnother = 12345;

void write_file(const std::string& path, size_t bytes, mode_t mode = 0600) {
  const reap::UniqueFd file(::open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
  const std::vector<uint8_t> content(bytes, 'x');
  CHECK_EQ(::write(file.get(), content.data(), content.size()), content.size());
  CHECK_EQ(::fchmod(file.get(), mode), 0);
}

// A folder with a file of 10 bytes, and their owners and modes.
struct Row {
  const char* name;
  bool is_read;
  std::function<void(const std::string& folder, const std::string& file)> change;
  bool needs_root = false;
};

void read_each(const std::vector<Row>& rows) {
  for (const Row& row : rows) {
    check::about = row.name;
    if (row.needs_root && ::geteuid() != 0) SKIP("needs root for a file of another user");
    const fixture::TempDir parent;
    const std::string folder = parent.path("proofs");
    const std::string file = folder + "/found.json";
    CHECK_EQ(::mkdir(folder.c_str(), 0700), 0);
    write_file(file, 10);
    row.change(folder, file);
    std::vector<uint8_t> bytes;
    CHECK_EQ(reap::read_private_file(folder, "found.json", &bytes), row.is_read);
    if (row.is_read) CHECK(bytes == std::vector<uint8_t>(10, 'x'));
    ::unlink(file.c_str());
    ::unlink((folder + "/other").c_str());
    ::rmdir(file.c_str());
    ::rmdir(folder.c_str());
  }
}

void change_mode(const std::string& path, mode_t mode) { CHECK_EQ(::chmod(path.c_str(), mode), 0); }

}  // namespace

TEST(a_private_file_is_read_if_only_this_user_can_have_written_it) {
  const auto mode_of_file = [](mode_t mode) {
    return [mode](const std::string&, const std::string& file) { change_mode(file, mode); };
  };
  const auto mode_of_folder = [](mode_t mode) {
    return [mode](const std::string& folder, const std::string&) { change_mode(folder, mode); };
  };
  read_each({
      {"0600 in 0700", true, [](auto&, auto&) {}},
      {"a file that others may read", true, mode_of_file(0644)},
      {"a folder that others may enter", true, mode_of_folder(0755)},
      {"a file that its group may write", false, mode_of_file(0620)},
      {"a file that others may write", false, mode_of_file(0602)},
      {"a folder that its group may write", false, mode_of_folder(0770)},
      {"a folder that others may write", false, mode_of_folder(0702)},
      {"a folder that others may write, with a sticky bit", false, mode_of_folder(01777)},
  });
}

TEST(a_private_file_is_a_regular_file_and_not_a_link_to_one) {
  read_each({
      {"no file", false, [](auto&, const std::string& file) { ::unlink(file.c_str()); }},
      {"a link", false,
       [](const std::string& folder, const std::string& file) {
         CHECK_EQ(::rename(file.c_str(), (folder + "/other").c_str()), 0);
         CHECK_EQ(::symlink("other", file.c_str()), 0);
       }},
      {"a named pipe", false,
       [](auto&, const std::string& file) {
         ::unlink(file.c_str());
         CHECK_EQ(::mkfifo(file.c_str(), 0600), 0);
       }},
      {"a folder", false,
       [](auto&, const std::string& file) {
         ::unlink(file.c_str());
         CHECK_EQ(::mkdir(file.c_str(), 0700), 0);
       }},
  });
}

TEST(a_private_file_is_not_read_through_a_link_to_its_folder) {
  const fixture::TempDir parent;
  write_file(parent.path("found.json"), 10);
  const fixture::TempDir elsewhere;
  const std::string link = elsewhere.path("link");
  CHECK_EQ(::symlink(parent.root().c_str(), link.c_str()), 0);
  std::vector<uint8_t> bytes;
  CHECK(reap::read_private_file(parent.root(), "found.json", &bytes));
  CHECK(!reap::read_private_file(link, "found.json", &bytes));
  CHECK(!reap::read_private_file(parent.path("found.json"), "found.json", &bytes));
  CHECK(!reap::read_private_file(parent.path("nowhere"), "found.json", &bytes));
}

TEST(a_private_file_and_its_folder_belong_to_this_user) {
  const auto own = [](const std::string& path) {
    CHECK_EQ(::chown(path.c_str(), kAnother, kAnother), 0);
  };
  read_each({
      {"a file of another user", false, [own](auto&, const std::string& file) { own(file); }, true},
      {"a folder of another user", false, [own](const std::string& folder, auto&) { own(folder); },
       true},
  });
}

TEST(a_private_file_has_at_most_one_mebibyte) {
  const fixture::TempDir folder;
  for (const size_t size : {size_t{0}, size_t{1} << 20, (size_t{1} << 20) + 1}) {
    check::about = std::to_string(size);
    write_file(folder.path("found"), size);
    std::vector<uint8_t> bytes;
    CHECK_EQ(reap::read_private_file(folder.root(), "found", &bytes), size <= size_t{1} << 20);
    if (size <= size_t{1} << 20) CHECK_EQ(bytes.size(), size);
    ::unlink(folder.path("found").c_str());
  }
}
