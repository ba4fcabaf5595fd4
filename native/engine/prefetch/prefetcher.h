// Brings working sets into guests, for any number of restores. Workers fetch a group and install
// its extents; readers fetch ahead of them where fetches wait for the disk.
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
#include <vector>

#include "base/failure.h"
#include "base/page.h"
#include "base/posix.h"
#include "base/thread_group.h"
#include "files/page_source.h"
#include "prefetch/buffer_pool.h"
#include "prefetch/shared_groups.h"
#include "uffd/fault_handler.h"
#include "working_set/plan.h"

namespace reap {

struct PrefetchReport {
  uint64_t pages = 0;  // of the guest's page size, installed before the guest touched them
  uint64_t extents = 0;
  uint64_t bytes = 0;
  uint64_t since_connect_us = 0;
  bool from_working_set = false;  // source of the bytes; else the memory file
  Failure failure;                // reason for an early end; the guest is then served on demand
};

// A restore as the prefetcher sees it. Its methods are called on worker threads.
class PrefetchClient {
 public:
  virtual ~PrefetchClient() = default;
  virtual FaultHandler& handler() = 0;  // valid after connected()
  virtual const PageSource& memory_file() = 0;
  virtual Measurements& measurements() = 0;
  virtual const std::atomic<bool>& stopping() = 0;
  // Brackets installs: between two of them the worker polls for faults and serves them.
  virtual void begin_installs() = 0;
  virtual void poll_faults(ServeBuffers& buffers) = 0;
  virtual void end_installs() = 0;
  virtual void on_prefetched(const PrefetchReport& report) = 0;
  // Called when every missing page is installed, or with the `failure` that prevents it.
  virtual void on_filled(FaultHandler::Filled end, const Failure& failure) = 0;
  // Time after which on_hung_read() is called for a task that waits for a file; 0: never.
  virtual std::chrono::milliseconds read_timeout() const { return {}; }
  virtual void on_hung_read(bool /* is_of_working_set */) {}
};

class Prefetcher {
 public:
  // `watch` is called when threads begin to work; replace_stuck_threads() shall be called then, a
  // while later.
  explicit Prefetcher(unsigned workers, unsigned readers = 0, ThreadGroup threads = {},
                      std::function<void()> watch = nullptr);
  ~Prefetcher();
  // 0, or the negative errno with which a thread could not be started (base/thread.h).
  int error() const { return error_; }
  // Lets the threads end.
  void stop();

  // Starts to fetch; installs begin with connected(). The bytes come from the working-set file
  // while both files are in the states of the proof, and otherwise from the memory file.
  void start(std::shared_ptr<PrefetchClient> client, std::shared_ptr<const Plan> plan,
             std::shared_ptr<const ProvenFile> proven);
  void connected(PrefetchClient* client);
  // The guest waits for this page: its unit is fetched and installed before the others.
  void prioritize(PrefetchClient* client, uint64_t offset);
  // Installs every page of the memory file that the guest lacks, except removed ones.
  void fill(std::shared_ptr<PrefetchClient> client);
  // Releases the client as soon as no thread works for it.
  void cancel(PrefetchClient* client);

  // Starts a thread in the place of each that waits for long within one task: its storage may hang,
  // and the other restores need theirs. The one that was replaced ends after its task. Also reports
  // reads that hang.
  void replace_stuck_threads();

  // Excludes readers, which mostly wait for the disk.
  unsigned busy_workers() const { return busy_workers_.load(std::memory_order_relaxed); }

 private:
  static constexpr uint64_t kBufferBytes = kMaxBlockBytes;  // also the size of one fill() task

  // Extents of a group, or a block, that were holes of the memory file when fetched.
  using Holes = std::bitset<kMaxMemoryGroupPages>;
  struct ReadyUnit {
    uint64_t unit;
    Buffer buffer;  // the mutex is held while owners are added or dropped
    Holes holes;
  };
  // Source of the bytes, which also defines the units of a job.
  enum class Source {
    working_set,    // groups of `plan`, from the working-set file
    memory_groups,  // groups of `memory_groups`, from the memory file
    blocks,         // `blocks`, from the memory file
  };
  // Work on one restore. Only `client`, `plan`, `proven`, `source`, `memory_groups` and `blocks`
  // are read without the mutex, by workers that are counted in `busy`. Its states, by their flags:
  //
  //   (none)                      before the handshake: threads fetch ahead
  //   waits_for_handshake         the same, but nothing is fetched
  //   connected                   workers fetch and install; readers fetch ahead of them if
  //                               last_fetch_blocked
  //   connected, filling          a fill() job from the start: one task at a time
  //   replan, with any of these   no new task until `busy` is 0, then new units
  //   over                        failed before the handshake: kept until connected or cancelled
  //   over, connected             reported and removed when `busy` is 0
  //   over, cancelled or vm_gone  removed without a report when `busy` is 0
  struct Job {
    std::shared_ptr<PrefetchClient> client;
    std::shared_ptr<const Plan> plan;
    std::shared_ptr<const ProvenFile> proven;  // null: the bytes come from the memory file
    std::shared_ptr<SharedGroups> shared;      // by all restores of the same set
    Source source = Source::memory_groups;
    Plan memory_groups;
    std::vector<Block> blocks;
    FileStamp memory_stamp{};  // of the fetched bytes
    uint64_t page_size = kPage;
    bool replan = true;  // `source` is unknown, or no longer valid
    bool proof_is_void = false;
    bool waits_for_handshake = false;  // before it, the memory file may change without a trace
    bool filling = false;              // a fill() job: `next` is an offset in the memory file
    bool connected = false;
    bool last_fetch_blocked = false;  // the last fetch waited for the disk
    bool over = false;                // finished, failed or cancelled
    bool cancelled = false;
    bool vm_gone = false;         // the VM is gone: nothing to report
    uint64_t next = 0;            // lowest unit that may not be begun yet
    std::vector<bool> begun;      // units that are fetched or being fetched
    std::deque<uint64_t> wanted;  // begun units that the guest waits for
    uint64_t installed = 0;       // number of finished units
    unsigned busy = 0;
    unsigned fetching = 0;  // of `busy`, those that fetch ahead
    unsigned stuck = 0;     // of `busy`, those that were replaced: nothing more is fetched
    std::deque<ReadyUnit> ready;
    PrefetchReport report;
    FaultHandler::Filled filled = FaultHandler::Filled::all;
    std::chrono::steady_clock::time_point short_of_memory_since{};

