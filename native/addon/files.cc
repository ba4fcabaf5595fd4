// Node-API only: file reads outside of sessions. The other side is src/binding/addon.ts.
#include <sys/stat.h>

#include <cerrno>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "addon/task.h"
#include "base/crc32c.h"
#include "files/file_lock.h"
#include "files/page_samples.h"
#include "files/page_source.h"
#include "files/private_file.h"

namespace reap {

namespace {

// crc32c(bytes, seed) => number
Napi::Value checksum(const Napi::CallbackInfo& info) {
  const auto bytes = info[0].As<Napi::Uint8Array>();
  const uint32_t seed = info[1].As<Napi::Number>().Uint32Value();
  return Napi::Number::New(info.Env(), crc32c(bytes.Data(), bytes.ByteLength(), seed));
}

class SamplePages : public Task {
 public:
  SamplePages(Napi::Env env, std::string path, std::vector<uint32_t> pages)
      : Task(env), path_(std::move(path)), pages_(std::move(pages)) {}

 protected:
  void execute() override { failure_ = sample_pages(path_, pages_, &checksums_); }
  Napi::Value result(Napi::Env env) override {
    Napi::Uint32Array checksums = Napi::Uint32Array::New(env, checksums_.size());
    fill(checksums, checksums_.data());
    return checksums;
  }

 private:
  const std::string path_;
  const std::vector<uint32_t> pages_;
  std::vector<uint32_t> checksums_;
};

// sampleDiskPages(path, pages: Uint32Array) => Promise<failure | Uint32Array>
Napi::Value start_sampling(const Napi::CallbackInfo& info) {
  const auto pages = info[1].As<Napi::Uint32Array>();
  return run_task<SamplePages>(
      info.Env(), info[0].As<Napi::String>().Utf8Value(),
      std::vector<uint32_t>(pages.Data(), pages.Data() + pages.ElementLength()));
}

class StatFile : public Task {
 public:
  StatFile(Napi::Env env, std::string path) : Task(env), path_(std::move(path)) {}

 protected:
  void execute() override {
    if (::stat(path_.c_str(), &status_) != 0) {
      failure_ = failed_call(ErrorCode::source_read, -errno, "stat");
    }
  }
  Napi::Value result(Napi::Env env) override {
    Napi::BigUint64Array stamp = Napi::BigUint64Array::New(env, FileStamp().size());
    fill(stamp, stamp_of(status_).data());
    Napi::Array result = Napi::Array::New(env, 2);
    result[0U] = stamp;
    result[1U] = S_ISREG(status_.st_mode);
    return result;
  }

 private:
  const std::string path_;
  struct stat status_ {};
};

// statFile(path) => Promise<failure | [stamp: BigUint64Array, isFile]>
Napi::Value start_stat(const Napi::CallbackInfo& info) {
  return run_task<StatFile>(info.Env(), info[0].As<Napi::String>().Utf8Value());
}

// The bytes themselves if JavaScript may use external memory, as in Node; otherwise a copy.
Napi::Value give(Napi::Env env, std::vector<uint8_t> bytes) {
  if (bytes.empty()) return Napi::Uint8Array::New(env, 0);
  using Owner = std::shared_ptr<std::vector<uint8_t>>;
  const auto owned = std::make_shared<std::vector<uint8_t>>(std::move(bytes));
  // In a worker thread that is being terminated the buffer cannot be made and the bytes leak:
  // Node-API does not report whether the finalizer was called.
  return Napi::Buffer<uint8_t>::NewOrCopy(
      env, owned->data(), owned->size(), [](Napi::Env, uint8_t*, Owner* owner) { delete owner; },
      new Owner(owned));
}

class ReadPrivateFile : public Task {
 public:
  ReadPrivateFile(Napi::Env env, std::string folder, std::string name)
      : Task(env), folder_(std::move(folder)), name_(std::move(name)) {}

 protected:
  void execute() override { found_ = read_private_file(folder_, name_, &bytes_, &failure_); }
  Napi::Value result(Napi::Env env) override {
    return found_ ? give(env, std::move(bytes_)) : env.Null();
  }

 private:
  const std::string folder_;
  const std::string name_;
  std::vector<uint8_t> bytes_;
  bool found_ = false;
};

// readPrivateFile(folder, name) => Promise<Uint8Array | failure | null>
Napi::Value start_reading_private_file(const Napi::CallbackInfo& info) {
  return run_task<ReadPrivateFile>(info.Env(), info[0].As<Napi::String>().Utf8Value(),
                                   info[1].As<Napi::String>().Utf8Value());
}

constexpr napi_type_tag kLockTag = {0x5bd2f0917c34ae86, 0xe19a40c7d6258b3f};

class TakeLock : public Task {
 public:
  TakeLock(Napi::Env env, std::string path) : Task(env), path_(std::move(path)) {}

 protected:
  void execute() override { failure_ = lock_.try_take(path_); }
  Napi::Value result(Napi::Env env) override {
    if (!lock_.is_held()) return env.Null();
    return make_tagged(env, std::make_unique<FileLock>(std::move(lock_)), kLockTag);
  }

 private:
  const std::string path_;
  FileLock lock_;
};

// tryLock(path) => Promise<failure | lock | null>
Napi::Value start_locking(const Napi::CallbackInfo& info) {
  return run_task<TakeLock>(info.Env(), info[0].As<Napi::String>().Utf8Value());
}

// unlock(lock): without effect on one that was released before
void unlock(const Napi::CallbackInfo& info) {
  if (auto* lock = tagged<FileLock>(info[0], kLockTag, "not a lock")) lock->release();
}

// checkWriters(fd) => failure | null
Napi::Value check_file_writers(const Napi::CallbackInfo& info) {
  return to_js(info.Env(), check_writers(info[0].As<Napi::Number>().Int32Value()));
}

// isSettled(changedAt, age: nanoseconds) => boolean
Napi::Value settled(const Napi::CallbackInfo& info) {
  bool lossless = false;
  const uint64_t changed_at = info[0].As<Napi::BigInt>().Uint64Value(&lossless);
  const uint64_t age = info[1].As<Napi::BigInt>().Uint64Value(&lossless);
  return Napi::Boolean::New(info.Env(), is_settled(changed_at, age));
}

// mayHaveWriters(fd) => boolean; true also if the kernel does not report it
Napi::Value file_may_have_writers(const Napi::CallbackInfo& info) {
  return Napi::Boolean::New(info.Env(),
                            writers_of(info[0].As<Napi::Number>().Int32Value()) != Writers::none);
}

}  // namespace

void add_files(Napi::Env env, Napi::Object exports) {
  exports["crc32c"] = Napi::Function::New(env, checksum);
  exports["statFile"] = Napi::Function::New(env, start_stat);
  exports["sampleDiskPages"] = Napi::Function::New(env, start_sampling);
  exports["readPrivateFile"] = Napi::Function::New(env, start_reading_private_file);
  exports["tryLock"] = Napi::Function::New(env, start_locking);
  exports["unlock"] = Napi::Function::New(env, unlock);
  exports["checkWriters"] = Napi::Function::New(env, check_file_writers);
  exports["mayHaveWriters"] = Napi::Function::New(env, file_may_have_writers);
  exports["isSettled"] = Napi::Function::New(env, settled);
}

}  // namespace reap
