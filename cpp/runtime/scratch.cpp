#include "runtime/scratch.h"

#include <unistd.h>

#include <cstdlib>
#include <new>

namespace batchnorm {

namespace {

// A call on a tiny input asks for a few kilobytes five times, and the system's allocator takes longer for aligned memory than a
// kernel for the input: so a thread keeps what it gave back last, a few blocks of one size.
#ifdef __SANITIZE_ADDRESS__
constexpr size_t kCached = 0, kBlocks = 1;
#else
constexpr size_t kCached = 32 * 1024, kBlocks = 8;
#endif

void* aligned(size_t bytes) {
  void* memory = std::aligned_alloc(64, bytes);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

struct Cached {
  void* blocks[kBlocks];
  size_t count = 0;
  ~Cached() {
    while (count > 0) std::free(blocks[--count]);
  }
};
thread_local Cached cached;

}  // namespace

void* scratch_allocate(size_t bytes) {
  bytes += 64;  // never empty
  if (bytes > kCached) return aligned((bytes + 63) / 64 * 64);
  return cached.count > 0 ? cached.blocks[--cached.count] : aligned(kCached);
}

void scratch_free(void* memory, size_t bytes) {
  if (bytes + 64 <= kCached && cached.count < kBlocks) cached.blocks[cached.count++] = memory;
  else std::free(memory);
}

int64_t cache_budget() {
  static const int64_t budget = [] {
    long size = 0;
#ifdef _SC_LEVEL2_CACHE_SIZE
    size = sysconf(_SC_LEVEL2_CACHE_SIZE);
#endif
    if (size < (256 << 10) || size > (8 << 20)) size = 512 << 10;  // unknown or implausible: a common size
    return static_cast<int64_t>(size) * 2;
  }();
  return budget;
}

}  // namespace batchnorm
