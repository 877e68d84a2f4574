// Which kernels run: an ordered list, the best first; the reference is last and is only ever chosen by name.
#pragma once

#include "core/problem.h"

namespace batchnorm {

constexpr int kMaxKernels = 5;

int list_kernels(const Kernels** out);          // those that were built and that this CPU can run, best first; returns how many
const Kernels* find_kernels(const char* name);  // null where there is none of that name
const Kernels& active_kernels();
void activate_kernels(const Kernels& kernels);

}  // namespace batchnorm
