// Node-API only: working sets and the files of a restore. The other side is src/binding/addon.ts.
#include "addon/working_set.h"

#include <string>
#include <utility>
#include <vector>

#include "addon/task.h"
#include "files/private_file.h"
#include "page_cache/residency.h"

namespace reap {

namespace {

constexpr napi_type_tag kWorkingSetTag = {0x2e94b7d3a1f05c68, 0x7b1de4c98a6f3205};
constexpr napi_type_tag kFilesTag = {0xd04c1f7e83ba2965, 0x4f9a26b0c8e7d513};

using SharedSet = std::shared_ptr<const WorkingSet>;

Napi::Value numbers(Napi::Env env, const FileStamp& stamp) {
  Napi::BigUint64Array array = Napi::BigUint64Array::New(env, stamp.size());
  fill(array, stamp.data());
  return array;
}

template <typename Array, typename Record>
Array copy_of(Napi::Env env, const std::vector<Record>& records) {
  using Element = std::remove_pointer_t<decltype(std::declval<Array>().Data())>;
  Array array = Array::New(env, records.size() * sizeof(Record) / sizeof(Element));
  fill(array, records.data());
  return array;
}

Napi::Value facts_of(Napi::Env env, const WorkingSet& set) {
  const WorkingSetHeader& header = set.header;
  const auto number = [env](uint64_t value) {
    return Napi::Number::New(env, static_cast<double>(value));
  };
  Napi::Object facts = Napi::Object::New(env);
  facts["fileBytes"] = number(header.file_bytes);
  facts["memoryBytes"] = number(header.memory_bytes);
  facts["pageSize"] = number(header.page_size);
  facts["runs"] = number(header.runs);
  facts["touchCount"] = number(header.touches);
  facts["writtenTouches"] = number(header.written_touches);
  facts["dataPages"] = number(header.data_pages);
  facts["zeroPages"] = number(header.zero_pages);
  facts["groupCount"] = number(header.groups);
  facts["extentCount"] = number(header.extents);
  facts["manifestAt"] = number(kHeaderBytes + header.index_bytes - header.manifest_bytes);
  facts["id"] =
      copy_of<Napi::Uint8Array>(env, std::vector<uint8_t>(header.id, header.id + sizeof header.id));
  facts["manifest"] = copy_of<Napi::Uint8Array>(env, set.manifest);
  facts["stamp"] = numbers(env, set.stamp);
  Napi::Array disks = Napi::Array::New(env, set.disks.size());
  for (uint32_t i = 0; i < set.disks.size(); ++i) {
    const Disk& disk = set.disks[i];
    Napi::Object entry = Napi::Object::New(env);
    entry["name"] =
        copy_of<Napi::Uint8Array>(env, std::vector<char>(disk.name, disk.name + disk.name_bytes));
    entry["bytes"] = number(disk.bytes);
    entry["pages"] = number(disk.touches);
    // Pairs of page and checksum.
    entry["samples"] = copy_of<Napi::Uint32Array>(
        env, std::vector<Disk::Sample>(disk.samples, disk.samples + disk.sample_count));
    disks[i] = entry;
  }
  facts["disks"] = disks;
  return facts;
}

// Opens the files of a restore once, and reads what is not known about them yet.
class OpenFiles : public Task {
 public:
  OpenFiles(Napi::Env env, std::string memory_file, std::string working_set, SharedSet known,
            bool is_given, bool is_trusted, std::string findings_folder, bool wants_residency)
      : Task(env),
        memory_path_(std::move(memory_file)),
        set_path_(std::move(working_set)),
        findings_folder_(std::move(findings_folder)),
        known_(std::move(known)),
        is_given_(is_given),
        is_trusted_(is_trusted),
        wants_residency_(wants_residency) {}

 protected:
  void execute() override {
    failure_ = open();
    if (!failure_ && set_ && !findings_folder_.empty()) {
      // Must match nameOf() in src/working-set/findings.ts.
      const std::string name =
          std::to_string(set_->stamp[0]) + "-" + std::to_string(set_->stamp[1]) + ".json";
      if (!read_private_file(findings_folder_, name, &findings_)) findings_.clear();
    }
    if (failure_ || !wants_residency_) return;
    is_mappable_ = files_.memory_file.is_mappable();
    if (set_ && is_mappable_) look_at_page_cache();
  }

  Napi::Value result(Napi::Env env) override {
    Napi::Object result = Napi::Object::New(env);
    if (files_.memory_file) result["memoryStamp"] = numbers(env, files_.memory_file.stamp());
    result["isCurrent"] = static_cast<bool>(files_.working_set);
    result["files"] = make_tagged(env, std::make_unique<OpenedFiles>(std::move(files_)), kFilesTag);
    if (set_ && set_ != known_) {
      result["set"] = make_tagged(env, std::make_unique<SharedSet>(set_), kWorkingSetTag);
      result["facts"] = facts_of(env, *set_);
    }
    result["isMappable"] = is_mappable_;
    if (has_residency_) {
      result["pageCount"] = static_cast<double>(residency_.pages);
      result["missingPageCount"] = static_cast<double>(residency_.missing_pages);
      result["isVisible"] = is_visible_;
    }
    if (!findings_.empty()) result["findings"] = copy_of<Napi::Uint8Array>(env, findings_);
    return result;
  }

