// Storage that hangs: the VMs whose files lie there wait, and nobody else.
#include <fcntl.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "support/check.h"
#include "support/hanging_folder.h"
#include "support/prefetch_fixture.h"
#include "support/vmm_fixture.h"

namespace {

using fixture::EngineRun;
using fixture::HangingFolder;
using fixture::Restore;
using reap::EndState;
using reap::Event;
using Call = HangingFolder::Call;

constexpr uint64_t kGuestPages = 64;

// A guest whose memory file is a file of a hanging folder, or its own.
class Guest {
 public:
  Guest(EngineRun& run, const std::string& file, std::shared_ptr<const reap::Plan> plan = nullptr)
      : run_(run) {
    fixture::SessionOptions options = options_of(restore_);
    if (!file.empty()) options.memory_file = file;
    options.plan = std::move(plan);
    session_ = run_.open(options);
  }
  ~Guest() {
    // Whoever still waits for a page goes on.
    restore_.guest.unregister_all();
    for (std::thread& thread : threads_) thread.join();
  }

  void connect() {
    connection_ = connect_guest(restore_);
    run_.wait(Event::Kind::connected, session_.id);
  }
  // On a separate thread.
  void touch(uint64_t page) {
    threads_.emplace_back([this, page] { fixture::peek(restore_.guest.page(page)); });
  }
  bool has_file_bytes(uint64_t page) const { return restore_.has_file_bytes(page); }
  uint64_t session() const { return session_.id; }
  uint64_t get(reap::Counter counter) const { return session_.get(counter); }
  std::shared_ptr<reap::Session> handle() { return run_.find(session_.id); }

 private:
  EngineRun& run_;
  Restore restore_;
  EngineRun::Opened session_;
  reap::UniqueFd connection_;
  std::vector<std::thread> threads_;
};

// A folder with the memory that every Restore has.
struct Storage {
  explicit Storage(HangingFolder::Options options = {})
      : folder(directory.path("mount"), fixture::memory_bytes({}), options) {}
  std::string missing() const {
    return restore.missing().empty() ? folder.missing() : restore.missing();
  }

  const Restore restore;
  const fixture::TempDir directory;
  HangingFolder folder;
};

// A file of the folder whose reads hang.
std::string hung_file(HangingFolder& folder, int number) {
  folder.hold(Call::read, number);
  return folder.file(number);
}

void bring_into_page_cache(const std::string& path) {
  const reap::UniqueFd file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  std::vector<uint8_t> bytes(kGuestPages * 4096);
  CHECK_EQ(::pread(file.get(), bytes.data(), bytes.size(), 0), bytes.size());
}

std::shared_ptr<const reap::Plan> all_pages() {
  auto plan = std::make_shared<reap::Plan>();
  plan->page_size = 4096;
  for (uint32_t page = 0; page < kGuestPages; page += 8)
    plan->extents.push_back({page, 8, page, 0});
  return plan;
}

// A fault and a prefetch that wait for files 0 and 1.
struct HungGuests {
  HungGuests(EngineRun& run, HangingFolder& folder) : demand(run, hung_file(folder, 0)) {
    demand.connect();
    demand.touch(3);
    folder.wait_until_held(1);
    prefetch.emplace(run, hung_file(folder, 1), all_pages());
    folder.wait_until_held(2);
  }

  Guest demand;
  std::optional<Guest> prefetch;
};

// Threads that fetch for prefetches.
int fetching_threads() {
  int count = 0;
  for (const auto& task : std::filesystem::directory_iterator("/proc/self/task")) {
    std::ifstream file(task.path() / "comm");
    std::string name;
    file >> name;
    count += name == "reap-fetch" || name == "reap-read-ahead";
  }
  return count;
}

// A set with the bytes of a file, in as many groups as it has pages.
reap::Plan one_page_groups() {
  reap::Plan plan;
  plan.page_size = 4096;
  for (uint32_t page = 0; page < kGuestPages; ++page) {
    plan.extents.push_back({page, 1, page, 0});
    reap::PlanGroup group{};
    group.data_offset = page * 4096;
    group.data_bytes = 4096;
    group.first_extent = page;
    group.extent_count = 1;
    plan.groups.push_back(group);
  }
  return plan;
}

std::chrono::microseconds processor_time() {
  rusage usage{};
  ::getrusage(RUSAGE_SELF, &usage);
  const auto us = [](const timeval& time) {
    return std::chrono::seconds(time.tv_sec) + std::chrono::microseconds(time.tv_usec);
  };
  return us(usage.ru_utime) + us(usage.ru_stime);
}

}  // namespace

