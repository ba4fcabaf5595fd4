// Work of a JavaScript environment on other threads, completed by a promise. Not on Node's pool:
// opening a file may wait for a server that never answers, and four such calls would block all
// other files of the program, and the end of a worker thread and of the process.
#pragma once

#include <memory>
#include <mutex>

#include "addon/addon.h"

namespace reap {

class Task {
 public:
  explicit Task(Napi::Env env) : deferred_(env) {}
  virtual ~Task() = default;
  Task(const Task&) = delete;
  Task& operator=(const Task&) = delete;

 protected:
  // Called on a separate thread.
  virtual void execute() = 0;
  // Called on the JavaScript thread if there is no failure.
  virtual Napi::Value result(Napi::Env env) = 0;

  Failure failure_;

 private:
  friend class Tasks;
  Deferred deferred_;
};

// The tasks of an environment. After its end, a task that still runs is left behind.
class Tasks {
 public:
  explicit Tasks(Napi::Env env);
  // Returns a promise of the failure or the result.
  Napi::Value run(std::unique_ptr<Task> task);

 private:
  static void deliver(Napi::Env env, Napi::Function, Tasks* self, Task* task);
  using Completions = Napi::TypedThreadSafeFunction<Tasks, Task, &Tasks::deliver>;
  static void resolve(Napi::Env env, Task& task);

  // Shared with the threads.
  struct Link {
    std::mutex mutex;  // guards what follows
    bool is_closed = false;
    Completions completions;
  };

  const Napi::Env env_;
  const std::shared_ptr<Link> link_ = std::make_shared<Link>();
  unsigned running_ = 0;
};

// Defined in addon.cc.
Tasks& tasks_of(Napi::Env env);

template <typename Kind, typename... Arguments>
Napi::Value run_task(Napi::Env env, Arguments&&... arguments) {
  return tasks_of(env).run(std::make_unique<Kind>(env, std::forward<Arguments>(arguments)...));
}

}  // namespace reap
