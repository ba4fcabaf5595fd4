// A guest for Firecracker that is no Linux: it boots in milliseconds where stock kernels do not
// boot, and knows itself whether its memory is right. One character on the serial console is a
// request, and the answer is a line: the character, how many requests there were, and `right` or
// `WRONG`.
//
//   s, m, l  walks 10, 30, 64 MiB of scatter pages       o  walks 128 other pages
//   w        walks 30 MiB and writes each page             c  checks what w has written
//   p        walks 64 MiB, a part on each processor        n  puts all links elsewhere in their
//   pages b        makes the balloon as large as the VMM asks    z  checks the pages that the
//   balloon has had
//
// Between requests it halts, and burns nothing.
#include "balloon.h"
#include "chain.h"
#include "machine.h"

namespace reap::microvm {

namespace {

constexpr uint64_t kChainsBegin = kBalloonPages.begin + kBalloonPages.pages * kPageBytes;

uint64_t processors;
/** Last word of the answer, if any. */
uint64_t figure;
bool has_figure;

void also_say(uint64_t value) {
  figure = value;
  has_figure = true;
}

bool answer(uint8_t request) {
  switch (request) {
    case 's':
      return walk_pages(kSmallPages);
    case 'm':
      return walk_pages(kMediumPages);
    case 'l':
      return walk_pages(kLargePages);
    case 'o':
      return walk_other_pages();
    case 'w':
      return write_pages();
    case 'c':
      return check_written();
    case 'p':
      also_say(processors);
      return walk_on_all(processors);
    case 'n':
      relink();
      return true;
    case 'b': {
      const bool right = follow_balloon();
      also_say(balloon_size());
      return right;
    }
    case 'z': {
      uint64_t zeros;
      const bool right = check_balloon_pages(&zeros);
      also_say(zeros);
      return right;
    }
    default:
      return false;
  }
}

}  // namespace

extern "C" [[noreturn]] void start(uint64_t parameters) {
  const BootParameters boot(parameters);
  static Span spans[kMaxSpans];
  set_up_paging();
  set_up_interrupts();
  set_up_console();
  processors = start_processors();
  set_up_balloon(boot.command_line());
  build_chains(spans, boot.memory(kChainsBegin, kMappedBytes, spans));
  say("ready\n");
  for (uint64_t requests = 1;; requests++) {
    const uint8_t request = next_character();
    has_figure = false;
    const bool right = answer(request);
    const char name[] = {static_cast<char>(request), ' ', 0};
    say(name);
    say_number(requests);
    say(right ? " right" : " WRONG");
    if (has_figure) {
      say(" ");
      say_number(figure);
    }
    say("\n");
  }
}

}  // namespace reap::microvm
