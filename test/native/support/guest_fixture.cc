#include "guest_fixture.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "check.h"

#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY 1
#endif

namespace fixture {

namespace {

bool contains(const std::vector<uint64_t>& pages, uint64_t page) {
  return std::find(pages.begin(), pages.end(), page) != pages.end();
}

uint64_t entries(const char* directory) {
  uint64_t count = 0;
  DIR* open = ::opendir(directory);
  while (open && ::readdir(open)) ++count;
  if (open) ::closedir(open);
  return count;
}

}  // namespace

TempDir::TempDir(const std::string& parent) {
  const char* temporary = std::getenv("TMPDIR");
  path_ = (!parent.empty() ? parent : temporary ? temporary : "/tmp") + "/reap-test-XXXXXX";
  if (!::mkdtemp(path_.data())) check::fail(__FILE__, __LINE__, "mkdtemp " + path_);
}

TempDir::~TempDir() {
  if (DIR* directory = ::opendir(path_.c_str())) {
    while (const dirent* entry = ::readdir(directory)) ::unlink(path(entry->d_name).c_str());
    ::closedir(directory);
  }
  ::rmdir(path_.c_str());
}

bool Flag::set_within_a_moment() const {
  const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(50);
  while (!set_ && std::chrono::steady_clock::now() < end) std::this_thread::yield();
  return set_;
}

Hooks::~Hooks() {
  for (auto* hook :
       {&reap::hooks::after_bind, &reap::hooks::before_give_away, &reap::hooks::before_replace,
        &reap::hooks::waits_for_folder, &reap::hooks::after_accept,
        &reap::hooks::before_direct_open, &reap::hooks::before_event, &reap::hooks::before_drain,
        &reap::hooks::after_drain, &reap::hooks::before_serve, &reap::hooks::before_install,
        &reap::hooks::before_prefetch_install, &reap::hooks::before_remove_pause,
        &reap::hooks::before_ioctl, &reap::hooks::before_page_cache_turn, &reap::hooks::after_look,
        &reap::hooks::before_page_tables, &reap::hooks::after_release}) {
    *hook = nullptr;
  }
  for (auto* answer :
       {&reap::hooks::is_cold, &reap::hooks::is_young, &reap::hooks::core_is_lost,
        &reap::hooks::cores_are_busy, &reap::hooks::hides_residency, &reap::hooks::lacks_cachestat,
        &reap::hooks::lacks_proc, &reap::hooks::drops_readahead, &reap::hooks::reads_are_unfinished,
        &reap::hooks::refuses_thread, &reap::hooks::turn_is_over,
        &reap::hooks::messages_are_late}) {
    *answer = nullptr;
  }
}

std::vector<uint8_t> memory_bytes(const Shape& shape) {
  std::vector<uint8_t> bytes(shape.bytes());
  for (uint64_t page = 0; page < shape.pages(); ++page) {
    if (contains(shape.holes, page) || contains(shape.zeros, page)) continue;
    for (uint64_t at = page * shape.page_size; at < (page + 1) * shape.page_size; at += 8) {
      const uint64_t word = (at + 1) * 0x9E3779B97F4A7C15 | 0x0101010101010101;
      std::memcpy(bytes.data() + at, &word, sizeof word);
    }
  }
  return bytes;
}

void forget_cached(const std::string& path) {
  const reap::UniqueFd file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  ::fsync(file.get());
  ::posix_fadvise(file.get(), 0, 0, POSIX_FADV_DONTNEED);
}

bool write_memory_file(const std::string& path, const Shape& shape,
                       const std::vector<uint8_t>& bytes) {
  const reap::UniqueFd file(::open(path.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
  if (!file || ::ftruncate(file.get(), static_cast<off_t>(bytes.size())) != 0) return false;
  for (uint64_t page = 0; page < shape.pages(); ++page) {
    if (contains(shape.holes, page)) continue;
    const uint64_t at = page * shape.page_size;
    if (::pwrite(file.get(), bytes.data() + at, shape.page_size, static_cast<off_t>(at)) !=
        static_cast<ssize_t>(shape.page_size)) {
      return false;
    }
  }
  return true;
}

Guest::Guest(const Shape& shape) : page_size_(shape.page_size) {
  if (!open_uffd(shape.features)) {
    missing_ = shape.features == 0 ? "needs a userfaultfd: Linux 5.11, and CONFIG_USERFAULTFD"
                                   : "needs a userfaultfd with more features, or root";
  } else if (!map_regions(shape)) {
    missing_ = page_size_ == kHugePage ? "needs " + std::to_string(shape.pages()) +
                                             " free 2 MiB pages (vm.nr_hugepages)"
                                       : "needs memory";
  }
}

Guest::~Guest() {
  // No thread may still wait for a handler when the memory is unmapped.
  if (uffd_) unregister_all();
}

bool Guest::open_uffd(uint64_t features) {
  uffd_.reset(
      static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY)));
  uffdio_api api{};
  api.api = UFFD_API;
  api.features = UFFD_FEATURE_EVENT_REMOVE | features;
  if (page_size_ == kHugePage) api.features |= UFFD_FEATURE_MISSING_HUGETLBFS;
  return uffd_ && ::ioctl(uffd_.get(), UFFDIO_API, &api) == 0;
}

bool Guest::register_memory(void* start, uint64_t length) const {
  uffdio_register request{};
  request.range.start = reinterpret_cast<uintptr_t>(start);
  request.range.len = length;
  request.mode = UFFDIO_REGISTER_MODE_MISSING;
  return ::ioctl(uffd_.get(), UFFDIO_REGISTER, &request) == 0;
}

bool Guest::map_regions(const Shape& shape) {
  const uint64_t gap = page_size_;
  const uint64_t slots = shape.region_pages.size();
  const uint64_t length = shape.bytes() + (slots + 1) * gap + 2 * kHugePage;
  void* reserved =
      ::mmap(nullptr, length, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (reserved == MAP_FAILED) return false;
  reservation_ = reap::Mapping::adopt(reserved, length);
  const int huge = page_size_ != kHugePage ? 0
                   : shape.reserve         ? MAP_HUGETLB
                                           : MAP_HUGETLB | MAP_NORESERVE;
  const auto map = [&](uint64_t address, uint64_t size, int flags) {
    void* mapped = ::mmap(reinterpret_cast<void*>(address), size, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | flags, -1, 0);
    return mapped != MAP_FAILED && register_memory(mapped, size);
  };

  const auto start = reinterpret_cast<uint64_t>(reserved);
  probe_ = static_cast<uint8_t*>(reserved);
  if (!map(start, kSmallPage, 0)) return false;
  uint64_t low = (start + kSmallPage + kHugePage - 1) & ~(kHugePage - 1);
  uint64_t high = low + shape.bytes() + slots * gap;
  uint64_t offset = 0;
  for (const uint64_t pages : shape.region_pages) {
    const uint64_t size = pages * page_size_;
    high -= size + gap;
    const uint64_t address = shape.descending ? high : low;
    low += size + gap;
    if (!map(address, size, huge)) return false;
    regions_.push_back({address, size, offset});
    offset += size;
  }
  return true;
}

reap::UniqueFd Guest::uffd_for_the_handler() const {
  return reap::UniqueFd(::fcntl(uffd_.get(), F_DUPFD_CLOEXEC, 0));
}

uint8_t* Guest::at(uint64_t offset) const {
  for (const reap::Region& region : regions_) {
    if (offset - region.offset < region.size) {
      return reinterpret_cast<uint8_t*>(region.base + (offset - region.offset));
    }
  }
  return nullptr;
}

bool Guest::remove(uint64_t first_page, uint64_t pages) const {
  return ::madvise(page(first_page), pages * page_size_, MADV_DONTNEED) == 0;
}

bool Guest::remove_is_pending() const {
  // A copy returns EAGAIN before the kernel checks whether the page is present.
  static const std::vector<uint8_t> kBytes(kSmallPage);
  uffdio_copy request{};
  request.dst = reinterpret_cast<uintptr_t>(probe_);
  request.src = reinterpret_cast<uintptr_t>(kBytes.data());
  request.len = kSmallPage;
  return ::ioctl(uffd_.get(), UFFDIO_COPY, &request) != 0 && errno == EAGAIN;
}

unsigned long Guest::faults_pending() const {
  // poll() would not distinguish a fault from an event.
  const std::string path = "/proc/self/fdinfo/" + std::to_string(uffd_.get());
  unsigned long pending = 0;
  if (std::FILE* info = std::fopen(path.c_str(), "r")) {
    char line[128];
    while (std::fgets(line, sizeof line, info)) std::sscanf(line, "pending: %lu", &pending);
    std::fclose(info);
  }
  return pending;
}

bool Guest::is_present(uint64_t page) const {
  unsigned char resident[kHugePage / kSmallPage];
  return ::mincore(this->page(page), page_size_, resident) == 0 && (resident[0] & 1);
}

bool Guest::install(uint64_t page, const uint8_t* bytes, bool wake) const {
  uffdio_copy request{};
  request.dst = reinterpret_cast<uintptr_t>(this->page(page));
  request.src = reinterpret_cast<uintptr_t>(bytes);
  request.len = page_size_;
  request.mode = wake ? 0 : UFFDIO_COPY_MODE_DONTWAKE;
  return ::ioctl(uffd_.get(), UFFDIO_COPY, &request) == 0;
}

void Guest::unregister_all() const {
  for (const reap::Region& region : regions_) {
    reap::uffd::unregister(uffd_.get(), region.base, region.size);
    // A thread that was about to wait may have missed the wake-up in there.
    reap::uffd::wake(uffd_.get(), region.base, region.size);
  }
}

bool Guest::map_anew(uint64_t page) const {
  return ::mmap(this->page(page), kSmallPage, PROT_READ | PROT_WRITE,
                MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != MAP_FAILED &&
         register_memory(this->page(page), kSmallPage);
}

Servers::Servers(reap::FaultHandler& handler, unsigned threads)
    : handler_(handler), stop_(::eventfd(0, EFD_CLOEXEC)) {
  for (unsigned i = 0; i < threads; ++i) {
    threads_.emplace_back([this] { run(); });
  }
}

void Servers::stop() {
  const uint64_t one = 1;
  if (::write(stop_.get(), &one, sizeof one) < 0) check::fail(__FILE__, __LINE__, "eventfd");
  for (std::thread& thread : threads_) thread.join();
  threads_.clear();
}

reap::FaultHandler::Served Servers::wait_for_end() const {
  eventually([this] { return ended_ >= 0; });
  return static_cast<reap::FaultHandler::Served>(ended_.load());
}

void Servers::run() {
  using Served = reap::FaultHandler::Served;
  reap::ServeBuffers buffers;
  CHECK(buffers.reserve(handler_.memory().page_size()));
  int timeout_ms = -1;
  for (;;) {
    pollfd ready[] = {{handler_.fd(), POLLIN, 0}, {stop_.get(), POLLIN, 0}};
    ::poll(ready, 2, timeout_ms);
    if (ready[1].revents != 0) return;
    const Served served = handler_.serve(buffers, std::chrono::nanoseconds(0), [] { return true; });
    if (served == Served::gone || served == Served::failed) {
      ended_ = static_cast<int>(served);
      return;
    }
    timeout_ms = served == Served::later || handler_.holds_faults() ? 1 : -1;
  }
}

void wait_until_settled(const std::string& path) {
  struct stat status {};
  CHECK_EQ(::stat(path.c_str(), &status), 0);
  eventually([&] { return reap::is_settled(reap::stamp_of(status)[4]); });
}

Restore::Restore(Shape wanted, bool record)
    : shape(std::move(wanted)),
      directory(shape.directory),
      path(directory.path("memory")),
      bytes(memory_bytes(shape)),
      guest(shape) {
  if (!missing().empty()) return;
  CHECK(write_memory_file(path, shape, bytes));
  if (record) trace.start(shape.page_size, shape.bytes());
  connect();
}

void Restore::connect() {
  wait_until_settled(path);
  CHECK_EQ(memory_file.open(path), 0);
  handshake();
}

void Restore::handshake() {
  handler =
      std::make_unique<reap::FaultHandler>(reap::GuestMemory(guest.regions(), shape.page_size),
                                           guest.uffd_for_the_handler(), memory_file, measured);
  CHECK(handler->ready());
}

Restore::~Restore() = default;

bool Restore::has_file_bytes(uint64_t page) const {
  return std::memcmp(guest.page(page), bytes_of(page), shape.page_size) == 0;
}

bool Restore::is_zero(uint64_t page) const {
  const uint8_t* start = guest.page(page);
  return *start == 0 && std::memcmp(start, start + 1, shape.page_size - 1) == 0;
}

reap::FaultHandler::Filled Restore::fill(uint64_t first_page, uint64_t pages) {
  return handler->fill(first_page * shape.page_size, bytes_of(first_page), pages * shape.page_size,
                       reap::FaultHandler::Purpose::prefetch, never_stop, &error);
}

__attribute__((noinline, no_sanitize("thread"))) uint8_t peek(const uint8_t* address) {
  return *static_cast<const volatile uint8_t*>(address);
}

__attribute__((noinline, no_sanitize("thread"))) void poke(uint8_t* address, uint8_t value) {
  *static_cast<volatile uint8_t*>(address) = value;
}

pid_t this_thread() { return static_cast<pid_t>(::syscall(SYS_gettid)); }

bool is_asleep(pid_t thread) {
  const std::string path = "/proc/self/task/" + std::to_string(thread) + "/stat";
  char state = 'R';
  if (std::FILE* stat = std::fopen(path.c_str(), "r")) {
    // Its pid and its name, which is ours, come first.
    if (std::fscanf(stat, "%*d (%*[^)]) %c", &state) != 1) state = 'R';
    std::fclose(stat);
  }
  return state != 'R';
}

uint64_t threads_here() { return entries("/proc/self/task"); }
uint64_t descriptors_here() { return entries("/proc/self/fd"); }

}  // namespace fixture