    // Groups to fetch, unless the source is `blocks`.
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
    Buffer buffer;  // to fetch into, or fetched already; null: the worker's buffer
    Holes holes;
    FileStamp memory_stamp{};  // of the job; the current one if `is_void`
    bool is_connected = false;
    bool is_shared = false;      // other restores wait for the fetched data
    bool is_void = false;        // the fetched bytes may be of another state of the files
    uint64_t fetched_bytes = 0;  // read from a file
    bool waited = false;         // that read waited for the disk
    int pauses = 0;              // while waiting for the VMM to complete a REMOVE
    PrefetchReport report;       // added to the job's
    FaultHandler::Filled filled = FaultHandler::Filled::all;
  };
  // Contiguous guest memory and its bytes; null for zeros.
  struct Piece {
    uint64_t offset;
    uint64_t length;
    const uint8_t* bytes;
  };
  // Memory of one worker thread.
  struct WorkerState {
    Mapping fetched;
    std::vector<Piece> pieces;
    ServeBuffers serve;
    uint32_t number = 0;
    // Returns memory that is not in use to the kernel; false if the pool may have some later.
    bool release_pages() {
      fetched.release_pages();
      serve.pages.release_pages();
      return BufferPool::shared().return_idle();
    }
  };
  using Jobs = std::list<std::unique_ptr<Job>>;

  enum class Role { worker, reader };
  struct Thread {
    Role role;
    bool is_replaced = false;
    bool is_hung = false;  // its task, which was reported
    pid_t id = 0;
    uint32_t number = 0;  // counts those that were started
    Job* job = nullptr;   // of its task
    // Begin of its task, or the last time at which it had a core or waited for one.
    std::chrono::steady_clock::time_point waits_since{};
  };
  int start_thread(Role role);
  void work(Thread& self);
  void begin_task(Thread& self, Job& job);
  void end_task(Thread& self);
  bool next_task(Role role, Task* task);
  bool next_of(Role role, Job& job, Task* task);
  static bool has_units(Job& job);
  static uint64_t begin_unit(Job& job, uint64_t unit);
  static bool unit_covers(const Job& job, uint64_t unit, uint64_t offset);
  bool next_worker_task(Job& job, Task* task);
  bool next_reader_task(Job& job, Task* task);
  bool fetch_ahead(Job& job, Task* task);
  void take_unit(Job& job, uint64_t unit, Task* task);
  void replan(Job& job);
  void join_shared(Job& job);
  void leave_shared(Job& job);
  static bool reads_shared(const Job& job);
  static std::optional<uint64_t> find_unit(const Job& job, SharedGroups::State state);
  static std::optional<uint64_t> next_to_fetch(const Job& job);
  static std::optional<uint64_t> next_to_install(const Job& job);
  static bool begin_shared(Job& job, uint64_t unit);
  void share_fetched(const Job& job, const Task& task, bool good);
  size_t ahead_count(const Job& job) const;
  Buffer take_buffer();
  void perform(Task& task, WorkerState& state);
  bool fetch(const Job& job, Task& task, uint8_t* buffer, uint32_t thread);
  bool fetch_group(const Job& job, Task& task, uint8_t* buffer);
  bool fetch_memory_group(const Job& job, Task& task, uint8_t* buffer);
  bool fetch_block(const Job& job, Task& task, uint8_t* buffer);
  bool check_stamps(const Job& job, Task& task, uint64_t offset);
  static void lay_out(const Job& job, Task& task, const uint8_t* buffer,
                      std::vector<Piece>* pieces);
  void install(const Job& job, Task& task, const uint8_t* buffer, WorkerState& state);
  bool install_run(const Job& job, Task& task, uint64_t offset, const uint8_t* bytes,
                   uint64_t length, const std::function<void()>& poll);
  void fill_stretch(const Job& job, Task& task, Mapping& buffer);
  void settle(Task& task);
  void settle_fill(Job& job, const Task& task);
  void end_if_over(Job* job, std::unique_lock<std::mutex>& lock);
  void recycle(Buffer&& buffer);

  std::mutex mutex_;                         // guards the jobs; not held while a task is performed
  std::condition_variable changed_;          // a worker may have a task
  std::condition_variable readers_changed_;  // a reader may have a task
  Jobs jobs_;                                // order of service
  bool shared_may_be_free_ = false;          // a buffer of a shared group may be free
  bool waits_for_others_ = false;  // a job waits for groups that others read, or for a buffer
  bool stopping_ = false;
  std::atomic<unsigned> busy_workers_{0};
  int error_ = 0;
  std::list<Thread> running_;
  uint32_t started_ = 0;
  uint64_t recycled_ = 0;  // number of buffers that were returned
  bool is_watched_ = false;
  const std::function<void()> watch_;
  const ThreadGroup threads_;
};

}  // namespace reap
