// Sessions through a real socket: serving, prefetching, and all their ends.
#include "session/session.h"

#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <string>

#include "support/check.h"
#include "support/prefetch_fixture.h"
#include "support/vmm_fixture.h"

namespace {

using fixture::connect_to;
using fixture::Counter;
using fixture::EngineRun;
using fixture::handshake_text;
using fixture::Manner;
using fixture::Restore;
using fixture::Shape;
using fixture::VmmProcess;
using reap::EndState;
using reap::ErrorCode;
using reap::Event;

}  // namespace

TEST(a_guest_that_connects_is_served) {
  for (const uint64_t page_size : {fixture::kSmallPage, fixture::kHugePage}) {
    Shape shape;
    shape.page_size = page_size;
    shape.region_pages = {3, 2};
    Restore restore(shape);
    if (!restore.missing().empty()) SKIP(restore.missing());
    EngineRun run;
    fixture::SessionOptions options = options_of(restore);
    options.record = true;  // one fault, one page
    const EngineRun::Opened session = run.open(options);
    const reap::UniqueFd connection = connect_guest(restore);
    const Event connected = run.wait(Event::Kind::connected, session.id);
    CHECK_EQ(connected.pid, ::getpid());
    CHECK_EQ(connected.page_size, page_size);
    CHECK_EQ(connected.regions.size(), 2);
    CHECK(restore.guest.remove(1));
    for (uint64_t page = 0; page < 5; ++page) {
      CHECK(page == 1 ? restore.is_zero(page) : restore.has_file_bytes(page));
    }
    CHECK(::access(socket_of(restore).c_str(), F_OK) != 0);
    CHECK(run.close(session.id, false));
    const Event ended = run.wait_for_end(session.id);
    CHECK_EQ(ended.state, EndState::vm_left);
    CHECK_EQ(ended.failure.code, ErrorCode::none);
    CHECK_EQ(session.get(Counter::faults), 5 + session.get(Counter::present));
    CHECK_EQ(session.get(Counter::installed) + session.get(Counter::zero), 5);
    CHECK(!run.close(session.id, false));
  }
}

TEST(a_handshake_may_come_in_pieces) {
  Restore restore;
  if (!restore.missing().empty()) SKIP(restore.missing());
  EngineRun run;
  const EngineRun::Opened session = run.open(options_of(restore));
  const reap::UniqueFd connection = connect_to(socket_of(restore));
  const std::string text = handshake_text(restore.guest, 4096);
  for (size_t i = 0; i < text.size(); ++i) {
    std::vector<int> descriptors;
    if (i == text.size() / 2) descriptors.push_back(restore.guest.uffd());
    CHECK(fixture::send(connection.get(), text.substr(i, 1), descriptors));
  }
  run.wait(Event::Kind::connected, session.id);
  for (uint64_t page = 0; page < 64; ++page) CHECK(restore.has_file_bytes(page));
}

TEST(a_blocking_userfaultfd_is_served_too) {
  Restore restore;
  if (!restore.missing().empty()) SKIP(restore.missing());
  CHECK_EQ(::fcntl(restore.guest.uffd(), F_SETFL, 0), 0);
  EngineRun run;
  run.open(options_of(restore));
  const reap::UniqueFd connection = connect_guest(restore);
  CHECK(restore.has_file_bytes(5));
}

TEST(a_prefetch_starts_with_the_session_and_is_counted) {
  Restore restore;
  if (!restore.missing().empty()) SKIP(restore.missing());
  EngineRun run;
  fixture::SessionOptions options = options_of(restore);
  const fixture::Set set = write_working_set(restore, {{{0, 8}}, {{32, 8}, {48, 2, true}}});
  options.plan = std::make_shared<const reap::Plan>(set);
  options.proven = set.proven;
  options.record = true;
  const EngineRun::Opened session = run.open(options);
  fixture::eventually([&] { return session.get(Counter::bytes_read) == 16 * 4096; });
  const reap::UniqueFd connection = connect_guest(restore);
  const Event prefetched = run.wait(Event::Kind::prefetched, session.id);
  CHECK_EQ(prefetched.failure.code, ErrorCode::none);
  CHECK_EQ(prefetched.prefetch.pages, 18);
  CHECK_EQ(prefetched.prefetch.extents, 3);
  CHECK(restore.guest.is_present(39));
  CHECK(restore.is_zero(49));
  CHECK(restore.has_file_bytes(20));
  CHECK(restore.has_file_bytes(33));
  CHECK_EQ(session.get(Counter::residual_faults), 1);
  CHECK_EQ(session.get(Counter::late_faults), 0);
  const auto trace = *session.measured->trace.take();
  CHECK_EQ(trace.touches.size(), 1);
  CHECK_EQ(trace.touches[0].page, 20);
}

