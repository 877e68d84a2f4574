// Python inside a kernel: where PyTorch's own kernel has to answer, and where a call is refused.
#pragma once

#include <nanobind/nanobind.h>

#include <string>

#include "libtorch/stable_tensor.h"

namespace batchnorm {

// `fallback(name, arguments)` calls PyTorch's own kernel and returns a list of tensors as owning pointers, or None; an instance of
// `raiser` raises the exception it was made with when PyTorch calls it. `libtorch_python` is the path of that library.
void use_python(nanobind::object fallback, nanobind::object raiser, const std::string& libtorch_python);

// PyTorch's own kernel of that name. Call with Python's lock.
void answer_with_original(const char* name, const nanobind::tuple& arguments, stable::Value* results);

// Why a call is refused, in words. `why`: a sentence, or a rule that `_refusals.py` says. Call with Python's lock.
std::string said(const std::string& why);

// Throws a ValueError that comes out of PyTorch as it is.
[[noreturn]] void refuse(const std::string& why);

// An argument for answer_with_original. Call with Python's lock.
nanobind::object to_python(stable::Handle tensor);

}  // namespace batchnorm
