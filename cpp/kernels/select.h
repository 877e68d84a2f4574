// Which kernels run: an ordered list, the best first; the reference is last and is only ever chosen by name.
#pragma once

#include <vector>

#include "core/problem.h"

namespace batchnorm {

const std::vector<const Kernels*>& list_kernels();  // those that were built and that this CPU can run, best first
const Kernels* find_kernels(const char* name);      // null where there is none of that name
const Kernels& active_kernels();
void activate_kernels(const Kernels& kernels);

}  // namespace batchnorm