TEST(a_detached_guest_has_every_page_and_needs_no_handler) {
  Restore restore;
  if (!restore.missing().empty()) SKIP(restore.missing());
  EngineRun run;
  const EngineRun::Opened session = run.open(options_of(restore, true));
  CHECK(!run.find(session.id)->detach());
  const reap::UniqueFd connection = connect_guest(restore);
  run.wait(Event::Kind::connected, session.id);
  CHECK(restore.guest.remove(9));
  CHECK(run.find(session.id)->detach());
  CHECK_EQ(run.wait_for_end(session.id).state, EndState::detached);
  run.shut_down();
  for (uint64_t page = 0; page < 64; ++page) {
    CHECK(page == 9 ? restore.is_zero(page) : restore.has_file_bytes(page));
  }
  // Unregistered in the kernel, too: the page is zero at the next touch, not waited for.
  CHECK(restore.guest.remove(10));
  CHECK(restore.is_zero(10));
}

TEST(a_vmm_in_another_process_is_served_until_it_exits) {
  for (const uint64_t page_size : {fixture::kSmallPage, fixture::kHugePage}) {
    Shape shape;
    shape.page_size = page_size;
    shape.region_pages = {3, 5};
    shape.descending = true;
    shape.holes = {2};
    Restore restore(shape);
    if (!restore.missing().empty()) SKIP(restore.missing());
    VmmProcess vmm(shape, socket_of(restore), Manner::touches_its_memory);
    EngineRun run;
    fixture::SessionOptions options = options_of(restore, true);
    options.record = true;  // one fault, one page
    const EngineRun::Opened session = run.open(options);
    CHECK(vmm.had_the_right_bytes());
    CHECK_EQ(run.wait(Event::Kind::connected, session.id).pid, vmm.pid());
    vmm.exit_by_itself();
    const Event ended = run.wait_for_end(session.id);
    CHECK_EQ(ended.state, EndState::vm_exited);
    CHECK_EQ(ended.failure.code, ErrorCode::none);
    CHECK_EQ(vmm.end(), 0);
    CHECK_EQ(session.get(Counter::faults), 8 + session.get(Counter::present));
  }
}

TEST(closing_kills_the_vm_or_leaves_it_as_asked) {
  for (const bool kill : {true, false}) {
    check::about = kill ? "kill" : "leave";
    Restore restore;
    if (!restore.missing().empty()) SKIP(restore.missing());
    VmmProcess vmm(restore.shape, socket_of(restore), Manner::waits);
    EngineRun run;
    const EngineRun::Opened session = run.open(options_of(restore, !kill));
    run.wait(Event::Kind::connected, session.id);
    CHECK(run.close(session.id, kill));
    const Event ended = run.wait_for_end(session.id);
    CHECK_EQ(ended.state, kill ? EndState::vm_killed : EndState::vm_left);
    CHECK_EQ(ended.pid, vmm.pid());
    if (kill) {
      CHECK_EQ(vmm.end(), SIGKILL);
    } else {
      CHECK(vmm.is_alive());
    }
  }
}

TEST(a_vm_whose_fault_cannot_be_served_is_killed_or_left_as_asked) {
  for (const bool kill : {true, false}) {
    check::about = kill ? "kill" : "leave";
    Restore restore;
    if (!restore.missing().empty()) SKIP(restore.missing());
    VmmProcess vmm(restore.shape, socket_of(restore), Manner::touches_its_memory);
    EngineRun run;
    CHECK_EQ(::truncate(restore.path.c_str(), 64 * 4096), 0);
    fixture::Hooks hooks;
    reap::hooks::before_serve = [&] {
      CHECK_EQ(::truncate(restore.path.c_str(), 10 * 4096 + 1), 0);
    };
    const EngineRun::Opened session = run.open(options_of(restore, kill));
    const Event ended = run.wait_for_end(session.id);
    CHECK_EQ(ended.state, kill ? EndState::vm_killed : EndState::vm_left);
    CHECK_EQ(ended.failure.code, ErrorCode::source_read);
    CHECK_EQ(ended.failure.check, "changed");
    CHECK_EQ(vmm.is_alive(), !kill);
    run.shut_down();
  }
}

