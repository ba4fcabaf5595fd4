#include "addon/task.h"

#include <utility>

#include "base/thread_pool.h"

namespace reap {

Tasks::Tasks(Napi::Env env) : env_(env) {
  link_->completions = Completions::New(env, Napi::Function(), "reap-trace", 0, 1, this);
  // In a worker thread that is being terminated there is none.
  link_->is_closed = static_cast<napi_threadsafe_function>(link_->completions) == nullptr;
  if (link_->is_closed) return;
  link_->completions.Unref(env);
  // Hooks run last in, first out: this one before the one that deletes the function.
  env.AddCleanupHook(
      [](Link* link) {
        const std::lock_guard<std::mutex> lock(link->mutex);
        link->is_closed = true;
      },
      link_.get());
}

Napi::Value Tasks::run(std::unique_ptr<Task> task) {
  const Napi::Value promise = task->deferred_.promise();
  Task* const owned = task.release();  // std::function does not own what cannot be copied
  const int error = ThreadPool::shared().run([link = link_, owned] {
    std::unique_ptr<Task> done(owned);
    done->execute();
    const std::lock_guard<std::mutex> lock(link->mutex);
    if (!link->is_closed && link->completions.NonBlockingCall(owned) == napi_ok) {
      static_cast<void>(done.release());
    }
  });
  if (error != 0) {
    const std::unique_ptr<Task> refused(owned);
    refused->failure_ = no_thread(error);
    resolve(env_, *refused);
  } else if (running_++ == 0) {
    link_->completions.Ref(env_);
  }
  return promise;
}

void Tasks::deliver(Napi::Env env, Napi::Function, Tasks* self, Task* task) {
  const std::unique_ptr<Task> done(task);
  if (env == nullptr) return;  // the environment is being torn down
  if (--self->running_ == 0) self->link_->completions.Unref(env);
  resolve(env, *done);
}

void Tasks::resolve(Napi::Env env, Task& task) {
  task.deferred_.resolve(task.failure_ ? to_js(env, task.failure_) : task.result(env));
}

}  // namespace reap
