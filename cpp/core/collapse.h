// From strided arrays of any rank to a Problem: axes of length one go, and neighbors that are one axis in every array's memory
// become one.
#pragma once

#include <vector>

#include "core/problem.h"

namespace batchnorm {

// An array as a front end hands it over; strides count elements.
struct View {
  char* data = nullptr;
  DType dtype = DType::f32;
  int ndim = 0;
  const int64_t *sizes = nullptr, *strides = nullptr;

  explicit operator bool() const { return data != nullptr; }
};

struct Operand {
  Array Problem::* array;
  View view;
};

inline int64_t bytes_of(DType dtype) {
  switch (dtype) {
    case DType::f64: return 8;
    case DType::f32: return 4;
    case DType::boolean: return 1;
    default: return 2;
  }
}

// Fills sizes, strides and pointers. `channel_axes` has a bit for each channel axis; the first operand is x, whose sizes all of
// them have.
inline void collapse(Problem& p, uint64_t channel_axes, const std::vector<Operand>& operands) {
  const View& x = operands[0].view;
  for (const bool channels : {false, true}) {
    int n = 0;
    int64_t* sizes = channels ? p.channel : p.reduced;
    const auto strides = [&](const Operand& o) { return channels ? (p.*o.array).channel : (p.*o.array).reduced; };
    for (int d = 0; d < x.ndim; ++d) {
      if (((channel_axes >> d & 1) != 0) != channels || x.sizes[d] == 1) continue;
      bool joins = n > 0;
      for (const Operand& o : operands) {
        const int64_t step = o.view.strides[d];
        if (n > 0 && strides(o)[n - 1] != step * x.sizes[d]) joins = false;
        strides(o)[n] = step;
      }
      if (joins) {
        sizes[n - 1] *= x.sizes[d];
        for (const Operand& o : operands) strides(o)[n - 1] = strides(o)[n];
      } else {
        sizes[n++] = x.sizes[d];
      }
    }
    if (n == 0) {
      sizes[n++] = 1;
      for (const Operand& o : operands) strides(o)[0] = 1;
    }
    (channels ? p.channel_dims : p.reduced_dims) = n;
    int64_t total = 1;
    for (int d = 0; d < n; ++d) total *= sizes[d];
    (channels ? p.C : p.m) = total;
  }
  for (const Operand& o : operands) {
    const int64_t itemsize = bytes_of(o.view.dtype);
    const char* end = o.view.data + itemsize;
    for (int d = 0; d < o.view.ndim; ++d)
      if (o.view.strides[d] > 0) end += (x.sizes[d] - 1) * o.view.strides[d] * itemsize;
    Array& array = p.*o.array;
    array.data = o.view.data;
    array.dtype = o.view.dtype;
    array.end = end;
  }
  p.dtype = x.dtype;
}

}  // namespace batchnorm
