// A copy, and reading alone: what the benchmarks measure everything else by.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstring>

#include "load_store.h"
#include "parallel.h"

namespace batchnorm {
namespace BN_ISA {
namespace {

constexpr int64_t kLeastToShare = 128 * 1024;  // bytes a thread: copied in about the time that waking it takes

// Sixteen floats at a time past the cache, whatever the bytes mean. Both ends are aligned as floats are.
inline void stream_bytes(char* to, const char* from, int64_t bytes) {
  const int64_t head = std::min<int64_t>(-reinterpret_cast<intptr_t>(to) & 63, bytes);
  std::memcpy(to, from, head);
  int64_t i = head;
  for (; i + 64 <= bytes; i += 64) stream(reinterpret_cast<float*>(to + i), load(reinterpret_cast<const float*>(from + i)));
  std::memcpy(to + i, from + i, bytes - i);
  fence();
}

// Each thread takes one part, cut between cache lines: by the C library's memcpy, or past the cache.
void copy(char* to, const char* from, int64_t bytes, int threads, bool streaming) {
  const int64_t parts = std::clamp<int64_t>(bytes / kLeastToShare, 1, threads), lines = (bytes + 63) / 64;
  parallel_for(parts, threads, [&](int64_t part) {
    const int64_t first = std::min(lines * part / parts * 64, bytes), end = std::min(lines * (part + 1) / parts * 64, bytes);
    if (streaming) stream_bytes(to + first, from + first, end - first);
    else std::memcpy(to + first, from + first, end - first);
  });
}

// The sum of the bytes as little-endian words, so that nothing can be left out; each thread reads one part.
uint64_t read(const char* from, int64_t bytes, int threads) {
  typedef uint64_t V __attribute__((vector_size(kVectorBytes), aligned(1), may_alias));
  constexpr int kWords = kVectorBytes / 8, kVectors = 8;
  constexpr int64_t kStep = kVectors * kVectorBytes;
  const int64_t parts = std::clamp<int64_t>(bytes / kLeastToShare, 1, threads), steps = bytes / kStep;
  std::atomic<uint64_t> total{0};
  parallel_for(parts, threads, [&](int64_t part) {
    V sums[kVectors] = {};
    for (int64_t i = steps * part / parts, end = steps * (part + 1) / parts; i < end; ++i) {
      const char* at = from + i * kStep;
      prefetch(at + 8192, kStep);
      for (int k = 0; k < kVectors; ++k) sums[k] += reinterpret_cast<const V*>(at)[k];
    }
    uint64_t words = 0;
    for (const V& sum : sums)
      for (int k = 0; k < kWords; ++k) words += sum[k];
    total += words;
  });
  uint64_t rest[kStep / 8] = {};
  std::memcpy(rest, from + steps * kStep, bytes % kStep);
  for (const uint64_t word : rest) total += word;
  return total;
}

}  // namespace
}  // namespace BN_ISA
}  // namespace batchnorm