 private:
  static Failure open_file(const std::string& path, ErrorCode code, PageSource* file) {
    const int error = file->open(path);
    if (error == 0) return {};
    Failure failure = failed_call(code, error, "open");
    if (error == -EINVAL) {
      failure = {};
      failure.code = code == ErrorCode::working_set_io ? ErrorCode::working_set_invalid : code;
      failure.check = "regular-file";
    }
    return failure;
  }

  Failure open() {
    if (!memory_path_.empty()) {
      Failure failure = open_file(memory_path_, ErrorCode::source_read, &files_.memory_file);
      if (failure) return failure;
    }
    if (set_path_.empty()) return {};
    Failure failure = open_file(set_path_, ErrorCode::working_set_io, &files_.working_set);
    // Of the open file: the path may name another one by now.
    if (!failure && !is_trusted_) failure = files_.working_set.check_writers();
    const bool is_known = known_ && !failure && known_->stamp == files_.working_set.stamp();
    if (is_known || is_given_) set_ = known_;
    if (is_given_ && !is_known) files_.working_set = PageSource();
    if (set_) return {};
    return failure ? failure : read_working_set(files_.working_set, &set_);
  }

  void look_at_page_cache() {
    CachedFile memory;
    has_residency_ = set_->header.memory_bytes == files_.memory_file.bytes() &&
                     memory.open(files_.memory_file.path()) == 0;
    if (!has_residency_) return;
    residency_ = find_residency(memory, *set_);
    is_visible_ = memory.is_visible();
  }

  const std::string memory_path_;
  const std::string set_path_;
  const std::string findings_folder_;
  const SharedSet known_;
  const bool is_given_;
  const bool is_trusted_;
  const bool wants_residency_;
  OpenedFiles files_;
  SharedSet set_;
  std::vector<uint8_t> findings_;
  Residency residency_;
  bool has_residency_ = false;
  bool is_visible_ = false;
  bool is_mappable_ = true;
};

// openFiles(memoryFile: '' for none, workingSet: '' for none, known: set | null, isGiven,
//   isTrusted, findingsFolder, wantsResidency) => Promise<failure | { files, isCurrent,
//   memoryStamp?, set?, facts?, isMappable, findings? }>
Napi::Value open_files(const Napi::CallbackInfo& info) {
  const SharedSet known = info[2].IsNull() ? nullptr : working_set_of(info[2]);
  const auto text = [&info](size_t i) { return info[i].As<Napi::String>().Utf8Value(); };
  const bool is_given = info[3].As<Napi::Boolean>();
  const bool is_trusted = info[4].As<Napi::Boolean>();
  const bool wants_residency = info[6].As<Napi::Boolean>();
  return run_task<OpenFiles>(info.Env(), text(0), text(1), known, is_given, is_trusted, text(5),
                             wants_residency);
}

// closeFiles(files): closes files that no session has taken
void close_files(const Napi::CallbackInfo& info) {
  if (auto* files = tagged<OpenedFiles>(info[0], kFilesTag, "not opened files")) *files = {};
}

// makeWorkingSet(memoryBytes, pageSize, touches, diskTouchCounts, diskTouches: Uint32Array each)
//   => set
Napi::Value make_set(const Napi::CallbackInfo& info) {
  std::vector<Disk> disks;
  for (const uint32_t touches : records<uint32_t>(info[3])) {
    disks.emplace_back();
    disks.back().touches = touches;
  }
  SharedSet set = make_working_set(static_cast<uint64_t>(info[0].As<Napi::Number>().Int64Value()),
                                   info[1].As<Napi::Number>().Uint32Value(),
                                   records<Touch>(info[2]), disks, records<Touch>(info[4]));
  return make_tagged(info.Env(), std::make_unique<SharedSet>(std::move(set)), kWorkingSetTag);
}

// touchesOf(set) => [touches, diskTouches], pairs of page and microseconds
Napi::Value touches_of(const Napi::CallbackInfo& info) {
  const SharedSet set = working_set_of(info[0]);
  if (!set) return info.Env().Undefined();
  Napi::Array result = Napi::Array::New(info.Env(), 2);
  result[0U] = copy_of<Napi::Uint32Array>(info.Env(), set->touches);
  result[1U] = copy_of<Napi::Uint32Array>(info.Env(), set->disk_touches);
  return result;
}

// zeroExtentsOf(set) => Uint32Array, pairs of a first page and a number of pages
Napi::Value zero_extents_of(const Napi::CallbackInfo& info) {
  const SharedSet set = working_set_of(info[0]);
  if (!set) return info.Env().Undefined();
  std::vector<uint32_t> zeros;
  for (const PlanExtent& extent : set->plan.extents) {
    if (extent.flags & kZeroExtent) {
      zeros.insert(zeros.end(), {extent.first_page, extent.page_count});
    }
  }
  return copy_of<Napi::Uint32Array>(info.Env(), zeros);
}

}  // namespace

SharedSet working_set_of(Napi::Value value) {
  const auto* set = tagged<SharedSet>(value, kWorkingSetTag, "not a working set");
  return set ? *set : nullptr;
}

OpenedFiles* opened_files_of(Napi::Value value) {
  return tagged<OpenedFiles>(value, kFilesTag, "not opened files");
}

void add_working_set(Napi::Env env, Napi::Object exports) {
  exports["openFiles"] = Napi::Function::New(env, open_files);
  exports["closeFiles"] = Napi::Function::New(env, close_files);
  exports["makeWorkingSet"] = Napi::Function::New(env, make_set);
  exports["touchesOf"] = Napi::Function::New(env, touches_of);
  exports["zeroExtentsOf"] = Napi::Function::New(env, zero_extents_of);
}

}  // namespace reap