TEST(cached_pages_of_a_file_on_hung_storage_are_served) {
  HangingFolder::Options options;
  options.has_holes = true;
  options.remembers_attributes = false;
  Storage storage(options);
  if (!storage.missing().empty()) SKIP(storage.missing());
  HangingFolder& folder = storage.folder;
  bring_into_page_cache(folder.file(0));
  EngineRun run;
  // More than there are demand threads.
  std::vector<std::unique_ptr<Guest>> guests(6);
  for (auto& guest : guests) guest = std::make_unique<Guest>(run, folder.file(0));
  for (const Call call : {Call::attributes, Call::open, Call::read, Call::seek}) {
    folder.hold(call, 0);
  }
  for (const auto& guest : guests) guest->connect();
  for (uint64_t page = 0; page < kGuestPages; ++page) {
    for (const auto& guest : guests) CHECK(guest->has_file_bytes(page));
  }
  folder.release_all();
}

TEST(vms_whose_reads_hang_leave_threads_for_all_others) {
  constexpr int kHung = 8;
  Storage storage;
  if (!storage.missing().empty()) SKIP(storage.missing());
  HangingFolder& folder = storage.folder;
  EngineRun run;
  Guest elsewhere(run, "");
  Guest beside(run, folder.file(kHung));
  elsewhere.connect();
  beside.connect();
  std::vector<std::unique_ptr<Guest>> hung;
  for (int i = 0; i < kHung; ++i) {
    hung.push_back(std::make_unique<Guest>(run, hung_file(folder, i)));
    hung.back()->connect();
    // Of different read-ahead windows as far as the file is long enough.
    for (const uint64_t page : {0, 33}) hung.back()->touch(page);
  }
  folder.wait_until_held(kHung);
  // One on the same device, where nothing is cached, and one on another device.
  for (uint64_t page = 0; page < kGuestPages; ++page) {
    CHECK(beside.has_file_bytes(page));
    CHECK(elsewhere.has_file_bytes(page));
  }
  // Their timers and ends.
  CHECK(run.close(elsewhere.session(), false));
  CHECK_EQ(run.wait_for_end(elsewhere.session()).state, EndState::vm_left);
  CHECK(beside.handle()->detach());
  CHECK_EQ(run.wait_for_end(beside.session()).state, EndState::detached);
  folder.release_all();
}

TEST(hung_storage_costs_next_to_no_processor_time) {
  Storage storage;
  if (!storage.missing().empty()) SKIP(storage.missing());
  HangingFolder& folder = storage.folder;
  EngineRun run;
  Guest hung(run, hung_file(folder, 0));
  hung.connect();
  for (uint64_t page = 0; page < 8; ++page) hung.touch(page * 8);
  folder.wait_until_held(1);
  // A thread that tries again every 200 us takes ten times as much, in each stretch. The first ones
  // may have what the threads of the guest still do.
  auto least = std::chrono::microseconds::max();
  for (int stretch = 0; stretch < 3; ++stretch) {
    const auto before = processor_time();
    std::this_thread::sleep_for(std::chrono::milliseconds(250));
    least = std::min(least, processor_time() - before);
  }
  CHECK(least < std::chrono::milliseconds(10));
  folder.release_all();
}

TEST(a_prefetch_from_hung_storage_leaves_workers_for_others) {
  Storage storage;
  if (!storage.missing().empty()) SKIP(storage.missing());
  HangingFolder& folder = storage.folder;
  EngineRun run;
  // More restores than there are threads. They hang before their VMMs connect.
  std::vector<std::unique_ptr<Guest>> hung;
  for (int i = 0; i < 8; ++i) {
    hung.push_back(std::make_unique<Guest>(run, hung_file(folder, i), all_pages()));
  }
  folder.wait_until_held(2);
  Guest other(run, "", all_pages());
  other.connect();
  CHECK_EQ(run.wait(Event::Kind::prefetched, other.session()).prefetch.pages, kGuestPages);
  CHECK(other.handle()->detach());
  CHECK_EQ(run.wait_for_end(other.session()).state, EndState::detached);
  folder.release_all();
}

