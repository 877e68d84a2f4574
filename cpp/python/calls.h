// The one door from NumPy to the kernels.
#pragma once

#include <nanobind/nanobind.h>

namespace batchnorm {

void bind_calls(nanobind::module_& m);

}  // namespace batchnorm
