// Our own operations in PyTorch's dispatcher (src/batchnorm/torch/_operations.py), and what all kernels there share.
#pragma once

#include <initializer_list>
#include <string>

#include "libtorch/stable_tensor.h"
#include "runtime/parallel.h"

namespace batchnorm {

struct Registered {
  const char* name;
  stable::Kernel kernel;
};

extern const Registered kOperations[];
extern const int kOperationCount;

// Registers kernels of a namespace for the CPU, or under another key.
stable::Library add(const char* ns, const Registered* kernels, int count, const char* key = "CPU");

void on_pool_of_torch(int64_t tasks, void (*work)(int64_t, int64_t, void*), void* context);
int threads_of_torch();
bool all_readable(std::initializer_list<const stable::Handle*> tensors);
void require_readable(std::initializer_list<const stable::Handle*> tensors);

}  // namespace batchnorm
