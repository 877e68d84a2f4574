#include "runtime/scratch.h"

#include <unistd.h>

#include <cstdlib>
#include <new>

namespace batchnorm {

namespace {

// A call on a tiny input asks for a few kilobytes five times, and the system's allocator takes longer for aligned memory than a
// kernel for the input: so a thread keeps what it gave back last, a few blocks of one size.
#ifdef __SANITIZE_ADDRESS__
constexpr size_t kKept = 0, kBlocks = 1;
#else
constexpr size_t kKept = 16 * 1024, kBlocks = 8;
#endif

void* aligned(size_t bytes) {
  void* memory = std::aligned_alloc(64, bytes);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

struct Kept {
  void* blocks[kBlocks];
  size_t count = 0;
  ~Kept() {
    while (count > 0) std::free(blocks[--count]);
  }
};
thread_local Kept kept;

}  // namespace

void* scratch_allocate(size_t bytes) {
  bytes += 64;  // never empty
  if (bytes > kKept) return aligned((bytes + 63) / 64 * 64);
  return kept.count > 0 ? kept.blocks[--kept.count] : aligned(kKept);
}

void scratch_free(void* memory, size_t bytes) {
  if (bytes + 64 <= kKept && kept.count < kBlocks) kept.blocks[kept.count++] = memory;
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
