#include "chain.h"

namespace reap::microvm {

namespace {

/** Number of neighbours that are touched together, as in a function's data. */
constexpr uint64_t kClusterPages = 3;
constexpr uint64_t kClusters = (kLargePages + kClusterPages - 1) / kClusterPages;
/** Possible ends of walks. */
constexpr uint64_t kMarkPages = 512;
/** The part of a page that the guest reads. */
struct Link {
  Link* next;
  /** Number of writes to the page. */
  uint64_t writes;
};

/** The first page of each cluster, in the order of the walk. */
uint64_t clusters[kClusters];
uint64_t others;
uint64_t generation;
uint64_t rounds_written;
Link* marks[kLargePages / kMarkPages + 1];
Link* first_other;

uint64_t by_chance() {
  static uint64_t state = 88172645463325252;
  state ^= state << 13;
  state ^= state >> 7;
  state ^= state << 17;
  return state;
}

/** Position of a page's link in a generation. */
Link* link_at(uint64_t page, uint64_t in_generation) {
  constexpr uint64_t kSlots = kPageBytes / sizeof(Link);
  const uint64_t slot = (page / kPageBytes * 5 + in_generation * 7) % kSlots;
  return reinterpret_cast<Link*>(page + slot * sizeof(Link));
}

/** Moves a page's link from the previous generation's position to the current one. */
Link* move_link(uint64_t page, uint64_t to) {
  Link* link = link_at(page, to);
  if (to == 0) return link;
  Link* old = link_at(page, to - 1);
  link->writes = old->writes;
  *old = {nullptr, 0};
  return link;
}

void link_all(uint64_t to) {
  Link* previous = nullptr;
  uint64_t step = 0;
  for (const uint64_t first : clusters) {
    for (uint64_t page = first; page < first + kClusterPages * kPageBytes; page += kPageBytes) {
      Link* link = move_link(page, to);
      if (step % kMarkPages == 0 && step <= kLargePages) marks[step / kMarkPages] = link;
      if (step++ > 0) previous->next = link;
      previous = link;
    }
  }
  previous->next = marks[0];
  first_other = move_link(others, to);
  previous = first_other;
  for (uint64_t i = 1; i < kOtherPages; i++) {
    Link* link = move_link(others + i * kPageBytes, to);
    previous->next = link;
    previous = link;
  }
  previous->next = first_other;
  generation = to;
}

/** Follows `left` links, a multiple of the unrolled loop's length. One instruction per page. */
Link* follow(Link* at, uint64_t left) {
  __asm__ volatile(
      "1:\n\t.rept 32\n\tmov (%0), %0\n\t.endr\n\t"
      "sub $32, %1\n\tjnz 1b"
      : "+r"(at), "+r"(left)::"memory");
  return at;
}

Link* follow_and_write(Link* at, uint64_t left) {
  __asm__ volatile(
      "1:\n\t.rept 32\n\tincq 8(%0)\n\tmov (%0), %0\n\t.endr\n\t"
      "sub $32, %1\n\tjnz 1b"
      : "+r"(at), "+r"(left)::"memory");
  return at;
}

Link* follow_and_add(Link* at, uint64_t left, uint64_t* sum) {
  uint64_t added = 0;
  __asm__ volatile(
      "1:\n\t.rept 32\n\tadd 8(%0), %2\n\tmov (%0), %0\n\t.endr\n\t"
      "sub $32, %1\n\tjnz 1b"
      : "+r"(at), "+r"(left), "+r"(added)::"memory");
  *sum = added;
  return at;
}

uint64_t parts;
uint64_t parts_right;

void walk_part(uint64_t number) {
  constexpr uint64_t kMarks = kLargePages / kMarkPages;
  const uint64_t from = number * kMarks / parts;
  const uint64_t to = (number + 1) * kMarks / parts;
  if (follow(marks[from], (to - from) * kMarkPages) == marks[to]) {
    __atomic_add_fetch(&parts_right, 1, __ATOMIC_SEQ_CST);
  }
}

}  // namespace

void build_chains(Span* spans, size_t count) {
  Span& last = spans[count - 1];
  last.pages -= kOtherPages;
  others = last.begin + last.pages * kPageBytes;
  uint64_t pages = 0;
  for (size_t i = 0; i < count; i++) pages += spans[i].pages;
  // The rest of each span is too small for another cluster.
  const uint64_t stride = pages / (kClusters + count);
  if (stride < kClusterPages) give_up("WRONG: too little memory");
  uint64_t made = 0;
  for (size_t i = 0; i < count; i++) {
    for (uint64_t at = 0; at + stride <= spans[i].pages && made < kClusters; at += stride) {
      clusters[made++] = spans[i].begin + at * kPageBytes;
    }
  }
  for (uint64_t i = kClusters - 1; i > 0; i--) {
    const uint64_t other = by_chance() % (i + 1);
    const uint64_t cluster = clusters[i];
    clusters[i] = clusters[other];
    clusters[other] = cluster;
  }
  link_all(0);
}

bool walk_pages(uint64_t pages) { return follow(marks[0], pages) == marks[pages / kMarkPages]; }

bool walk_other_pages() { return follow(first_other, kOtherPages) == first_other; }

bool write_pages() {
  rounds_written++;
  return follow_and_write(marks[0], kMediumPages) == marks[kMediumPages / kMarkPages];
}

bool check_written() {
  uint64_t sum;
  const Link* end = follow_and_add(marks[0], kMediumPages, &sum);
  return end == marks[kMediumPages / kMarkPages] && sum == kMediumPages * rounds_written;
}

bool walk_on_all(uint64_t processors) {
  parts = processors;
  parts_right = 0;
  run_on_all(walk_part);
  return __atomic_load_n(&parts_right, __ATOMIC_SEQ_CST) == processors;
}

void relink() { link_all(generation + 1); }

}  // namespace reap::microvm
