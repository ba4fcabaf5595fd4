#include "hanging_folder.h"

#include <fcntl.h>
#include <linux/fuse.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>

namespace fixture {

namespace {

constexpr uint64_t kFirstNode = FUSE_ROOT_ID + 1;  // of f0
constexpr size_t kMaxRequest = 1 << 20;
constexpr uint64_t kHour = 3600;

// Path of the folder that is mounted: tests have one at a time.
char mounted[256];

}  // namespace

HangingFolder::HangingFolder(std::string path, std::vector<uint8_t> bytes, Options options)
    : path_(std::move(path)),
      bytes_(std::move(bytes)),
      options_(options),
      device_(::open("/dev/fuse", O_RDWR | O_CLOEXEC)) {
  const std::string data =
      "fd=" + std::to_string(device_.get()) + ",rootmode=40000,user_id=0,group_id=0,allow_other";
  ::mkdir(path_.c_str(), 0700);
  if (!device_ ||
      ::mount("hanging", path_.c_str(), "fuse", MS_NOSUID | MS_NODEV, data.c_str()) != 0) {
    missing_ = "needs root and /dev/fuse";
    return;
  }
  std::snprintf(mounted, sizeof mounted, "%s", path_.c_str());
  threads_ = 1;
  std::thread([this] { serve(); }).detach();
}

void HangingFolder::abort_all() {
  if (mounted[0] != 0) ::umount2(mounted, MNT_FORCE | MNT_DETACH);
}

HangingFolder::~HangingFolder() {
  if (!missing_.empty()) return;
  release_all();
  // Ends serve() when the last open file is closed.
  ::umount2(path_.c_str(), MNT_DETACH);
  mounted[0] = 0;
  std::unique_lock<std::mutex> lock(mutex_);
  while (threads_ > 0) changed_.wait(lock);
}

void HangingFolder::hold(Call call, int file) {
  const std::lock_guard<std::mutex> lock(mutex_);
  held_.emplace(call, file);
}

void HangingFolder::release(Call call, int file) {
  const std::lock_guard<std::mutex> lock(mutex_);
  held_.erase({call, file});
  changed_.notify_all();
}

void HangingFolder::release_all() {
  const std::lock_guard<std::mutex> lock(mutex_);
  held_.clear();
  changed_.notify_all();
}

void HangingFolder::wait_until_held(size_t calls) {
  std::unique_lock<std::mutex> lock(mutex_);
  while (waiting_ < calls) changed_.wait(lock);
}

void HangingFolder::pass(Call call, uint64_t node) {
  std::unique_lock<std::mutex> lock(mutex_);
  const std::pair<Call, int> key(call, static_cast<int>(node - kFirstNode));
  if (held_.count(key) == 0) return;
  ++waiting_;
  changed_.notify_all();
  while (held_.count(key) > 0) changed_.wait(lock);
  --waiting_;
}

void HangingFolder::serve() {
  for (;;) {
    std::vector<uint8_t> request(kMaxRequest + 4096);
    const ssize_t got = ::read(device_.get(), request.data(), request.size());
    if (got < 0 && (errno == EINTR || errno == ENOENT)) continue;
    if (got <= 0) break;  // ENODEV: unmounted
    request.resize(static_cast<size_t>(got));
    const std::lock_guard<std::mutex> lock(mutex_);
    ++threads_;
    std::thread([this, request = std::move(request)]() mutable {
      answer(std::move(request));
      const std::lock_guard<std::mutex> inner(mutex_);
      --threads_;
      changed_.notify_all();
    }).detach();
  }
  const std::lock_guard<std::mutex> lock(mutex_);
  --threads_;
  changed_.notify_all();
}

void HangingFolder::reply(uint64_t request, int error, const void* data, size_t bytes) const {
  fuse_out_header header{};
  header.len = static_cast<uint32_t>(sizeof header + bytes);
  header.error = -error;
  header.unique = request;
  const iovec parts[] = {{&header, sizeof header}, {const_cast<void*>(data), bytes}};
  // ENOENT: the caller was killed.
  static_cast<void>(!::writev(device_.get(), parts, bytes > 0 ? 2 : 1));
}

void HangingFolder::answer(std::vector<uint8_t> request) {
  fuse_in_header header{};
  std::memcpy(&header, request.data(), sizeof header);
  const uint8_t* const body = request.data() + sizeof header;
  const uint64_t node = header.nodeid;
  const auto attributes_of = [this](uint64_t of) {
    fuse_attr attributes{};
    attributes.ino = of;
    attributes.nlink = 1;
    attributes.blksize = 4096;
    attributes.mode = of == FUSE_ROOT_ID ? S_IFDIR | 0755 : S_IFREG | 0644;
    attributes.size = of == FUSE_ROOT_ID ? 0 : bytes_.size();
    attributes.blocks = attributes.size / (options_.has_holes ? 1024 : 512);
    return attributes;
  };
  const uint64_t valid = options_.remembers_attributes ? kHour : 0;
  switch (header.opcode) {
    case FUSE_INIT: {
      fuse_init_in in{};
      std::memcpy(&in, body, std::min(sizeof in, request.size() - sizeof header));
      fuse_init_out out{};
      out.major = 7;
      out.minor = 31;
      out.max_readahead = in.max_readahead;
      out.max_write = kMaxRequest;
      out.max_background = 512;
      out.congestion_threshold = 400;
      out.flags = FUSE_MAX_PAGES | FUSE_ASYNC_READ;
      if (!options_.remembers_attributes) out.flags |= FUSE_AUTO_INVAL_DATA;
      out.max_pages = 256;
      reply(header.unique, 0, &out, sizeof out);
      break;
    }
    case FUSE_LOOKUP: {
      const char* const name = reinterpret_cast<const char*>(body);
      if (name[0] != 'f') {
        reply(header.unique, ENOENT);
        break;
      }
      fuse_entry_out out{};
      out.nodeid = kFirstNode + static_cast<uint64_t>(std::atoi(name + 1));
      pass(Call::lookup, out.nodeid);
      out.entry_valid = kHour;
      out.attr_valid = valid;
      out.attr = attributes_of(out.nodeid);
      reply(header.unique, 0, &out, sizeof out);
      break;
    }
    case FUSE_GETATTR: {
      pass(Call::attributes, node);
      fuse_attr_out out{};
      out.attr_valid = valid;
      out.attr = attributes_of(node);
      reply(header.unique, 0, &out, sizeof out);
      break;
    }
    case FUSE_OPEN:
    case FUSE_OPENDIR: {
      pass(Call::open, node);
      fuse_open_out out{};
      out.open_flags = FOPEN_KEEP_CACHE;
      reply(header.unique, 0, &out, sizeof out);
      break;
    }
    case FUSE_READ: {
      pass(Call::read, node);
      fuse_read_in in{};
      std::memcpy(&in, body, sizeof in);
      const uint64_t begin = std::min<uint64_t>(in.offset, bytes_.size());
      const uint64_t length = std::min<uint64_t>(in.size, bytes_.size() - begin);
      reply(header.unique, 0, bytes_.data() + begin, length);
      break;
    }
    case FUSE_LSEEK: {
      pass(Call::seek, node);
      fuse_lseek_in in{};
      std::memcpy(&in, body, sizeof in);
      fuse_lseek_out out{};
      out.offset = in.whence == SEEK_DATA ? in.offset : bytes_.size();
      reply(header.unique, 0, &out, sizeof out);
      break;
    }
    case FUSE_STATFS: {
      fuse_statfs_out out{};
      out.st.bsize = 4096;
      reply(header.unique, 0, &out, sizeof out);
      break;
    }
    case FUSE_FLUSH:
    case FUSE_RELEASE:
    case FUSE_RELEASEDIR:
    case FUSE_ACCESS:
      reply(header.unique, 0);
      break;
    case FUSE_FORGET:
    case FUSE_BATCH_FORGET:
    case FUSE_INTERRUPT:
      break;  // these have no answer
    default:
      reply(header.unique, ENOSYS);
  }
}

}  // namespace fixture
