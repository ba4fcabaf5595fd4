// Brings working sets into guests: workers that fetch a group and install its extents, for however
// many restores there are, and readers that fetch ahead of them where a fetch waits for the disk.
#pragma once

#include <bitset>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "base/failure.h"
#include "base/page.h"
#include "base/posix.h"
#include "files/page_source.h"
#include "prefetch/shared_groups.h"
#include "uffd/fault_handler.h"
#include "working_set/plan.h"

namespace reap {

struct PrefetchReport {
  uint64_t pages = 0;  // of the guest's page size, installed before the guest asked
  uint64_t extents = 0;
  uint64_t bytes = 0;
  uint64_t fetch_us = 0;    // in which at least one thread fetched
  uint64_t install_us = 0;  // summed over the workers
  uint64_t since_connect_us = 0;
  bool from_working_set = false;  // the bytes; else they came from the memory file
  Failure failure;                // why it ended early; the guest is served on demand then
};

struct Span {
  std::chrono::steady_clock::time_point began;
  std::chrono::steady_clock::time_point ended;
};
// In which at least one of them was under way.
uint64_t microseconds_in(std::vector<Span> spans);

// One restore, as the prefetcher sees it. Its methods are called on worker threads.
class PrefetchClient {
 public:
  virtual ~PrefetchClient() = default;
  virtual FaultHandler& handler() = 0;  // asked for only after connected()
  virtual const PageSource& memory_file() = 0;
  virtual Counters& counters() = 0;
  virtual const std::atomic<bool>& stopping() = 0;
  // Around installs: between two of them the worker looks for faults, and serves them.
  virtual void begin_installs() = 0;
  virtual void serve_beside_work(ServeBuffers& buffers) = 0;
  virtual void end_installs() = 0;
  virtual void on_prefetched(const PrefetchReport& report) = 0;
  // Every missing page is installed, or `failure` says why not.
  virtual void on_filled(FaultHandler::Filled end, const Failure& failure) = 0;
};

class Prefetcher {
 public:
  explicit Prefetcher(unsigned workers, unsigned readers = 0);
  ~Prefetcher();

  // Starts to fetch; installs begin with connected(). Bytes come from the working-set file as long
  // as both files are in the states of the plan's proof, and from the memory file otherwise.
  void start(std::shared_ptr<PrefetchClient> client, std::shared_ptr<const Plan> plan,
             std::shared_ptr<const ProvenFile> proven);
  void connected(PrefetchClient* client);
  // The guest waits for this page: what brings it comes before the rest of its restore.
  void bring_next(PrefetchClient* client, uint64_t offset);
  // Installs every page of the memory file that the guest does not have, except the removed ones.
  void fill(std::shared_ptr<PrefetchClient> client);
  // Forgets the client as soon as no worker is busy with it.
  void cancel(PrefetchClient* client);

  // Without the readers, which wait more than they work.
  unsigned busy_workers() const { return busy_workers_.load(std::memory_order_relaxed); }

 private:
  static constexpr uint64_t kBufferBytes = kMaxBlockBytes;  // and what one task of fill() reads

  // Extents of a group, or a block, that were holes of the memory file when they were fetched.
  // Asked once: an unwritten extent is a hole until somebody reads it, and data from then on.
  using Holes = std::bitset<kMaxMemoryGroupPages>;
  // Of the pool. Owners come and go with the mutex held.
  using Buffer = SharedGroups::Buffer;
  struct Fetched {
    uint64_t unit;
    Buffer buffer;
    Holes holes;
  };
  // Where the units of a job are, and so where their bytes come from.
  enum class Source {
    working_set,    // groups of the plan
    memory_groups,  // `memory_groups`, from the memory file
    blocks,         // `blocks` of it
  };
  // Work on one restore. Only `client`, `plan`, `proven`, `source`, `memory_groups` and `blocks`
  // are read without the mutex, by workers that are counted in `busy`.
  struct Job {
    std::shared_ptr<PrefetchClient> client;
    std::shared_ptr<const Plan> plan;
    std::shared_ptr<const ProvenFile> proven;  // null: bytes come from the memory file
    std::shared_ptr<SharedGroups> shared;      // with the other restores of the set
    Source source = Source::memory_groups;
    Plan memory_groups;
    std::vector<Block> blocks;
    FileStamp memory_stamp{};  // of what was fetched
    uint64_t page_size = kPage;
    bool replan = true;  // `source` is not known yet, or not any more
    bool proof_is_void = false;
    bool waits_for_handshake = false;  // the memory file may change unseen before it
    bool filling = false;              // the job of fill(): `next` is an offset of the memory file
    bool connected = false;
    bool waits = false;  // the last fetch waited for the disk
    bool over = false;   // finished, failed or canceled; goes when no worker is busy with it
    bool canceled = false;
    bool dead = false;            // the VM is gone: there is nothing to report
    uint64_t next = 0;            // unit to fetch next, unless it was begun
    std::vector<bool> begun;      // units that are fetched or being fetched
    std::deque<uint64_t> wanted;  // those that the guest waits for
    uint64_t installed = 0;       // units done
    unsigned busy = 0;
    unsigned fetching = 0;  // of `busy`, those that fetch ahead
    std::deque<Fetched> ready;
    std::vector<Span> fetches;
    PrefetchReport report;
    FaultHandler::Filled filled = FaultHandler::Filled::all;
    std::chrono::steady_clock::time_point short_of_memory_since{};

