#include "runtime/parallel.h"

#include <pthread.h>
#ifdef __linux__
#include <sched.h>
#endif

#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>

namespace batchnorm {
namespace {

constexpr int kRanges = 32;  // threads beyond share them

struct alignas(64) Range {  // alone on its cache line
  std::atomic<int64_t> taken{0};
};

// Callers that want several threads, now: each has its own, so the helpers of the others must be that many fewer.
std::atomic<int> callers{0};

struct Caller {
  Caller() { callers.fetch_add(1); }
  Caller(const Caller&) = delete;
  Caller& operator=(const Caller&) = delete;
  ~Caller() { callers.fetch_sub(1); }
};

struct Job {
  TaskRef task;
  int64_t tasks;
  Order order;
  int threads, ranges;
  Range range[kRanges];

  // Thread `who`: its own range, then those after it. A helper leaves when other callers have come in its place; the job's own
  // caller, who is 0, finishes what is left.
  void work(int who) {
    for (int i = 0; i < ranges; ++i) finish((who + i) % ranges, who);
  }

  void finish(int k, int who) {
    const int64_t first = tasks * k / ranges, end = tasks * (k + 1) / ranges;
    while (who == 0 || who + callers.load(std::memory_order_relaxed) <= threads) {
      const int64_t i = range[k].taken.fetch_add(1, std::memory_order_relaxed);
      if (i >= end - first) return;
      task(order == Order::forwards ? first + i : end - 1 - i);
    }
  }
};

inline void pause_briefly() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#endif
}

// Spins of about 40 cycles: a worker waits some 30 microseconds for the next job (the next pass, the next call) before it sleeps,
// which is about what waking it costs.
constexpr int kSpins = 2000;

// One job at a time. Its state is one word: who has not seen this generation may take a seat and be inside; the job lives on its
// caller's stack, and the caller leaves only when the seats are gone and nobody is inside.
class Pool {
 public:
  // False where another caller has the pool.
  bool run(Job& job, int helpers) {
    if (busy_.exchange(true)) return false;
    helpers = grow(helpers);
    job_ = &job;
    state_.store(((state_.load() >> 32) + 1) << 32 | static_cast<uint64_t>(helpers) << 16);
    if (sleepers_.load() > 0) {
      std::lock_guard<std::mutex> lock(mutex_);
      wake_.notify_all();
    }
    job.work(0);
    state_.fetch_and(~kSeats);
    for (int spin = 0; (state_.load() & kInside) != 0; ++spin) {
      if (spin < kSpins) pause_briefly();
      else std::this_thread::yield();
    }
    busy_.store(false);
    return true;
  }

 private:
  static constexpr uint64_t kInside = 0xffff, kSeats = 0xffff0000, kOneSeat = 0x10000;

  int grow(int wanted) {
    while (started_ < wanted) {
      try {
        std::thread([this, who = started_ + 1] { serve(who); }).detach();
      } catch (const std::system_error&) {
        break;  // the system gives no more threads: work with those there are
      }
      ++started_;
    }
    return wanted < started_ ? wanted : started_;
  }

  void serve(int who) {
    for (uint64_t seen = 0;;) {
      uint64_t state = state_.load();
      for (int spin = 0; state >> 32 == seen; state = state_.load()) {
        if (++spin < kSpins && callers.load(std::memory_order_relaxed) < 2) pause_briefly();
        else sleep_past(seen);
      }
      seen = state >> 32;
      while ((state & kSeats) != 0 && state >> 32 == seen) {
        if (!state_.compare_exchange_weak(state, state - kOneSeat + 1)) continue;
        job_->work(who);
        state_.fetch_sub(1);
        break;
      }
    }
  }

  void sleep_past(uint64_t seen) {
    std::unique_lock<std::mutex> lock(mutex_);
    ++sleepers_;  // before looking at the state, as run() sets the state before looking here: one of the two sees the other
    wake_.wait(lock, [&] { return state_.load() >> 32 != seen; });
    --sleepers_;
  }

  std::atomic<bool> busy_{false};
  std::atomic<uint64_t> state_{0};  // generation (32 bits), seats left (16), workers inside (16)
  std::atomic<int> sleepers_{0};
  std::mutex mutex_;
  std::condition_variable wake_;
  Job* job_ = nullptr;
  int started_ = 0;
};

// Never destroyed: detached workers may outlive static destruction. A forked child has none of its parent's threads, so it gets a
// new pool; the parent's copy is left as it is, since its mutexes may be held.
Pool* pool = nullptr;
std::once_flag pool_once;

thread_local HostPool host_pool = nullptr;
std::atomic<bool> forked{false};

Pool& the_pool() {
  std::call_once(pool_once, [] {
    pool = new Pool;
    pthread_atfork(nullptr, nullptr, [] {
      pool = new Pool;
      callers.store(0);
    });
  });
  return *pool;
}

int default_threads() {
  if (const char* text = std::getenv("OMP_NUM_THREADS")) {
    const long value = std::strtol(text, nullptr, 10);  // "4,2" (nested levels) means 4
    if (value > 0 && value <= 4096) return static_cast<int>(value);
  }
#ifdef __linux__
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof allowed, &allowed) == 0) return CPU_COUNT(&allowed);
#endif
  const unsigned count = std::thread::hardware_concurrency();
  return count > 0 ? static_cast<int>(count) : 1;
}

std::atomic<int> num_threads{0};

}  // namespace

void set_num_threads(int threads) { num_threads.store(threads); }

int get_num_threads() {
  int threads = num_threads.load();
  if (threads == 0) num_threads.store(threads = default_threads());
  return threads;
}

void parallel_for(int64_t tasks, int threads, TaskRef task, Order order) {
  if (threads > tasks) threads = static_cast<int>(tasks);
  if (threads <= 1) {
    for (int64_t i = 0; i < tasks; ++i) task(order == Order::forwards ? i : tasks - 1 - i);
    return;
  }
  Job job{task, tasks, order, threads, threads < kRanges ? threads : kRanges, {}};
  if (host_pool != nullptr) {
    const auto work = [](int64_t begin, int64_t end, void* context) {
      for (int64_t i = begin; i < end; ++i) static_cast<Job*>(context)->work(static_cast<int>(i));
    };
    return host_pool(threads, work, &job);
  }
  const Caller caller;
  const int helpers = threads - callers.load();
  if (helpers <= 0 || !the_pool().run(job, helpers)) job.work(0);
}

OnHostPool::OnHostPool(HostPool pool) {
  static std::once_flag once;
  std::call_once(once, [] { pthread_atfork(nullptr, nullptr, [] { forked.store(true); }); });
  if (!forked.load(std::memory_order_relaxed)) host_pool = pool;
}

OnHostPool::~OnHostPool() { host_pool = nullptr; }

}  // namespace batchnorm
