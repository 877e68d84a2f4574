// Calls of the usual kind, checked and run without Python.
#pragma once

#include <nanobind/nanobind.h>

namespace batchnorm {

void bind_usual(nanobind::module_& m);

}  // namespace batchnorm