    // The groups that are fetched, unless it is blocks.
    const Plan& layout() const { return source == Source::memory_groups ? memory_groups : *plan; }
    uint64_t units() const {
      return source == Source::blocks ? blocks.size() : layout().groups.size();
    }
  };
  enum class Step { fetch_ahead, fetch_and_install, install, fill };
  struct Task {
    Job* job = nullptr;
    Step step = Step::fetch_ahead;
    uint64_t unit = 0;
    Buffer buffer;  // to fetch into, or fetched already; null: the worker's own
    Holes holes;
    FileStamp memory_stamp{};  // of the job; the current one if `is_void`
    bool is_connected = false;
    bool is_shared = false;  // other restores wait for what is fetched
    bool is_void = false;    // what was fetched may be another state of the files
    bool fetched = false;    // bytes, from a file
    Span fetch{};            // when
    bool waited = false;     // for them
    int pauses = 0;          // spent waiting for the VMM to finish a REMOVE
    PrefetchReport report;   // what this task adds to the job's
    FaultHandler::Filled filled = FaultHandler::Filled::all;
  };
  // Bytes for contiguous guest memory; null for zeros.
  struct Piece {
    uint64_t offset;
    uint64_t length;
    const uint8_t* bytes;
  };
  // What one worker has for itself.
  struct Own {
    Mapping fetched;
    std::vector<Piece> pieces;
    ServeBuffers serve;
  };
  using Jobs = std::list<std::unique_ptr<Job>>;

  enum class Role { worker, reader };
  void work(Role role);
  bool next_task(Role role, Task* task);
  bool next_of(Role role, Job& job, Task* task);
  static bool has_units(Job& job);
  static uint64_t begin_unit(Job& job, uint64_t unit);
  static bool brings(const Job& job, uint64_t unit, uint64_t offset);
  bool task_of(Job& job, Task* task);
  bool read_ahead_of(Job& job, Task* task);
  bool fetch_ahead(Job& job, Task* task);
  void take_unit(Job& job, uint64_t unit, Task* task);
  void replan(Job& job);
  void join_others(Job& job);
  void leave_others(Job& job);
  static bool reads_for_others(const Job& job);
  static std::optional<uint64_t> find_unit(const Job& job, SharedGroups::State state);
  static std::optional<uint64_t> next_to_fetch(const Job& job);
  static std::optional<uint64_t> next_to_install(const Job& job);
  static bool begin_shared(Job& job, uint64_t unit);
  void share_fetched(const Job& job, const Task& task, bool good);
  size_t fetched_ahead(const Job& job) const;
  Buffer take_buffer();
  void perform(Task& task, Own& own);
  bool fetch(const Job& job, Task& task, uint8_t* buffer);
  bool fetch_group(const Job& job, Task& task, uint8_t* buffer);
  bool fetch_memory_group(const Job& job, Task& task, uint8_t* buffer);
  bool fetch_block(const Job& job, Task& task, uint8_t* buffer);
  bool check_stamps(const Job& job, Task& task, uint64_t offset);
  static void lay_out(const Job& job, Task& task, const uint8_t* buffer,
                      std::vector<Piece>* pieces);
  void install(const Job& job, Task& task, const uint8_t* buffer, Own& own);
  bool install_run(const Job& job, Task& task, uint64_t offset, const uint8_t* bytes,
                   uint64_t length, const std::function<void()>& look);
  void fill_stretch(const Job& job, Task& task, Mapping& buffer);
  void settle(Task& task);
  void settle_fill(Job& job, const Task& task);
  void end_if_over(Job* job, std::unique_lock<std::mutex>& lock);
  void recycle(Buffer&& buffer);

  std::mutex mutex_;  // guards the jobs and the pool; not held while a task is performed
  std::condition_variable changed_;  // there may be a task for a worker
  std::condition_variable waits_;    // or for a reader
  Jobs jobs_;                        // served in turn, one task each
  std::vector<Mapping> pool_;        // buffers to fetch into, ahead or for several restores
  bool may_be_free_ = false;         // one of those that hold shared groups
  bool waits_for_others_ = false;    // a job, for groups that others read
  bool stopping_ = false;
  std::atomic<unsigned> busy_workers_{0};
  std::vector<std::thread> threads_;
};

}  // namespace reap
