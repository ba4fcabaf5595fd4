// VMMs that ask their userfaultfd for more than missing pages.
#include <linux/userfaultfd.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <string>
#include <thread>

#include "support/check.h"
#include "support/vmm_fixture.h"

namespace {

using fixture::Restore;
using fixture::Servers;
using fixture::Shape;
using reap::EndState;
using reap::ErrorCode;
using Served = reap::FaultHandler::Served;

Shape shape_with(uint64_t features) {
  Shape shape;
  shape.features = features;
  return shape;
}

bool register_as(const Restore& restore, uint64_t mode) {
  uffdio_register request{};
  request.range.start = restore.guest.regions()[0].base;
  request.range.len = restore.guest.regions()[0].size;
  request.mode = mode;
  return ::ioctl(restore.guest.uffd(), UFFDIO_REGISTER, &request) == 0;
}

// A process that touches the page and reports whether it has the file's bytes.
pid_t fork_child(const Restore& restore, uint64_t page) {
  const pid_t child = ::fork();
  if (child != 0) return child;
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  ::_exit(restore.has_file_bytes(page) ? 0 : 1);
}

void check_refusal(uint64_t feature, const char* name) {
  const Shape shape = shape_with(feature);
  const std::string missing = fixture::Guest(shape).missing();
  if (!missing.empty()) SKIP(missing);
  const Restore restore;
  for (const bool kill : {true, false}) {
    check::about = kill ? "kill" : "leave";
    fixture::VmmProcess vmm(shape, socket_of(restore), fixture::Manner::waits);
    fixture::EngineRun run;
    const reap::Event ended = run.wait_for_end(run.open(options_of(restore, kill)).id);
    CHECK_EQ(ended.failure.code, ErrorCode::vmm_unsupported);
    CHECK_EQ(ended.failure.check, name);
    CHECK_EQ(ended.state, kill ? EndState::vm_killed : EndState::vm_left);
    CHECK_EQ(vmm.is_alive(), !kill);
  }
}

void check_end(const Restore& restore, const Servers& servers, const char* check) {
  CHECK(servers.wait_for_end() == Served::failed);
  CHECK_EQ(restore.handler->failure().code, ErrorCode::vmm_unsupported);
  CHECK_EQ(restore.handler->failure().check, check);
}

// A write to the page ends the serving.
void check_write(const Restore& restore, uint64_t page, const char* check) {
  Servers servers(*restore.handler);
  std::thread vcpu([&] { fixture::poke(restore.guest.page(page), 1); });
  check_end(restore, servers, check);
  restore.guest.unregister_all();
  vcpu.join();
}

}  // namespace

TEST(a_write_protect_fault_ends_the_serving) {
  Restore restore(shape_with(UFFD_FEATURE_PAGEFAULT_FLAG_WP));
  if (!restore.missing().empty()) SKIP(restore.missing());
  if (!register_as(restore, UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP)) {
    SKIP("needs write protection by userfaultfd");
  }
  CHECK_EQ(restore.fill(3, 1), reap::FaultHandler::Filled::all);
  uffdio_writeprotect protect{};
  protect.range.start = reinterpret_cast<uintptr_t>(restore.guest.page(3));
  protect.range.len = restore.page_size();
  protect.mode = UFFDIO_WRITEPROTECT_MODE_WP;
  CHECK_EQ(::ioctl(restore.guest.uffd(), UFFDIO_WRITEPROTECT, &protect), 0);
  check_write(restore, 3, "write-protect-fault");
}

TEST(a_minor_fault_ends_the_serving) {
  Restore restore(shape_with(UFFD_FEATURE_MINOR_SHMEM));
  if (!restore.missing().empty()) SKIP(restore.missing());
  const reap::Region region = restore.guest.regions()[0];
  const reap::UniqueFd memory(::memfd_create("guest", MFD_CLOEXEC));
  CHECK_EQ(::ftruncate(memory.get(), static_cast<off_t>(region.size)), 0);
  CHECK_EQ(::pwrite(memory.get(), "page", 4, 0), 4);
  CHECK(::mmap(reinterpret_cast<void*>(region.base), region.size, PROT_READ | PROT_WRITE,
               MAP_SHARED | MAP_FIXED, memory.get(), 0) != MAP_FAILED);
  CHECK(register_as(restore, UFFDIO_REGISTER_MODE_MINOR));
  check_write(restore, 0, "minor-fault");
}

TEST(a_vmm_that_asks_for_fork_events_is_refused_and_killed) {
  check_refusal(UFFD_FEATURE_EVENT_FORK, "fork");
}

TEST(a_vmm_that_asks_for_signals_is_refused_and_killed) {
  check_refusal(UFFD_FEATURE_SIGBUS, "sigbus");
}

// Where /proc does not tell what the VMM has asked for.
TEST(a_fork_ends_the_serving_and_the_child_reads_no_zeros) {
  Restore restore(shape_with(UFFD_FEATURE_EVENT_FORK));
  if (!restore.missing().empty()) SKIP(restore.missing());
  Servers servers(*restore.handler);
  const pid_t child = fork_child(restore, 5);
  check_end(restore, servers, "fork");
  fixture::Flag().set_within_a_moment();
  CHECK_EQ(::waitpid(child, nullptr, WNOHANG), 0);
  ::kill(child, SIGKILL);
  int status = 0;
  CHECK_EQ(::waitpid(child, &status, 0), child);
  CHECK(WIFSIGNALED(status));
}
