#include "handshake_sender.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace reap::guest {

namespace {

constexpr size_t kMaxFds = 4;

void apply(Tweak tweak, std::vector<HandshakeRegion>& regions) {
  if (tweak == Tweak::kNone || regions.empty()) return;
  if (regions.size() == 1) {
    HandshakeRegion& first = regions.front();
    const uint64_t half = first.size / first.page_size / 2 * first.page_size;
    HandshakeRegion second = first;
    second.base_host_virt_addr += half;
    second.offset += half;
    second.size -= half;
    first.size = half;
    regions.push_back(second);
  }
  HandshakeRegion& last = regions.back();
  switch (tweak) {
    case Tweak::kNone:
      break;
    case Tweak::kOverlap:
      last.base_host_virt_addr = regions.front().base_host_virt_addr;
      break;
    case Tweak::kGap:
      last.offset += last.page_size;
      break;
    case Tweak::kOddSize:
      last.size -= 512;
      break;
    case Tweak::kMixedPage:
      last.page_size = last.page_size == 4096 ? 2 << 20 : 4096;
      break;
    case Tweak::kUnaligned:
      last.base_host_virt_addr += 512;
      break;
    case Tweak::kTooShort:
      last.size -= last.page_size;
      break;
    case Tweak::kTooLong:
      last.size += last.page_size;
      break;
  }
}

std::string to_json(const HandshakeRegion& region, const HandshakeOptions& options) {
  const auto field = [](const char* name, uint64_t value) {
    return std::string(",\"") + name + "\":" + std::to_string(value);
  };
  std::string json = "{\"base_host_virt_addr\":" + std::to_string(region.base_host_virt_addr);
  json += field("size", region.size) + field("offset", region.offset);
  if (options.keys == PageSizeKeys::kPageSize || options.keys == PageSizeKeys::kBoth) {
    json += field("page_size", region.page_size);
  }
  // Bytes, despite its name.
  if (options.keys == PageSizeKeys::kKib || options.keys == PageSizeKeys::kBoth) {
    json += field("page_size_kib", region.page_size);
  }
  if (options.guest_memfd) json += ",\"is_guest_memfd\":true";
  if (options.unknown_keys) {
    json += R"(,"gpa_start":0,"a \"key\u0022":[null,true,-1.5e3,{"deep":["}]",{}]}],"size2":"1")";
  }
  return json + "}";
}

std::string compose(const std::vector<HandshakeRegion>& regions, const HandshakeOptions& options) {
  if (options.raw) return *options.raw;
  std::string json;
  for (const HandshakeRegion& region : regions) {
    json += (json.empty() ? "[" : ",") + to_json(region, options);
  }
  if (json.size() + 1 < options.pad_bytes) json.append(options.pad_bytes - json.size() - 1, ' ');
  return json + "]";
}

Error connect_to(const std::string& path, UniqueFd* socket) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path) {
    return {"socket path longer than 107 bytes: " + path, -ENAMETOOLONG};
  }
  std::memcpy(address.sun_path, path.data(), path.size());
  socket->reset(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!*socket) return system_error("create a socket", errno);
  if (::connect(socket->get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) {
    return system_error("connect to " + path, errno);
  }
  return {};
}

// Sends `bytes` and the descriptors with one sendmsg(). Returns the bytes sent or -errno.
ssize_t send_piece(int socket, const char* data, size_t bytes, const int* fds, size_t fd_count) {
  iovec vector{const_cast<char*>(data), bytes};
  msghdr message{};
  message.msg_iov = &vector;
  message.msg_iovlen = 1;
  alignas(cmsghdr) char control[CMSG_SPACE(kMaxFds * sizeof(int))] = {};
  if (fd_count > 0) {
    message.msg_control = control;
    message.msg_controllen = CMSG_SPACE(fd_count * sizeof(int));
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(fd_count * sizeof(int));
    std::memcpy(CMSG_DATA(header), fds, fd_count * sizeof(int));
  }
  const ssize_t sent = ::sendmsg(socket, &message, MSG_NOSIGNAL);
  return sent < 0 ? -errno : sent;
}

}  // namespace

Error send_handshake(const std::string& socket_path, std::vector<HandshakeRegion> regions, int fd,
                     const HandshakeOptions& options, HandshakeReport* report) {
  if (Error error = connect_to(socket_path, &report->socket)) return error;
  if (options.hold) return {};

  apply(options.tweak, regions);
  const std::string body = compose(regions, options);
  report->total_bytes = body.size();
  const size_t wanted = std::min(body.size(), options.truncate_bytes.value_or(body.size()));
  const size_t piece_bytes = std::max<size_t>(1, (wanted + options.pieces - 1) / options.pieces);

  const UniqueFd null(::open("/dev/null", O_RDWR | O_CLOEXEC));
  int fds[kMaxFds] = {fd, null.get(), null.get(), null.get()};
  size_t fd_count = std::min<size_t>(options.fd_count, kMaxFds);
  while (report->sent_bytes < wanted) {
    const ssize_t sent =
        send_piece(report->socket.get(), body.data() + report->sent_bytes,
                   std::min(piece_bytes, wanted - report->sent_bytes), fds, fd_count);
    if (sent == -EINTR) continue;
    if (sent < 0) {
      report->send_error = static_cast<int>(sent);
      return {};
    }
    report->sent_bytes += static_cast<size_t>(sent);
    fd_count = 0;
  }
  if (options.truncate_bytes) ::shutdown(report->socket.get(), SHUT_WR);
  return {};
}

}  // namespace reap::guest
