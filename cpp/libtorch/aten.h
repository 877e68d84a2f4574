// What `_native` offers the PyTorch front end: its submodule `torch`.
#pragma once

#include <nanobind/nanobind.h>

namespace batchnorm {

void bind_torch(nanobind::module_& m);

}  // namespace batchnorm
