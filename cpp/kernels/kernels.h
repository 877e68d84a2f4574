// The operations on any problem, with the leaves of one instruction set.
#pragma once

#include "kernels/leaves.h"

namespace batchnorm {

void forward(const Problem& p, const Isa& isa);
void backward(const Problem& p, const Isa& isa);

// The yardsticks of benchmarks: a copy, by the C library or past the cache, and reading alone.
void copy(char* to, const char* from, int64_t bytes, int threads, bool streaming, const Isa& isa);
uint64_t read(const char* from, int64_t bytes, int threads, const Isa& isa);

}  // namespace batchnorm
