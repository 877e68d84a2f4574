// What a channel's statistics become before elements are touched: computed in float64, rounded once to the compute type.
//   forward:   y  = fma(x - center, scale, shift)
//   backward:  dx = (g - w * fma(x - center, k1, k0)) * scale
#pragma once

#include <cmath>
#include <type_traits>

#include "canonical.h"
#include "problem.h"
#include "scratch.h"

namespace batchnorm {
namespace {

// One row of C values (and 16 more, for whole vectors) for each coefficient. `wide` is 1 for a channel whose float coefficients
// would leave the range of float; such a channel is computed from the doubles.
template <class C> struct Table {
  explicit Table(int64_t channels)
      : stride(channels + kLanes),
        narrow_(6 * stride),
        doubles_(5 * stride),
        center(narrow_),
        scale(center + stride),
        shift(scale + stride),
        k1(shift + stride),
        k0(k1 + stride),
        wide(k0 + stride),
        mean(doubles_),
        wide_scale(mean + stride),
        wide_shift(wide_scale + stride),
        wide_k1(wide_shift + stride),
        wide_k0(wide_k1 + stride) {}

  int64_t stride;

 private:
  Scratch<C> narrow_;
  Scratch<double> doubles_;

 public:
  C *center, *scale, *shift, *k1, *k0, *wide;
  double *mean, *wide_scale, *wide_shift, *wide_k1, *wide_k0;

  void copy_channel(const Table& from, int64_t c, int64_t to) {
    center[to] = from.center[c], scale[to] = from.scale[c], shift[to] = from.shift[c];
    k1[to] = from.k1[c], k0[to] = from.k0[c], wide[to] = from.wide[c];
    mean[to] = from.mean[c], wide_scale[to] = from.wide_scale[c], wide_shift[to] = from.wide_shift[c];
    wide_k1[to] = from.wide_k1[c], wide_k0[to] = from.wide_k0[c];
  }
};

// Far enough inside float's range that no product of two such values and no sum of a few leaves it.
inline bool outside_float(double v) {
  v = std::fabs(v);
  return v != 0 && std::isfinite(v) && (v < 0x1p-100 || v > 0x1p100);
}

struct Channel {
  double count, mean, mean_low, rstd, scale;
  bool huge;  // |x - mean| <= sqrt(M2), so float arithmetic on x is safe unless this says otherwise

  Channel(const Problem& p, int64_t c) : count(p.stats.count[c]), mean(p.stats.mean[c]), mean_low(p.stats.mean_low[c]) {
    const double m2 = p.stats.m2[c];
    rstd = 1 / std::sqrt(m2 / count + p.eps);
    scale = p.weight ? p.weight[c] * rstd : rstd;
    huge = std::fabs(mean) > 0x1p120 || (m2 > 0x1p240 && std::isfinite(m2));
  }
};

template <class C> void forward_coefficients(const Problem& p, int64_t c, Table<C>& t) {
  const Channel ch(p, c);
  const double bias = p.bias ? p.bias[c] : 0.0;
  t.center[c] = static_cast<C>(ch.mean);
  t.scale[c] = static_cast<C>(ch.scale);
  t.shift[c] = static_cast<C>(bias - ((ch.mean - t.center[c]) + ch.mean_low) * ch.scale);
  t.mean[c] = ch.mean;
  t.wide_scale[c] = ch.scale;
  t.wide_shift[c] = bias - ch.mean_low * ch.scale;
  t.wide[c] = std::is_same<C, float>::value && (ch.huge || outside_float(ch.scale));
}

// Also writes the gradients of weight and bias. Call after forward_coefficients.
template <class C> void backward_coefficients(const Problem& p, int64_t c, const Sums& sums, Table<C>& t) {
  const Channel ch(p, c);
  const double sum_gd = sums.gd - ch.mean_low * sums.g, grad_weight = ch.rstd * sum_gd;
  p.grad_weight[c] = grad_weight;
  p.grad_bias[c] = sums.g;
  if (!p.training) return;
  const double k1 = ch.rstd * grad_weight / ch.count, k0 = sums.g / ch.count;
  t.k1[c] = static_cast<C>(k1);
  t.k0[c] = static_cast<C>(k0 - ((ch.mean - t.center[c]) + ch.mean_low) * k1);
  t.wide_k1[c] = k1;
  t.wide_k0[c] = k0 - ch.mean_low * k1;
  if (std::is_same<C, float>::value && (outside_float(k1) || std::fabs(k0) > 0x1p100)) t.wide[c] = 1;
}

}  // namespace
}  // namespace batchnorm
