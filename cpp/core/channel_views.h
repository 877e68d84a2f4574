// Values of a channel each, whatever dtype and strides they come with.
#pragma once

#include <vector>

#include "core/collapse.h"
#include "core/convert.h"

namespace batchnorm {

// Values of a channel each: weight, bias, running or saved statistics. With groups, a weight and bias may have a row for each.
struct ChannelViews {
  View weight, bias, mean, var;
};

constexpr uint64_t kChannelsOnAxis1 = 2;

inline bool is_floating(DType dtype) { return dtype != DType::boolean; }
inline bool is_16_bit(DType dtype) { return dtype == DType::f16 || dtype == DType::bf16; }

inline double widened(double v) { return v; }
inline double widened(float v) { return v; }
inline double widened(uint8_t v) { return v; }
inline double widened(Half v) { return to_float(v); }
inline double widened(BFloat16 v) { return to_float(v); }

inline void put(double* to, double v) { *to = v; }
inline void put(float* to, double v) { *to = static_cast<float>(v); }
inline void put(uint8_t* to, double v) { *to = static_cast<uint8_t>(v); }
inline void put(Half* to, double v) { *to = to_half(static_cast<float>(v)); }
inline void put(BFloat16* to, double v) { *to = to_bfloat16(static_cast<float>(v)); }

// f(pointer to values of the view's type).
template <class F> auto typed(const View& v, const F& f) {
  switch (v.dtype) {
    case DType::f64: return f(reinterpret_cast<double*>(v.data));
    case DType::f32: return f(reinterpret_cast<float*>(v.data));
    case DType::f16: return f(reinterpret_cast<Half*>(v.data));
    case DType::bf16: return f(reinterpret_cast<BFloat16*>(v.data));
    default: return f(reinterpret_cast<uint8_t*>(v.data));
  }
}

inline double read(const View& v, int64_t i) {
  return typed(v, [&](auto* values) { return widened(values[i]); });
}
inline void write(const View& v, int64_t i, double value) {
  typed(v, [&](auto* values) { put(values + i, value); });
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

// value(c) for each of C channels.
template <class Value> void set_channels(const View& v, int64_t C, const Value& value) {
  typed(v, [&](auto* to) {
    for (int64_t c = 0; c < C; ++c) put(to + c * v.strides[0], value(c));
  });
}

// A channel's values as doubles, or null where there are none; of a matrix, its rows one after another.
class Doubles {
 public:
  explicit Doubles(const View& v) {
    if (!v) return;
    const int64_t rows = v.ndim == 2 ? v.sizes[0] : 1, columns = v.sizes[v.ndim - 1];
    const int64_t row = v.ndim == 2 ? v.strides[0] : 0, step = v.strides[v.ndim - 1];
    values_.resize(static_cast<size_t>(rows * columns));
    double* to = values_.data();
    typed(v, [&](const auto* from) {
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t c = 0; c < columns; ++c) *to++ = widened(from[r * row + c * step]);
    });
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
