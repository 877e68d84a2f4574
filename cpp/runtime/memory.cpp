#include "runtime/memory.h"

#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include <chrono>
#include <deque>
#include <mutex>
#include <unordered_map>
#include <vector>

namespace batchnorm {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int64_t kHugePage = int64_t(2) << 20;
constexpr double kDefaultSeconds = 30;
constexpr int64_t kDefaultLimit = int64_t(1) << 30;  // or an eighth of the machine's memory, if that is less

struct Block {
  void* memory;
  int64_t bytes;
  Clock::time_point since;
};
using Blocks = std::vector<Block>;

// Sizes in steps of an eighth of a power of two, whole huge pages: a block serves results that are a little smaller.
int64_t size_class(int64_t bytes) {
  int64_t step = kHugePage;
  while (16 * step < bytes) step *= 2;
  return (bytes + step - 1) / step * step;
}

void* map(int64_t bytes) {
  const auto whole = static_cast<size_t>(bytes + kHugePage);
  void* memory = mmap(nullptr, whole, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return nullptr;
  auto* first = static_cast<char*>(memory);
  auto* aligned = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(first) + kHugePage - 1) / kHugePage * kHugePage);
  if (aligned > first) munmap(first, static_cast<size_t>(aligned - first));
  if (aligned + bytes < first + whole) munmap(aligned + bytes, static_cast<size_t>(first + whole - (aligned + bytes)));
#ifdef MADV_HUGEPAGE
  madvise(aligned, static_cast<size_t>(bytes), MADV_HUGEPAGE);  // advice: where there are none, small pages serve
#endif
  return aligned;
}

int64_t default_limit() {
  const int64_t memory = static_cast<int64_t>(sysconf(_SC_PHYS_PAGES)) * sysconf(_SC_PAGESIZE);
  return memory > 0 && memory / 8 < kDefaultLimit ? memory / 8 : kDefaultLimit;
}

class Pool {
 public:
  Pool() { stats_.limit = default_limit(), stats_.seconds = kDefaultSeconds; }

  void* allocate(int64_t bytes) {
    if (bytes < kPooledFrom) return nullptr;
    const int64_t size = size_class(bytes);
    void* memory = nullptr;
    const bool is_on = drop_after([&] {
      if (stats_.limit == 0) return int64_t(0);
      memory = take(size);
      if (memory != nullptr) ++stats_.reused;
      return stats_.limit;
    });
    if (!is_on) return nullptr;
    if (memory == nullptr) memory = map(size);
    if (memory == nullptr) {
      empty();
      memory = map(size);
    }
    if (memory == nullptr) return nullptr;
    std::lock_guard<std::mutex> lock(mutex_);
    out_[memory] = size;
    ++stats_.served;
    stats_.in_use += size;
    if (stats_.in_use + stats_.idle > stats_.peak) stats_.peak = stats_.in_use + stats_.idle;
    return memory;
  }

  void release(void* memory) {
    drop_after([&] {
      const auto found = out_.find(memory);
      idle_.push_back({memory, found->second, Clock::now()});
      stats_.in_use -= found->second, stats_.idle += found->second;
      out_.erase(found);
      return stats_.limit;
    });
  }

  void set_limit(int64_t bytes, double seconds) {
    drop_after([&] {
      stats_.limit = bytes, stats_.seconds = seconds;
      return bytes;
    });
  }

  void empty() {
    drop_after([] { return int64_t(0); });
  }

  PoolStats stats() {
    std::lock_guard<std::mutex> lock(mutex_);
    return stats_;
  }

  void lock() { mutex_.lock(); }
  void unlock() { mutex_.unlock(); }

 private:
  // The block of this size that was used last: caches may still hold some of it.
  void* take(int64_t size) {
    for (auto i = idle_.rbegin(); i != idle_.rend(); ++i) {
      if (i->bytes != size) continue;
      void* memory = i->memory;
      stats_.idle -= size;
      idle_.erase(std::next(i).base());
      return memory;
    }
    return nullptr;
  }

  // Changes what is behind the lock, then gives back what is idle beyond the limit that `change` returns; whether that is not 0.
  template <class Change> bool drop_after(const Change& change) {
    int64_t limit;
    Blocks old;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      limit = change();
      old = drop(limit);
    }
    for (const Block& b : old) munmap(b.memory, static_cast<size_t>(b.bytes));  // outside of the lock: it takes a while
    return limit != 0;
  }

  // Takes the blocks that have been idle longest out, until the rest is within the limit and none has been for too long.
  Blocks drop(int64_t limit) {
    Blocks old;
    const Clock::time_point now = Clock::now();
    const auto is_old = [&](const Block& b) { return std::chrono::duration<double>(now - b.since).count() > stats_.seconds; };
    while (!idle_.empty() && (stats_.idle > limit || is_old(idle_.front()))) {
      stats_.idle -= idle_.front().bytes;
      old.push_back(idle_.front());
      idle_.pop_front();
    }
    return old;
  }

  std::mutex mutex_;
  PoolStats stats_;
  std::deque<Block> idle_;  // longest first
  std::unordered_map<void*, int64_t> out_;
};

// Never destroyed: results may be dropped while the process ends. A fork waits until no thread is inside; the child has copies of
// all blocks, as of any memory.
Pool& pool() {
  static Pool* const the = [] {
    static Pool* made = new Pool;
    pthread_atfork([] { made->lock(); }, [] { made->unlock(); }, [] { made->unlock(); });
    return made;
  }();
  return *the;
}

}  // namespace

void* pool_allocate(int64_t bytes) { return bytes < kPooledFrom ? nullptr : pool().allocate(bytes); }
void pool_release(void* memory) { pool().release(memory); }
PoolStats pool_stats() { return pool().stats(); }
void pool_set_limit(int64_t bytes, double seconds) { pool().set_limit(bytes, seconds); }
void pool_empty() { pool().empty(); }

}  // namespace batchnorm
