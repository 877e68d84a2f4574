// Memory for one call, and what the machine's caches hold. Compiled once, for no particular instruction set.
#pragma once

#include <cstddef>
#include <cstdint>

namespace batchnorm {

void* scratch_allocate(size_t bytes);  // aligned to 64 bytes; throws std::bad_alloc
void scratch_free(void* memory, size_t bytes);

// Twice a core's second-level cache: what a block of channels may take so that its second pass finds it there or in the share of
// the last level that a core has.
int64_t cache_budget();

template <class T> class Scratch {
 public:
  explicit Scratch(int64_t count)
      : bytes_(static_cast<size_t>(count) * sizeof(T)), data_(static_cast<T*>(scratch_allocate(bytes_))) {}
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() { scratch_free(data_, bytes_); }
  operator T*() const { return data_; }

 private:
  size_t bytes_;
  T* data_;
};

}  // namespace batchnorm
