// fill(): its response to each result of the kernel, and detaching (fill everything, unregister).
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string>

#include "support/check.h"
#include "support/guest_fixture.h"

namespace {

using fixture::Counter;
using fixture::Restore;
using fixture::Servers;
using fixture::Shape;
using reap::uffd::Outcome;
using Filled = reap::FaultHandler::Filled;
using Served = reap::FaultHandler::Served;

// A VMM in a separate process, so that its memory can disappear while the handler lives.
class OtherVmm {
 public:
  explicit OtherVmm(const Shape& shape) {
    int pair[2];
    if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) != 0) return;
    const reap::UniqueFd ours(pair[0]);
    reap::UniqueFd theirs(pair[1]);
    pid_ = ::fork();
    if (pid_ == 0) run(shape, theirs.get());
    theirs.reset();
    receive(ours.get());
  }
  ~OtherVmm() {
    if (pid_ > 0) kill();
  }
  // What the machine lacks, or empty.
  const std::string& missing() const { return missing_; }
  reap::UniqueFd take_uffd() { return std::move(uffd_); }
  reap::Region region() const { return region_; }
  void kill() {
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
    pid_ = -1;
  }

 private:
  [[noreturn]] static void run(const Shape& shape, int socket) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    const fixture::Guest guest(shape);
    if (!guest.missing().empty()) ::_exit(1);
    reap::Region region = guest.regions()[0];
    iovec part{&region, sizeof region};
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
    msghdr header{};
    header.msg_iov = &part;
    header.msg_iovlen = 1;
    header.msg_control = control;
    header.msg_controllen = sizeof control;
    cmsghdr* rights = CMSG_FIRSTHDR(&header);
    rights->cmsg_level = SOL_SOCKET;
    rights->cmsg_type = SCM_RIGHTS;
    rights->cmsg_len = CMSG_LEN(sizeof(int));
    const int uffd = guest.uffd();
    std::memcpy(CMSG_DATA(rights), &uffd, sizeof uffd);
    if (::sendmsg(socket, &header, 0) < 0) ::_exit(1);
    fixture::peek(guest.page(0));
    for (;;) ::pause();
  }

  void receive(int socket) {
    iovec part{&region_, sizeof region_};
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
    msghdr header{};
    header.msg_iov = &part;
    header.msg_iovlen = 1;
    header.msg_control = control;
    header.msg_controllen = sizeof control;
    if (::recvmsg(socket, &header, MSG_CMSG_CLOEXEC) != sizeof region_) {
      missing_ = "needs a userfaultfd and memory in a child process";
      return;
    }
    int uffd = -1;
    std::memcpy(&uffd, CMSG_DATA(CMSG_FIRSTHDR(&header)), sizeof uffd);
    uffd_.reset(uffd);
  }

  pid_t pid_ = -1;
  std::string missing_;
  reap::UniqueFd uffd_;
  reap::Region region_{};
};

}  // namespace

TEST(the_results_of_an_install_ioctl_are_distinguished) {
  struct Row {
    int error;
    int64_t done;
    Outcome outcome;
    uint64_t bytes;
  };
  const Row rows[] = {
      {0, 8192, Outcome::installed, 8192},
      {EAGAIN, 4096, Outcome::partial, 4096},
      {EEXIST, 4096, Outcome::partial, 4096},
      {ENOENT, 4096, Outcome::partial, 4096},
      {EAGAIN, -EAGAIN, Outcome::deferred, 0},
      {EAGAIN, 0, Outcome::deferred, 0},
      {EEXIST, -EEXIST, Outcome::present, 0},
      {EEXIST, -17, Outcome::present, 0},
      {ENOENT, -ENOENT, Outcome::unregistered, 0},
      {ENOENT, 0, Outcome::unregistered, 0},
      {ENOMEM, -ENOMEM, Outcome::no_memory, 0},
      {ESRCH, 0, Outcome::gone, 0},
      {EINVAL, 0, Outcome::failed, 0},
      {EINVAL, -EINVAL, Outcome::failed, 0},
      {EFAULT, -EFAULT, Outcome::failed, 0},
      {ENOSPC, 0, Outcome::failed, 0},
  };
  for (const Row& row : rows) {
    check::about = "errno " + std::to_string(row.error) + ", " + std::to_string(row.done);
    const reap::uffd::Result result = reap::uffd::classify(row.error, row.done, 8192);
    CHECK_EQ(result.outcome, row.outcome);
    CHECK_EQ(result.bytes, row.bytes);
    CHECK_EQ(result.err, -row.error);
  }
}

