#include "store.h"

#include <algorithm>

#include "hash.h"

namespace reap::guest {

namespace {

size_t document_bytes(size_t body_words) {
  return (Document::kHeaderWords + body_words) * sizeof(uint64_t);
}

size_t node_bytes(size_t height) { return sizeof(IndexNode) + height * sizeof(IndexNode*); }

}  // namespace

bool Store::initialize(Heap* heap, size_t bucket_count) {
  *this = Store{};
  heap_ = heap;
  bucket_count_ = bucket_count;
  buckets_ = static_cast<Document**>(heap->allocate(bucket_count * sizeof(Document*)));
  head_ = make_node(0, 0, nullptr, kMaxHeight);
  if (buckets_ == nullptr || head_ == nullptr) return false;
  std::fill_n(buckets_, bucket_count, nullptr);
  return true;
}

Document* Store::insert(uint64_t key, uint64_t tags, size_t body_words) {
  auto* document = static_cast<Document*>(heap_->allocate(document_bytes(body_words)));
  if (document == nullptr) return nullptr;
  // Half of the nodes reach the second level, a quarter the third, and so on.
  const unsigned height = std::min<unsigned>(
      kMaxHeight, 1 + static_cast<unsigned>(__builtin_ctzll(mix(key) | 1 << 20)));
  IndexNode* node = make_node(key, tags, document, height);
  if (node == nullptr) return nullptr;

  Document** bucket = bucket_of(key);
  *document = {key, tags, *bucket, 0, body_words};
  *bucket = document;
  const Path path = path_to(key);
  for (unsigned level = 0; level < height; level++) {
    node->next()[level] = path.before[level]->next()[level];
    path.before[level]->next()[level] = node;
  }
  for (uint64_t rest = tags; rest != 0; rest &= rest - 1) {
    if (!post(static_cast<unsigned>(__builtin_ctzll(rest)), document)) return nullptr;
  }
  size_++;
  return document;
}

bool Store::remove(uint64_t key) {
  Document** link = bucket_of(key);
  while (*link != nullptr && (*link)->key != key) link = &(*link)->next_in_bucket;
  Document* document = *link;
  if (document == nullptr) return false;
  *link = document->next_in_bucket;

  const Path path = path_to(key);
  IndexNode* node = path.before[0]->next()[0];
  for (unsigned level = 0; level < node->height; level++) {
    path.before[level]->next()[level] = node->next()[level];
  }
  for (uint64_t rest = document->tags; rest != 0; rest &= rest - 1) {
    unpost(static_cast<unsigned>(__builtin_ctzll(rest)), document);
  }
  heap_->release(node, node_bytes(node->height));
  heap_->release(document, document_bytes(document->body_words));
  size_--;
  return true;
}

Document* Store::find(uint64_t key) const {
  Document* document = *bucket_of(key);
  while (document != nullptr && document->key != key) document = document->next_in_bucket;
  return document;
}

IndexNode* Store::lower_bound(uint64_t key) const { return path_to(key).before[0]->next()[0]; }

IndexNode* Store::make_node(uint64_t key, uint64_t tags, Document* document, unsigned height) {
  auto* node = static_cast<IndexNode*>(heap_->allocate(node_bytes(height)));
  if (node == nullptr) return nullptr;
  *node = {key, tags, document, height};
  std::fill_n(node->next(), height, nullptr);
  return node;
}

Store::Path Store::path_to(uint64_t key) const {
  Path path;
  IndexNode* node = head_;
  for (unsigned level = kMaxHeight; level-- > 0;) {
    while (node->next()[level] != nullptr && node->next()[level]->key < key) {
      node = node->next()[level];
    }
    path.before[level] = node;
  }
  return path;
}

bool Store::post(unsigned tag, Document* document) {
  PostingBlock* block = postings_[tag];
  if (block == nullptr || block->count == PostingBlock::kCapacity) {
    block = static_cast<PostingBlock*>(heap_->allocate(sizeof(PostingBlock)));
    if (block == nullptr) return false;
    block->next = postings_[tag];
    block->count = 0;
    postings_[tag] = block;
  }
  block->documents[block->count++] = document;
  return true;
}

void Store::unpost(unsigned tag, Document* document) {
  PostingBlock* head = postings_[tag];
  for (PostingBlock* block = head; block != nullptr; block = block->next) {
    Document** end = block->documents + block->count;
    Document** entry = std::find(block->documents, end, document);
    if (entry == end) continue;
    // Only the first block may have room, so its last entry fills the gap.
    *entry = head->documents[--head->count];
    if (head->count == 0) {
      postings_[tag] = head->next;
      heap_->release(head, sizeof(PostingBlock));
    }
    return;
  }
}

}  // namespace reap::guest
