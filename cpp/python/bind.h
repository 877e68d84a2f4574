// What the parts of the Python module add to it.
#pragma once

#include <nanobind/nanobind.h>

namespace batchnorm {

void bind_calls(nanobind::module_& m);    // the one door from NumPy to the kernels
void bind_running(nanobind::module_& m);  // running statistics in NumPy's arrays
void bind_memory(nanobind::module_& m);   // blocks of the pool as objects that NumPy can lay an array over

// Into its submodule `torch`: calls that nobody records, without the dispatcher. Tensors as Python has them are read through
// DLPack's table of functions (DLPackExchangeAPI of https://github.com/dmlc/dlpack, which PyTorch offers as
// `Tensor.__dlpack_c_exchange_api__`). A function answers None, having changed nothing, where a call is not of a kind that it
// takes; the operations then compute, or refuse.
void bind_tensors(nanobind::module_& m);

}  // namespace batchnorm