TEST(a_run_that_meets_a_present_page_continues_after_it) {
  Restore restore;
  if (!restore.missing().empty()) SKIP(restore.missing());
  const std::vector<uint8_t> others(4096, 0x77);
  CHECK(restore.guest.install(3, others.data()));
  CHECK(restore.guest.install(4, others.data()));
  CHECK(restore.fill(0, 8) == Filled::all);
  for (const uint64_t page : {0, 1, 2, 5, 6, 7}) CHECK(restore.has_file_bytes(page));
  for (const uint64_t page : {3, 4}) {
    CHECK_EQ(std::memcmp(restore.guest.page(page), others.data(), 4096), 0);
  }
  CHECK_EQ(restore.get(Counter::present), 2);
  CHECK_EQ(restore.get(Counter::prefetched), 6);
}

TEST(a_huge_page_that_a_fault_has_installed_is_not_installed_again) {
  fixture::Hooks hooks;
  fixture::Hold installing;
  Shape shape;
  shape.page_size = fixture::kHugePage;
  shape.region_pages = {4};
  Restore restore(shape);
  if (!restore.missing().empty()) SKIP(restore.missing());
  // Two servers have each read a fault on the same page; the second one finds it present.
  reap::hooks::before_install = installing.hook();
  Servers servers(*restore.handler, 2);
  std::thread first([&] { CHECK(restore.has_file_bytes(2)); });
  installing.wait_until_held();
  std::thread second([&] { CHECK(restore.has_file_bytes(2)); });
  second.join();
  installing.release();
  first.join();
  servers.stop();
  CHECK_EQ(restore.get(Counter::installed), 1);
  CHECK_EQ(restore.get(Counter::present), 1);
}

TEST(zeros_are_installed_without_bytes) {
  for (const uint64_t page_size : {fixture::kSmallPage, fixture::kHugePage}) {
    Shape shape;
    shape.page_size = page_size;
    shape.region_pages = {4};
    Restore restore(shape);
    if (!restore.missing().empty()) SKIP(restore.missing());
    CHECK(restore.handler->fill(page_size, nullptr, 2 * page_size,
                                reap::FaultHandler::Purpose::prefetch, restore.never_stop,
                                &restore.error) == Filled::all);
    CHECK(restore.is_zero(1));
    CHECK(restore.is_zero(2));
    CHECK(!restore.guest.is_present(0));
    CHECK(!restore.guest.is_present(3));
    CHECK_EQ(restore.get(Counter::zero), 2);
  }
}

TEST(a_run_over_unregistered_and_unmapped_holes_is_split) {
  Shape shape;
  shape.region_pages = {40, 24};
  Restore restore(shape);
  if (!restore.missing().empty()) SKIP(restore.missing());
  const auto address = [&](uint64_t page) {
    return reinterpret_cast<uint64_t>(restore.guest.page(page));
  };
  CHECK_EQ(reap::uffd::unregister(restore.guest.uffd(), address(5), 2 * 4096), 0);
  CHECK_EQ(::munmap(restore.guest.page(20), 4096), 0);
  CHECK_EQ(reap::uffd::unregister(restore.guest.uffd(), address(63), 4096), 0);
  CHECK(restore.fill(0, 64) == Filled::all);
  for (uint64_t page = 0; page < 64; ++page) {
    if (page == 5 || page == 6 || page == 63) {
      CHECK(restore.is_zero(page));
    } else if (page != 20) {
      CHECK(restore.guest.is_present(page));
      CHECK(restore.has_file_bytes(page));
    }
  }
  CHECK_EQ(restore.get(Counter::discarded), 4);
  CHECK_EQ(restore.get(Counter::prefetched), 60);
  // A second call skips the pages that the first one installed and retries the holes.
  CHECK(restore.fill(0, 64) == Filled::all);
  CHECK_EQ(restore.get(Counter::prefetched), 60);
  CHECK_EQ(restore.handler->unregister(), 0);
}

TEST(a_fault_whose_page_was_unregistered_meanwhile_is_discarded) {
  fixture::Hooks hooks;
  fixture::Hold serving;
  Restore restore;
  if (!restore.missing().empty()) SKIP(restore.missing());
  reap::hooks::before_serve = serving.hook();
  Servers servers(*restore.handler);
  std::thread vcpu([&] { CHECK(restore.is_zero(3)); });
  serving.wait_until_held();
  restore.guest.unregister_all();
  serving.release();
  vcpu.join();
  servers.stop();
  CHECK_EQ(restore.get(Counter::discarded), 1);
}

