// Calls that nobody records, without the dispatcher: tensors as Python has them, read through DLPack's table of functions
// (DLPackExchangeAPI of https://github.com/dmlc/dlpack, which PyTorch offers as `Tensor.__dlpack_c_exchange_api__`). A function
// answers None, having changed nothing, where a call is not of a kind that it takes; the operations then compute, or refuse.
#pragma once

#include <nanobind/nanobind.h>

namespace batchnorm {

void bind_tensors(nanobind::module_& m);  // into its submodule `torch`

}  // namespace batchnorm
