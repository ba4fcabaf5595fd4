// A thread that waits for the first fault on memory without a handler.
#pragma once

namespace reap::interposer {

class Watcher {
 public:
  // Calls `on_fault` once, when the userfaultfd is readable, unless stop() was called before.
  // Returns 0 or a negative errno.
  int start(int userfaultfd, void (*on_fault)());
  // Called once, by the thread that ends the wait, possibly from `on_fault`.
  void stop() const;

 private:
  static void* run(void* self);

  int userfaultfd_ = -1;
  int stop_ = -1;  // an eventfd; the thread closes it
  void (*on_fault_)() = nullptr;
};

}  // namespace reap::interposer