TEST(a_vmm_that_is_gone_ends_the_serving_the_prefetch_and_a_detach) {
  for (const uint64_t page_size : {fixture::kSmallPage, fixture::kHugePage}) {
    fixture::Hooks hooks;
    fixture::Hold serving;
    Shape shape;
    shape.page_size = page_size;
    shape.region_pages = {4};
    Restore restore(shape);
    OtherVmm vmm(shape);
    if (!restore.missing().empty()) SKIP(restore.missing());
    if (!vmm.missing().empty()) SKIP(vmm.missing());
    reap::hooks::before_serve = serving.hook();
    reap::FaultHandler handler(reap::GuestMemory({vmm.region()}, page_size), vmm.take_uffd(),
                               restore.memory_file, restore.measured);
    Servers servers(handler);
    serving.wait_until_held();
    vmm.kill();
    serving.release();
    CHECK(servers.wait_for_end() == Served::gone);
    int error = 0;
    CHECK(handler.fill(0, restore.bytes.data(), shape.bytes(),
                       reap::FaultHandler::Purpose::prefetch, restore.never_stop,
                       &error) == Filled::gone);
    CHECK_EQ(restore.get(Counter::discarded), 2);
    CHECK_EQ(restore.get(Counter::installed), 0);
    CHECK_EQ(handler.unregister(), -ESRCH);
    CHECK_EQ(handler.failure().code, reap::ErrorCode::none);
  }
}

TEST(a_fill_stops_on_request) {
  fixture::Hooks hooks;
  Restore restore;
  if (!restore.missing().empty()) SKIP(restore.missing());
  CHECK(restore.guest.install(3, restore.bytes_of(3)));
  std::atomic<bool> stop{false};
  reap::hooks::before_prefetch_install = [&] { stop = true; };
  CHECK(restore.handler->fill(0, restore.bytes.data(), restore.shape.bytes(),
                              reap::FaultHandler::Purpose::prefetch, stop,
                              &restore.error) == Filled::stopped);
  for (uint64_t page = 0; page < 64; ++page) {
    CHECK_EQ(restore.guest.is_present(page), page <= 3);
  }
}

// The end of detach(): every page is present, so the guest needs no handler.
TEST(a_guest_that_is_filled_and_unregistered_has_the_right_bytes_everywhere) {
  constexpr uint64_t kThreads = 4;
  Shape shape;
  shape.region_pages = {1024, 1024};
  shape.holes = {7, 8, 9, 1500};
  Restore restore(shape);
  if (!restore.missing().empty()) SKIP(restore.missing());
  std::vector<bool> removed[kThreads];
  std::atomic<bool> filled{false};
  std::vector<std::thread> vcpus;
  Servers servers(*restore.handler, 2);
  fixture::Barrier together(kThreads + 1);
  for (uint64_t i = 0; i < kThreads; ++i) {
    vcpus.emplace_back([&, i] {
      // Each thread has separate pages, so that it knows their content.
      std::vector<bool>& mine = removed[i];
      mine.resize(shape.pages());
      uint64_t random = i + 1;
      together.arrive_and_wait();
      for (int step = 0; step < 200 || (!filled && step < 20000); ++step) {
        random = random * 6364136223846793005 + 1442695040888963407;
        const uint64_t page = (random >> 33) % (shape.pages() / kThreads) * kThreads + i;
        if ((random >> 60) < 4) {
          CHECK(restore.guest.remove(page));
          mine[page] = true;
        } else {
          const uint64_t at = (random >> 20) % 4096;
          CHECK_EQ(fixture::peek(restore.guest.page(page) + at),
                   mine[page] ? 0 : restore.bytes_of(page)[at]);
        }
      }
    });
  }
  together.arrive_and_wait();
  fixture::eventually([&] {
    const Filled end = restore.fill(0, shape.pages());
    CHECK(end == Filled::all || end == Filled::deferred);
    return end == Filled::all;
  });
  CHECK_EQ(restore.handler->unregister(), 0);
  filled = true;
  for (std::thread& vcpu : vcpus) vcpu.join();
  servers.stop();
  for (uint64_t page = 0; page < shape.pages(); ++page) {
    check::about = "page " + std::to_string(page);
    CHECK(removed[page % kThreads][page] ? restore.is_zero(page) : restore.has_file_bytes(page));
  }
}
