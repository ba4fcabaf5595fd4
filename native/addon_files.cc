// Node-API only: what is read of files, apart from sessions. src/native.ts has the other side.
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "addon.h"
#include "crc32c.h"
#include "page_samples.h"
#include "working_set_index.h"

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
  SamplePages(Napi::Env env, std::string path, std::vector<uint32_t> pages, PartialPage partial)
      : Task(env), path_(std::move(path)), pages_(std::move(pages)), partial_(partial) {}

 protected:
  void Execute() override { failure_ = sample_pages(path_, pages_, partial_, &checksums_); }
  Napi::Value result(Napi::Env env) override {
    if (failure_) return to_js(env, failure_);
    Napi::Uint32Array checksums = Napi::Uint32Array::New(env, checksums_.size());
    fill(checksums, checksums_.data());
    return checksums;
  }

 private:
  const std::string path_;
  const std::vector<uint32_t> pages_;
  const PartialPage partial_;
  std::vector<uint32_t> checksums_;
  Failure failure_;
};

// samplePages(path, pages: Uint32Array, padsLastPage) => Promise<failure | Uint32Array>
Napi::Value start_sampling(const Napi::CallbackInfo& info) {
  const auto pages = info[1].As<Napi::Uint32Array>();
  auto* task =
      new SamplePages(info.Env(), info[0].As<Napi::String>().Utf8Value(),
                      std::vector<uint32_t>(pages.Data(), pages.Data() + pages.ElementLength()),
                      info[2].As<Napi::Boolean>() ? PartialPage::padded : PartialPage::refused);
  return task->run();
}

// The bytes themselves where JavaScript may have memory of others, as in Node, and else a copy.
Napi::Value give(Napi::Env env, std::vector<uint8_t> bytes) {
  if (bytes.empty()) return Napi::Uint8Array::New(env, 0);
  using Owner = std::shared_ptr<std::vector<uint8_t>>;
  const auto owned = std::make_shared<std::vector<uint8_t>>(std::move(bytes));
  // What cannot be made, in a worker thread that is being terminated, stays allocated: whether the
  // finalizer was called then is not told.
  return Napi::Buffer<uint8_t>::NewOrCopy(
      env, owned->data(), owned->size(), [](Napi::Env, uint8_t*, Owner* owner) { delete owner; },
      new Owner(owned));
}

class ReadIndex : public Task {
 public:
  ReadIndex(Napi::Env env, std::string path) : Task(env), path_(std::move(path)) {}

 protected:
  void Execute() override { failure_ = read_working_set_index(path_, &found_); }
  Napi::Value result(Napi::Env env) override {
    if (failure_) return to_js(env, failure_);
    Napi::Array result = Napi::Array::New(env, 4);
    result[0U] = found_.is_regular ? Napi::Number::New(env, static_cast<double>(found_.file_bytes))
                                   : env.Null();
    result[1U] = give(env, std::move(found_.header));
    result[2U] = give(env, std::move(found_.index));
    result[3U] = env.Null();
    if (const BrokenRule& broken = found_.broken; broken.check) {
      Napi::Array rule = Napi::Array::New(env, 3);
      rule[0U] = broken.check;
      rule[1U] = static_cast<double>(broken.offset);
      rule[2U] = broken.what;
      result[3U] = rule;
    }
    return result;
  }

 private:
  const std::string path_;
  WorkingSetIndex found_;
  Failure failure_;
};

// readIndex(path) => Promise<failure | [fileBytes | null, header, index, [check, offset, what] |
// null]>
Napi::Value read_index(const Napi::CallbackInfo& info) {
  return (new ReadIndex(info.Env(), info[0].As<Napi::String>().Utf8Value()))->run();
}

}  // namespace

void add_files(Napi::Env env, Napi::Object exports) {
  exports["crc32c"] = Napi::Function::New(env, checksum);
  exports["samplePages"] = Napi::Function::New(env, start_sampling);
  exports["readIndex"] = Napi::Function::New(env, read_index);
}

}  // namespace reap
