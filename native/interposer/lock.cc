#include "lock.h"

#include <pthread.h>

namespace reap::interposer {

namespace {

pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

// The other TLS models allocate at a thread's first access.
__attribute__((tls_model("initial-exec"))) thread_local bool held = false;

}  // namespace

Undisturbed::Undisturbed() {
  sigset_t all;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &signals_);
  pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancel_state_);
}

Undisturbed::~Undisturbed() {
  pthread_sigmask(SIG_SETMASK, &signals_, nullptr);
  int disabled = 0;
  pthread_setcancelstate(cancel_state_, &disabled);
}

Lock::Lock() {
  pthread_mutex_lock(&mutex);
  held = true;
}

Lock::~Lock() {
  held = false;
  pthread_mutex_unlock(&mutex);
}

bool Lock::is_mine() { return held; }

}  // namespace reap::interposer
