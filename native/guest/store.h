// State of the embedded guest: an in-memory store of tagged documents, with a hash index, an
// ordered index (a skip list) and postings for every tag. Everything lies in the arena and uses
// plain pointers, since the arena is always mapped at the same address.
#pragma once

#include <cstddef>
#include <cstdint>

#include "heap.h"

namespace reap::guest {

struct Document {
  uint64_t key;
  uint64_t tags;  // one bit each
  Document* next_in_bucket;
  uint64_t views;
  uint64_t body_words;
  // The body follows.

  uint64_t* body() { return reinterpret_cast<uint64_t*>(this + 1); }
  static constexpr size_t kHeaderWords = 5;
  size_t words() const { return kHeaderWords + body_words; }
};
static_assert(sizeof(Document) == Document::kHeaderWords * sizeof(uint64_t));

// Includes the tags, so that a scan reads only matching documents.
struct IndexNode {
  uint64_t key;
  uint64_t tags;
  Document* document;
  uint64_t height;
  // `height` pointers to the next nodes follow, the lowest level first.

  IndexNode** next() { return reinterpret_cast<IndexNode**>(this + 1); }
  size_t words() const { return 4 + height; }
};

struct PostingBlock {
  static constexpr size_t kCapacity = 62;
  PostingBlock* next;
  uint64_t count;
  Document* documents[kCapacity];
};

class Store {
 public:
  static constexpr unsigned kTags = 64;

  // False or null if the heap is full.
  bool initialize(Heap* heap, size_t bucket_count);
  // The caller fills in the body. `key` must be new.
  Document* insert(uint64_t key, uint64_t tags, size_t body_words);
  bool remove(uint64_t key);

  Document* find(uint64_t key) const;
  // The first node at or after `key`, or null.
  IndexNode* lower_bound(uint64_t key) const;
  IndexNode* first() const { return head_->next()[0]; }
  const PostingBlock* postings(unsigned tag) const { return postings_[tag]; }
  uint64_t size() const { return size_; }

 private:
  static constexpr unsigned kMaxHeight = 12;
  struct Path {
    IndexNode* before[kMaxHeight];  // per level, the last node before the key
  };

  IndexNode* make_node(uint64_t key, uint64_t tags, Document* document, unsigned height);
  Path path_to(uint64_t key) const;
  Document** bucket_of(uint64_t key) const { return &buckets_[key % bucket_count_]; }
  bool post(unsigned tag, Document* document);
  void unpost(unsigned tag, Document* document);

  Heap* heap_;
  uint64_t size_;
  uint64_t bucket_count_;
  Document** buckets_;
  IndexNode* head_;
  PostingBlock* postings_[kTags];
};

}  // namespace reap::guest
