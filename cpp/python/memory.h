// Blocks of the pool as Python objects that NumPy can lay an array over.
#pragma once

#include <nanobind/nanobind.h>

namespace batchnorm {

void bind_memory(nanobind::module_& m);

}  // namespace batchnorm
