// Values of a channel each, whatever dtype and strides they come with.
#pragma once

#include <vector>

#include "collapse.h"
#include "convert.h"

namespace batchnorm {

// Values of a channel each: weight, bias, running or saved statistics. With groups, a weight and bias may have a row for each.
struct ChannelViews {
  View weight, bias, mean, var;
};

constexpr uint64_t kChannelsOnAxis1 = 2;

inline bool is_floating(DType dtype) { return dtype != DType::boolean; }
inline bool is_16_bit(DType dtype) { return dtype == DType::f16 || dtype == DType::bf16; }

inline double read(const View& v, int64_t i) {
  switch (v.dtype) {
    case DType::f64: return reinterpret_cast<const double*>(v.data)[i];
    case DType::f32: return reinterpret_cast<const float*>(v.data)[i];
    case DType::f16: return to_float(reinterpret_cast<const Half*>(v.data)[i]);
    case DType::bf16: return to_float(reinterpret_cast<const BFloat16*>(v.data)[i]);
    default: return reinterpret_cast<const uint8_t*>(v.data)[i];
  }
}

inline void write(const View& v, int64_t i, double value) {
  switch (v.dtype) {
    case DType::f64: reinterpret_cast<double*>(v.data)[i] = value; return;
    case DType::f16: reinterpret_cast<Half*>(v.data)[i] = to_half(static_cast<float>(value)); return;
    case DType::bf16: reinterpret_cast<BFloat16*>(v.data)[i] = to_bfloat16(static_cast<float>(value)); return;
    default: reinterpret_cast<float*>(v.data)[i] = static_cast<float>(value);
  }
}

// A value as a view of that dtype keeps it.
inline double stored(const View& v, double value) {
  char memory[sizeof(double)];
  View one = v;
  one.data = memory;
  write(one, 0, value);
  return read(one, 0);
}

inline double channel(const View& v, int64_t c) { return read(v, c * v.strides[0]); }
inline void set_channel(const View& v, int64_t c, double value) { write(v, c * v.strides[0], value); }

// A channel's values as doubles, or null where there are none; of a matrix, its rows one after another.
class Doubles {
 public:
  explicit Doubles(const View& v) {
    if (!v) return;
    const int64_t rows = v.ndim == 2 ? v.sizes[0] : 1, columns = v.sizes[v.ndim - 1];
    values_.reserve(static_cast<size_t>(rows * columns));
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < columns; ++c)
        values_.push_back(read(v, (v.ndim == 2 ? r * v.strides[0] : 0) + c * v.strides[v.ndim - 1]));
  }
  const double* get() const { return values_.empty() ? nullptr : values_.data(); }

 private:
  std::vector<double> values_;
};

// Statistics that were given stand for one position: m2 is the variance.
inline void set_given(const Statistics& to, const ChannelViews& channels, int64_t C) {
  for (int64_t c = 0; c < C; ++c)
    to.count[c] = 1, to.mean[c] = channel(channels.mean, c), to.mean_low[c] = 0, to.m2[c] = channel(channels.var, c);
}

}  // namespace batchnorm
