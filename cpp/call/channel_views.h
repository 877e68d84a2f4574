// Values of a channel each, whatever dtype and strides they come with.
#pragma once

#include <algorithm>

#include "core/collapse.h"
#include "core/convert.h"
#include "kernels/select.h"
#include "runtime/scratch.h"

namespace batchnorm {

// Values of a channel each: weight, bias, running or saved statistics. With ghosts, a weight and bias may have a row for each.
struct ChannelViews {
  View weight, bias, mean, var;
};

constexpr uint64_t kChannelsOnAxis1 = 2;

inline bool is_floating(DType dtype) { return dtype != DType::boolean; }
inline bool is_16_bit(DType dtype) { return dtype == DType::f16 || dtype == DType::bf16; }

// A value as a view of that dtype keeps it.
inline double stored(const View& v, double value) {
  char memory[sizeof(double)];
  put_value(v.dtype, memory, 0, value);
  return value_at(v.dtype, memory, 0);
}

// Values of C channels, of a vector, as doubles; and back.
inline void read_channels(const View& v, double* to) {
  const int64_t C = v.sizes[v.ndim - 1], step = v.strides[v.ndim - 1];
  if (step == 1) return active_kernels().to_doubles(v.dtype, to, v.data, C);
  for (int64_t c = 0; c < C; ++c) to[c] = value_at(v.dtype, v.data, c * step);
}
inline void write_channels(const View& v, const double* from) {
  const int64_t C = v.sizes[v.ndim - 1], step = v.strides[v.ndim - 1];
  if (step == 1) return active_kernels().from_doubles(v.dtype, v.data, from, C);
  for (int64_t c = 0; c < C; ++c) put_value(v.dtype, v.data, c * step, from[c]);
}

// A channel's values as doubles, or null where there are none; of a matrix, its rows one after another.
class Doubles {
 public:
  explicit Doubles(const View& v) : is_there_(v), values_(v ? (v.ndim == 2 ? v.sizes[0] : 1) * v.sizes[v.ndim - 1] : 0) {
    if (v && v.ndim == 1) read_channels(v, values_);
    for (int64_t row = 0; v && v.ndim == 2 && row < v.sizes[0]; ++row) {
      View one = v;
      one.data += row * v.strides[0] * bytes_of(v.dtype);
      read_channels(one, values_ + row * v.sizes[1]);
    }
  }
  const double* get() const { return is_there_ ? static_cast<double*>(values_) : nullptr; }

 private:
  bool is_there_;
  Scratch<double> values_;
};

// Statistics that were given stand for one position: m2 is the variance.
inline void set_given(const Statistics& to, const ChannelViews& channels, int64_t C) {
  std::fill_n(to.count, C, 1.0), std::fill_n(to.mean_low, C, 0.0);
  read_channels(channels.mean, to.mean), read_channels(channels.var, to.m2);
}

}  // namespace batchnorm
