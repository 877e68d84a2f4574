#include "scratch.h"

#include <unistd.h>

#include <cstdlib>
#include <new>

namespace batchnorm {

void* scratch_allocate(size_t bytes) {
  bytes = (bytes + 127) / 64 * 64;  // never empty
  void* memory = std::aligned_alloc(64, bytes);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

void scratch_free(void* memory) { std::free(memory); }

int64_t cache_budget() {
  static const int64_t budget = [] {
    long size = 0;
#ifdef _SC_LEVEL2_CACHE_SIZE
    size = sysconf(_SC_LEVEL2_CACHE_SIZE);
#endif
    if (size < (256 << 10) || size > (8 << 20)) size = 512 << 10;  // unknown or implausible: a common size
    return static_cast<int64_t>(size / 2);
  }();
  return budget;
}

}  // namespace batchnorm