TEST(a_prefetch_that_hangs_takes_no_further_threads) {
  Storage storage;
  if (!storage.missing().empty()) SKIP(storage.missing());
  HangingFolder& folder = storage.folder;
  folder.hold(Call::read, 0);
  fixture::SessionOptions options;
  options.socket_path = storage.restore.directory.path("uffd.sock");
  options.memory_file = storage.restore.path;
  options.plan = std::make_shared<const reap::Plan>(one_page_groups());
  reap::PageSource set;
  CHECK_EQ(set.open(folder.file(0)), 0);
  options.proven = std::make_shared<const reap::ProvenFile>(
      reap::ProvenFile{std::move(set), storage.restore.memory_file.stamp()});
  EngineRun run;
  // Workers, and two that read ahead of them.
  const int usual = static_cast<int>(std::clamp(run.engine().reactor().cores(), 2U, 4U)) + 2;
  const EngineRun::Opened session = run.open(options);
  folder.wait_until_held(1);
  // Time in which others would have followed, a few every 50 ms.
  std::this_thread::sleep_for(std::chrono::milliseconds(500));
  CHECK(fetching_threads() <= 2 * usual);
  CHECK(run.close(session.id, false));
  folder.release_all();
  run.wait_for_end(session.id);
  CHECK(fixture::in_time([&] { return fetching_threads() <= usual; }));
}

// A direct read that hangs would survive even SIGKILL.
TEST(a_file_on_fuse_is_not_opened_for_direct_reads) {
  Storage storage;
  if (!storage.missing().empty()) SKIP(storage.missing());
  const uint64_t before = fixture::descriptors_here();
  reap::PageSource file;
  CHECK_EQ(file.open(storage.folder.file(0)), 0);
  CHECK_EQ(fixture::descriptors_here(), before + 1);
}

TEST(a_read_that_hangs_is_reported_as_one_of_its_file) {
  for (const bool is_of_set : {true, false}) {
    check::about = is_of_set ? "the working set" : "the memory file";
    Storage storage;
    if (!storage.missing().empty()) SKIP(storage.missing());
    HangingFolder& folder = storage.folder;
    folder.hold(Call::read, 0);
    fixture::SessionOptions options;
    options.socket_path = storage.restore.directory.path("uffd.sock");
    options.memory_file = is_of_set ? storage.restore.path : folder.file(0);
    options.read_timeout = std::chrono::milliseconds(20);
    options.plan = std::make_shared<const reap::Plan>(one_page_groups());
    if (is_of_set) {
      reap::PageSource set;
      CHECK_EQ(set.open(folder.file(0)), 0);
      options.proven = std::make_shared<const reap::ProvenFile>(
          reap::ProvenFile{std::move(set), storage.restore.memory_file.stamp()});
    }
    EngineRun run;
    const EngineRun::Opened session = run.open(options);
    const Event hung = run.wait(Event::Kind::read_hangs, session.id);
    CHECK_EQ(hung.failure.code,
             is_of_set ? reap::ErrorCode::working_set_io : reap::ErrorCode::source_read);
    CHECK_EQ(hung.failure.check, "hangs");
    CHECK(run.close(session.id, false));
    folder.release_all();
    run.wait_for_end(session.id);
  }
}

TEST(a_session_ends_though_a_thread_waits_for_its_storage) {
  Storage storage;
  if (!storage.missing().empty()) SKIP(storage.missing());
  HangingFolder& folder = storage.folder;
  std::atomic<int> ends{0};
  EngineRun run([&ends](const Event& event) { ends += event.kind == Event::Kind::ended; });
  HungGuests hung(run, folder);
  Guest* const guests[] = {&hung.demand, &*hung.prefetch};
  for (int i = 0; i < 2; ++i) {
    const std::weak_ptr<reap::Session> session = guests[i]->handle();
    CHECK(run.close(guests[i]->session(), false));
    run.wait_for_end(guests[i]->session());
    CHECK(!session.expired());
    folder.release(Call::read, i);
    CHECK(fixture::in_time([&] { return session.expired(); }));
  }
  run.shut_down();
  CHECK_EQ(ends.load(), 2);
}

TEST(an_engine_ends_though_threads_wait_for_storage) {
  Storage storage;
  if (!storage.missing().empty()) SKIP(storage.missing());
  HangingFolder& folder = storage.folder;
  std::atomic<bool> has_ended{false};
  EngineRun run([&has_ended](const Event&) { CHECK(!has_ended); });
  const HungGuests hung(run, folder);
  run.shut_down();
  has_ended = true;
  // The threads end with the storage's answer, and nothing that they use is gone.
  folder.release_all();
}
