// Running statistics in NumPy's arrays.
#pragma once

#include <nanobind/nanobind.h>

namespace batchnorm {

void bind_running(nanobind::module_& m);

}  // namespace batchnorm
