#include "workload.h"

#include "hash.h"

namespace reap::guest {

namespace {

// Every request renders the documents with this tag: a function touches nearly the same pages in
// every invocation.
constexpr unsigned kFeatured = 0;
constexpr uint64_t kFeaturedOneIn = 6;

constexpr size_t kBuckets = 4096;
constexpr unsigned kLookUps = 12;
constexpr unsigned kRangeScans = 4;
constexpr unsigned kRangeLength = 6;
constexpr unsigned kPostingsFollowed = 24;
constexpr unsigned kInserts = 12;

uint64_t tag_bit(unsigned tag) { return uint64_t{1} << tag; }

// Sixteen letters: text that does not compress, and no zero byte.
void fill(Document* document, Random& random) {
  for (size_t i = 0; i < document->body_words; i++) {
    document->body()[i] = 0x6161616161616161 + (random.next() & 0x0f0f0f0f0f0f0f0f);
  }
}

// Separate statements fix the order of the draws, so that every compiler makes the same snapshot.
uint64_t draw_tags(Random& random) {
  uint64_t tags = random.below(kFeaturedOneIn) == 0 ? tag_bit(kFeatured) : 0;
  for (int i = 0; i < 2; i++) {
    tags |= tag_bit(1 + static_cast<unsigned>(random.below(Store::kTags - 1)));
  }
  return tags;
}

// A quarter of the documents are notes of less than 1 KiB, the others articles of 3 to 11 KiB.
size_t draw_body_words(Random& random) {
  return random.below(4) == 0 ? 16 + random.below(100) : 384 + random.below(1024);
}

// Output of a request: fresh memory, so mostly pages that were never touched.
struct Sheet {
  static constexpr size_t kLines = (Heap::kLargestBlock - 2 * sizeof(uint64_t)) / 32;
  struct Line {
    uint64_t key, digest, views, words;
  };
  Sheet* next;
  uint64_t count;
  Line lines[kLines];
};
static_assert(sizeof(Sheet) <= Heap::kLargestBlock);

class Request {
 public:
  Request(Guest* guest, const std::string& input) : guest_(guest), random_(hash(input)) {}

  Reply run() {
    digest_.add(guest_->requests++);
    render_featured();
    look_up();
    scan_ranges();
    follow_postings();
    insert_documents();
    for (const Sheet* sheet = sheets_; sheet != nullptr; sheet = sheet->next) {
      read(sheet->lines, sheet->count * sizeof(Sheet::Line) / sizeof(uint64_t));
    }
    reply_.digest = digest_.value();
    return reply_;
  }

 private:
  static uint64_t hash(const std::string& input) {
    uint64_t value = input.size();
    for (unsigned char c : input) value = mix(value ^ c);
    return value;
  }

  void read(const void* data, size_t words) {
    digest_.add(data, words);
    reply_.bytes += words * sizeof(uint64_t);
  }

  void read_document(Document* document) {
    read(document, document->words());
    reply_.documents++;
  }

  // In key order, which is not address order.
  void render_featured() {
    for (IndexNode* node = guest_->store.first(); node != nullptr; node = node->next()[0]) {
      read(node, node->words());
      if ((node->tags & tag_bit(kFeatured)) == 0) continue;
      Document* document = node->document;
      read_document(document);
      if (document->key % 3 == 0) {
        document->views++;
        reply_.updated++;
      }
      write_line({document->key, digest_.value(), document->views, document->body_words});
    }
  }

  void look_up() {
    for (unsigned i = 0; i < kLookUps; i++) {
      const IndexNode* node = guest_->store.lower_bound(random_.next());
      if (node == nullptr) continue;
      if (Document* document = guest_->store.find(node->key)) read_document(document);
    }
  }

  void scan_ranges() {
    for (unsigned i = 0; i < kRangeScans; i++) {
      IndexNode* node = guest_->store.lower_bound(random_.next());
      for (unsigned length = 0; node != nullptr && length < kRangeLength; length++) {
        read(node->document, Document::kHeaderWords);
        node = node->next()[0];
      }
    }
  }

  void follow_postings() {
    const auto tag = static_cast<unsigned>(random_.below(Store::kTags));
    unsigned followed = 0;
    for (const PostingBlock* block = guest_->store.postings(tag); block != nullptr;
         block = block->next) {
      for (uint64_t i = 0; i < block->count; i++) {
        if (followed++ == kPostingsFollowed) return;
        read(block->documents[i], Document::kHeaderWords);
      }
    }
  }

  // These reuse memory that was freed before the snapshot.
  void insert_documents() {
    for (unsigned i = 0; i < kInserts; i++) {
      Document* document = guest_->store.insert(random_.next(), tag_bit(kFeatured), 600 + 40 * i);
      if (document == nullptr) return;
      fill(document, random_);
      read_document(document);
    }
  }

  void write_line(const Sheet::Line& line) {
    if (sheets_ == nullptr || sheets_->count == Sheet::kLines) {
      auto* sheet = static_cast<Sheet*>(guest_->heap.allocate(sizeof(Sheet)));
      if (sheet == nullptr) return;
      sheet->next = sheets_;
      sheet->count = 0;
      sheets_ = sheet;
    }
    sheets_->lines[sheets_->count++] = line;
  }

  Guest* guest_;
  Random random_;
  Digest digest_;
  Reply reply_{};
  Sheet* sheets_ = nullptr;
};

}  // namespace

bool build_guest(size_t memory_bytes, uint64_t seed) {
  Guest* guest = Guest::at_arena();
  guest->magic = Guest::kMagic;
  guest->memory_bytes = memory_bytes;
  guest->heap.initialize(reinterpret_cast<uint8_t*>(guest), memory_bytes, kPageBytes, seed);
  if (!guest->store.initialize(&guest->heap, kBuckets)) return false;

  Random random(seed);
  const auto key_of = [seed](uint64_t number) { return mix(mix(seed) + number); };
  uint64_t inserted = 0;
  while (guest->heap.used_bytes() < memory_bytes / 2) {
    if (inserted > 0 && random.below(6) == 0) guest->store.remove(key_of(random.below(inserted)));
    const uint64_t tags = draw_tags(random);
    const size_t body_words = draw_body_words(random);
    Document* document = guest->store.insert(key_of(inserted++), tags, body_words);
    if (document == nullptr) return false;
    fill(document, random);
  }
  return true;
}

Reply handle_request(const std::string& input) { return Request(Guest::at_arena(), input).run(); }

}  // namespace reap::guest
