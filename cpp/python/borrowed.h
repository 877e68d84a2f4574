// An array of Python's, borrowed.
#pragma once

#include <nanobind/nanobind.h>

#include <cstring>

#include "core/collapse.h"

namespace batchnorm {

constexpr const char* kOfData = "dfeH";  // struct's letters of x's dtypes; H: the bits of a bfloat16
constexpr const char* kOfParameters = "df";

// As long as this lives.
class Borrowed {
 public:
  Borrowed() = default;
  Borrowed(const Borrowed&) = delete;
  Borrowed& operator=(const Borrowed&) = delete;
  ~Borrowed() {
    if (held_) PyBuffer_Release(&view_);
  }

  // Whether it is an array exactly of this type, of one of these formats, with elements where they belong.
  bool take(nanobind::handle object, PyTypeObject* type, const char* formats, bool writable = false) {
    if (Py_TYPE(object.ptr()) != type) return false;
    const int flags = PyBUF_STRIDES | PyBUF_FORMAT | (writable ? PyBUF_WRITABLE : 0);
    if (PyObject_GetBuffer(object.ptr(), &view_, flags) != 0) {
      PyErr_Clear();
      return false;
    }
    held_ = true;
    if (view_.format == nullptr || view_.format[0] == 0 || view_.format[1] != 0 || !std::strchr(formats, view_.format[0]))
      return false;
    if (view_.ndim > kMaxDims || reinterpret_cast<uintptr_t>(view_.buf) % static_cast<uintptr_t>(view_.itemsize) != 0) return false;
    for (int d = 0; d < view_.ndim; ++d) {
      if (view_.strides[d] % view_.itemsize != 0) return false;
      strides_[d] = view_.strides[d] / view_.itemsize;
    }
    return true;
  }

  explicit operator bool() const { return held_; }
  char format() const { return view_.format[0]; }
  int ndim() const { return view_.ndim; }
  int64_t size(int d) const { return view_.shape[d]; }
  bool contiguous(char order) const { return PyBuffer_IsContiguous(&view_, order) != 0; }
  double* doubles() const { return static_cast<double*>(view_.buf); }
  int64_t* integer() const { return static_cast<int64_t*>(view_.buf); }

  View view() const {
    return {static_cast<char*>(view_.buf), dtype(), view_.ndim, reinterpret_cast<const int64_t*>(view_.shape), strides_};
  }
  bool has_shape_of(const Borrowed& other) const {
    return view_.ndim == other.view_.ndim &&
           std::memcmp(view_.shape, other.view_.shape, static_cast<size_t>(view_.ndim) * sizeof *view_.shape) == 0;
  }
  bool is_like(const Borrowed& other) const { return format() == other.format() && has_shape_of(other); }

  // Whether an output has memory of its own, or is exactly this input.
  bool apart_from(const Borrowed& other) const {
    const char *first, *end, *other_first, *other_end;
    span(&first, &end), other.span(&other_first, &other_end);
    return end <= other_first || other_end <= first;
  }
  bool same_memory(const Borrowed& other) const {
    return view_.buf == other.view_.buf && is_like(other) &&
           std::memcmp(view_.strides, other.view_.strides, static_cast<size_t>(view_.ndim) * sizeof *view_.strides) == 0;
  }

 private:
  Py_buffer view_{};
  int64_t strides_[kMaxDims];
  bool held_ = false;

  DType dtype() const {
    switch (format()) {
      case 'd': return DType::f64;
      case 'f': return DType::f32;
      case 'e': return DType::f16;
      case 'H': return DType::bf16;
      default: return DType::boolean;
    }
  }
  void span(const char** first, const char** end) const {
    *first = static_cast<char*>(view_.buf), *end = *first + view_.itemsize;
    for (int d = 0; d < view_.ndim; ++d) (view_.strides[d] < 0 ? *first : *end) += (view_.shape[d] - 1) * view_.strides[d];
  }
};

}  // namespace batchnorm