TEST(the_end_of_the_engine_ends_every_session_as_its_options_specify) {
  Restore listening;
  Restore connected;
  Restore killed;
  Restore left;
  if (!listening.missing().empty()) SKIP(listening.missing());
  VmmProcess kill(killed.shape, socket_of(killed), Manner::waits);
  VmmProcess leave(left.shape, socket_of(left), Manner::waits);
  EngineRun run;
  const auto first = run.open(options_of(listening, true));
  const auto second = run.open(options_of(connected, true));
  const auto third = run.open(options_of(killed, true));
  const auto fourth = run.open(options_of(left, false));
  const reap::UniqueFd connection = connect_to(socket_of(connected));
  run.wait(Event::Kind::connected, third.id);
  run.wait(Event::Kind::connected, fourth.id);
  run.shut_down();
  CHECK_EQ(run.wait_for_end(first.id).state, EndState::closed);
  CHECK_EQ(run.wait_for_end(second.id).state, EndState::closed);
  CHECK_EQ(run.wait_for_end(third.id).state, EndState::vm_killed);
  CHECK_EQ(run.wait_for_end(fourth.id).state, EndState::vm_left);
  CHECK_EQ(kill.end(), SIGKILL);
  CHECK(leave.is_alive());
  CHECK(::access(socket_of(listening).c_str(), F_OK) != 0);
}

TEST(an_engine_serves_64_guests_with_a_handful_of_threads_and_leaves_nothing_behind) {
  constexpr size_t kGuests = 64;
  std::vector<std::unique_ptr<Restore>> restores;
  for (size_t i = 0; i < kGuests; ++i) {
    Shape shape;
    shape.region_pages = {16};
    restores.push_back(std::make_unique<Restore>(shape));
    if (!restores[i]->missing().empty()) SKIP(restores[i]->missing());
  }
  const uint64_t threads = fixture::threads_here();
  const uint64_t descriptors = fixture::descriptors_here();
  {
    EngineRun run;
    std::vector<EngineRun::Opened> sessions;
    std::vector<reap::UniqueFd> connections;
    for (const auto& restore : restores) {
      fixture::SessionOptions options = options_of(*restore);
      const fixture::Set set = write_working_set(*restore, {{{4, 4}}});
      options.plan = std::make_shared<const reap::Plan>(set);
      options.proven = set.proven;
      options.connect_timeout = std::chrono::seconds(20);
      sessions.push_back(run.open(options));
      connections.push_back(connect_guest(*restore));
    }
    for (uint64_t page = 0; page < 16; ++page) {
      for (const auto& restore : restores) CHECK(restore->has_file_bytes(page));
    }
    for (const auto& session : sessions) {
      CHECK(!run.wait(Event::Kind::prefetched, session.id).failure);
    }
    CHECK(fixture::threads_here() < threads + kGuests / 2);
    // Some end by themselves, the others with the engine.
    for (size_t i = 0; i < kGuests; i += 2) {
      CHECK(run.close(sessions[i].id, false));
      CHECK_EQ(run.wait_for_end(sessions[i].id).state, EndState::vm_left);
    }
  }
  fixture::eventually([&] { return fixture::threads_here() <= threads; });
  CHECK_EQ(fixture::descriptors_here(), descriptors);
}

TEST(a_session_that_has_ended_leaves_no_timer) {
  Restore restore(Shape{});
  if (!restore.missing().empty()) SKIP(restore.missing());
  EngineRun run;
  fixture::SessionOptions options = options_of(restore);
  options.connect_timeout = std::chrono::hours(24);
  const EngineRun::Opened waiting = run.open(options);
  CHECK_EQ(run.engine().reactor().timer_count(), 1);
  CHECK(run.close(waiting.id, false));
  run.wait_for_end(waiting.id);
  const EngineRun::Opened served = run.open(options);
  const reap::UniqueFd connection = connect_guest(restore);
  run.wait(Event::Kind::connected, served.id);
  CHECK(run.close(served.id, false));
  run.wait_for_end(served.id);
  CHECK_EQ(run.engine().reactor().timer_count(), 0);
}
