#include "balloon.h"

namespace reap::microvm {

namespace {

constexpr uint64_t kMagic = 0x000;
constexpr uint64_t kDeviceId = 0x008;
constexpr uint64_t kDriverFeatures = 0x020;
constexpr uint64_t kDriverFeaturesWord = 0x024;
constexpr uint64_t kQueue = 0x030;
constexpr uint64_t kQueueSize = 0x038;
constexpr uint64_t kQueueReady = 0x044;
constexpr uint64_t kNotify = 0x050;
constexpr uint64_t kInterruptStatus = 0x060;
constexpr uint64_t kInterruptAcknowledge = 0x064;
constexpr uint64_t kStatus = 0x070;
constexpr uint64_t kQueueDescriptors = 0x080;
constexpr uint64_t kQueueDriver = 0x090;
constexpr uint64_t kQueueDevice = 0x0a0;
constexpr uint64_t kTargetPages = 0x100;
constexpr uint64_t kActualPages = 0x104;

constexpr uint32_t kMagicValue = 0x74726976;  // "virt"
constexpr uint32_t kBalloon = 5;
constexpr uint32_t kAcknowledged = 1;
constexpr uint32_t kDriver = 2;
constexpr uint32_t kDriverOk = 4;
constexpr uint32_t kFeaturesOk = 8;
constexpr uint32_t kVersion1 = 1;  // bit 32

constexpr uint16_t kSlots = 16;
/** Maximum number of page numbers per descriptor. */
constexpr uint64_t kBatch = 256;

struct Descriptor {
  uint64_t address;
  uint32_t bytes;
  uint16_t flags;
  uint16_t next;
};

struct DriverRing {
  uint16_t flags;
  volatile uint16_t index;
  uint16_t ring[kSlots];
};

struct DeviceRing {
  uint16_t flags;
  volatile uint16_t index;
  struct {
    uint32_t id;
    uint32_t length;
  } ring[kSlots];
};

struct Queue {
  [[gnu::aligned(16)]] Descriptor descriptors[kSlots];
  [[gnu::aligned(4)]] DriverRing driver;
  [[gnu::aligned(4)]] DeviceRing device;
};

enum : uint32_t { kInflate, kDeflate };
Queue queues[2];
uint32_t numbers[kBatch];

uint64_t device;
uint64_t given;
/** Maximum number of pages ever given: those have lost their content. */
uint64_t ever_given;

uint64_t page_at(uint64_t number) { return kBalloonPages.begin + number * kPageBytes; }

volatile uint64_t& word_of(uint64_t page) { return *reinterpret_cast<volatile uint64_t*>(page); }

/** The text after `word`, if `text` begins with it. */
const char* after(const char* text, const char* word) {
  while (*word != 0) {
    if (*text++ != *word++) return nullptr;
  }
  return text;
}

uint64_t number_at(const char** text) {
  const char* at = *text;
  const uint64_t base = after(at, "0x") != nullptr ? 16 : 10;
  if (base == 16) at += 2;
  uint64_t value = 0;
  for (;; at++) {
    const char c = *at;
    if (c >= '0' && c <= '9') {
      value = value * base + (c - '0');
    } else if (base == 16 && c >= 'a' && c <= 'f') {
      value = value * base + (c - 'a' + 10);
    } else {
      break;
    }
  }
  *text = at;
  return value;
}

void set_up_queue(uint32_t number) {
  const auto set = [](uint64_t offset, const volatile void* address) {
    const uint64_t value = reinterpret_cast<uint64_t>(address);
    register_at(device + offset) = static_cast<uint32_t>(value);
    register_at(device + offset + 4) = static_cast<uint32_t>(value >> 32);
  };
  Queue& queue = queues[number];
  register_at(device + kQueue) = number;
  register_at(device + kQueueSize) = kSlots;
  set(kQueueDescriptors, queue.descriptors);
  set(kQueueDriver, &queue.driver);
  set(kQueueDevice, &queue.device);
  register_at(device + kQueueReady) = 1;
}

void set_up_device(uint32_t line) {
  register_at(device + kStatus) = 0;
  register_at(device + kStatus) = kAcknowledged;
  register_at(device + kStatus) = kAcknowledged | kDriver;
  register_at(device + kDriverFeaturesWord) = 0;
  register_at(device + kDriverFeatures) = 0;
  register_at(device + kDriverFeaturesWord) = 1;
  register_at(device + kDriverFeatures) = kVersion1;
  register_at(device + kStatus) = kAcknowledged | kDriver | kFeaturesOk;
  if ((register_at(device + kStatus) & kFeaturesOk) == 0) give_up("WRONG: no features");
  enable_line(line);
  set_up_queue(kInflate);
  set_up_queue(kDeflate);
  register_at(device + kStatus) = kAcknowledged | kDriver | kFeaturesOk | kDriverOk;
}

/** Passes `pages` pages to the device, and waits until it has processed them. */
void exchange(uint32_t number, uint64_t first, uint64_t pages) {
  for (uint64_t i = 0; i < pages; i++) {
    numbers[i] = static_cast<uint32_t>(page_at(first + i) / kPageBytes);
  }
  Queue& queue = queues[number];
  const uint16_t index = queue.driver.index;
  queue.descriptors[0] = {reinterpret_cast<uint64_t>(numbers),
                          static_cast<uint32_t>(pages * sizeof *numbers), 0, 0};
  queue.driver.ring[index % kSlots] = 0;
  memory_barrier();
  queue.driver.index = index + 1;
  memory_barrier();
  register_at(device + kNotify) = number;
  while (queue.device.index != queue.driver.index) halt_until_interrupt();
  register_at(device + kInterruptAcknowledge) = register_at(device + kInterruptStatus);
}

}  // namespace

void set_up_balloon(const char* command_line) {
  for (uint64_t i = 0; i < kBalloonPages.pages; i++) word_of(page_at(i)) = page_at(i);
  // virtio_mmio.device=4K@0xd0000000:5, once for each device.
  for (const char* at = command_line; *at != 0; at++) {
    const char* found = after(at, "virtio_mmio.device=4K@");
    if (found == nullptr) continue;
    const uint64_t address = number_at(&found);
    found++;
    const auto line = static_cast<uint32_t>(number_at(&found));
    if (register_at(address + kMagic) != kMagicValue) continue;
    if (register_at(address + kDeviceId) != kBalloon) continue;
    device = address;
    set_up_device(line);
    return;
  }
}

bool follow_balloon() {
  if (device == 0) return false;
  uint64_t target = register_at(device + kTargetPages);
  if (target > kBalloonPages.pages) target = kBalloonPages.pages;
  while (given != target) {
    const uint64_t missing = given < target ? target - given : given - target;
    const uint64_t pages = missing < kBatch ? missing : kBatch;
    if (given < target) {
      exchange(kInflate, given, pages);
      given += pages;
    } else {
      given -= pages;
      exchange(kDeflate, given, pages);
    }
    if (given > ever_given) ever_given = given;
  }
  register_at(device + kActualPages) = static_cast<uint32_t>(given);
  return true;
}

uint64_t balloon_size() { return given; }

bool check_balloon_pages(uint64_t* zeros) {
  bool right = true;
  *zeros = 0;
  for (uint64_t i = 0; i < kBalloonPages.pages; i++) {
    const uint64_t found = word_of(page_at(i));
    if (found == 0) ++*zeros;
    if (found != (i < ever_given ? 0 : page_at(i))) right = false;
  }
  return right;
}

}  // namespace reap::microvm
