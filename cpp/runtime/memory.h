// Memory for large results. A fresh one from the system costs a page fault for every 4 KiB and is unmapped when it is dropped;
// blocks from here are cached for the next result, and ask for huge pages.
#pragma once

#include <cstddef>
#include <cstdint>

namespace batchnorm {

constexpr int64_t kPooledFrom = int64_t(4) << 20;  // bytes; what is smaller is the ordinary allocator's, which keeps it mapped

// At least `bytes` bytes, aligned to 2 MiB, uninitialized. Null where the pool does not serve: below kPooledFrom, switched off, or
// no memory; the caller's ordinary allocator answers then.
void* pool_allocate(int64_t bytes);
void pool_release(void* memory);  // what pool_allocate gave; any thread, at any time, in a forked child, too

struct PoolStats {
  int64_t in_use = 0;  // bytes of blocks that are handed out
  int64_t idle = 0;    // bytes of blocks that are cached
  int64_t peak = 0;    // highest in_use + idle so far
  int64_t limit = 0;   // highest idle; 0: the pool is off
  double seconds = 0;  // how long a block is cached at most
  int64_t served = 0;  // blocks handed out so far
  int64_t reused = 0;  // of these, blocks that had been cached
};
PoolStats pool_stats();

void pool_set_limit(int64_t bytes, double seconds);
void pool_empty();  // gives idle blocks back to the system

}  // namespace batchnorm
