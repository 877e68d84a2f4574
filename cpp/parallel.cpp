#include "parallel.h"

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

struct Job {
  TaskRef task;
  int64_t tasks;
  std::atomic<int64_t> next{0};

  void work() {
    for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) task(i);
  }
};

inline void pause_briefly() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#endif
}

// Workers sleep on a condition variable after a short spin; a job lives on its caller's stack, and the caller leaves only when
// every worker that entered it has left.
class Pool {
 public:
  // False where another caller has the pool.
  bool run(Job& job, int helpers) {
    std::unique_lock<std::mutex> owner(busy_, std::try_to_lock);
    if (!owner.owns_lock()) return false;
    helpers = grow(helpers);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      job_ = &job;
      seats_ = helpers;
      generation_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_all();
    job.work();
    std::unique_lock<std::mutex> lock(mutex_);
    seats_ = 0;  // who has not entered by now need not
    left_.wait(lock, [&] { return inside_ == 0; });
    job_ = nullptr;
    return true;
  }

 private:
  int grow(int wanted) {
    while (started_ < wanted) {
      try {
        std::thread([this] { serve(); }).detach();
      } catch (const std::system_error&) {
        break;  // the system gives no more threads: work with those there are
      }
      ++started_;
    }
    return wanted < started_ ? wanted : started_;
  }

  void serve() {
    uint64_t seen = 0;
    for (;;) {
      // About 20 microseconds: the gap between two kernels of one call, shorter than a wake-up.
      for (int spin = 0; spin < 1000 && generation_.load(std::memory_order_acquire) == seen; ++spin) pause_briefly();
      Job* job;
      {
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, [&] { return generation_.load(std::memory_order_relaxed) != seen; });
        seen = generation_.load(std::memory_order_relaxed);
        if (seats_ == 0) continue;
        --seats_;
        ++inside_;
        job = job_;
      }
      job->work();
      std::lock_guard<std::mutex> lock(mutex_);
      if (--inside_ == 0) left_.notify_one();
    }
  }

  std::mutex busy_, mutex_;
  std::condition_variable wake_, left_;
  std::atomic<uint64_t> generation_{0};
  Job* job_ = nullptr;
  int seats_ = 0, inside_ = 0, started_ = 0;
};

// Never destroyed: detached workers may outlive static destruction. A forked child has none of its parent's threads, so it gets a
// new pool; the parent's copy is left as it is, since its mutexes may be held.
Pool* pool = nullptr;
std::once_flag pool_once;

Pool& the_pool() {
  std::call_once(pool_once, [] {
    pool = new Pool;
    pthread_atfork(nullptr, nullptr, [] { pool = new Pool; });
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

void parallel_for(int64_t tasks, int threads, TaskRef task) {
  if (threads > tasks) threads = static_cast<int>(tasks);
  Job job{task, tasks};
  if (threads <= 1 || !the_pool().run(job, threads - 1)) job.work();
}

}  // namespace batchnorm
