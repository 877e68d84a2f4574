// What a channel's statistics become before elements are touched: computed in float64, rounded once to the compute type.
//   forward:   y  = fma(x - center, scale, shift)
//   backward:  dx = (g - w * fma(x - center, k1, k0)) * scale
#pragma once

#include <cmath>

#include "core/canonical.h"
#include "core/problem.h"

namespace batchnorm {

// Of one channel. What would leave float's range is computed in double, from the values below: z where it is `wide_z`, gradients
// where it is `wide`, which it is then, too.
struct Coefficients {
  double center, scale, shift, k1, k0;
  bool wide, wide_z;
  double mean, wide_scale, wide_shift, wide_k1, wide_k0;
  double rstd;
};

namespace {

// To the compute type, which is double for float64 data and float for everything else.
inline double rounded(const Problem& p, double v) { return p.dtype == DType::f64 ? v : static_cast<double>(static_cast<float>(v)); }

// Far enough inside float's range that no product of two such values and no sum of a few leaves it.
inline bool outside_float(double v) {
  v = std::fabs(v);
  return v != 0 && std::isfinite(v) && (v < 0x1p-100 || v > 0x1p100);
}

// A power of two that brings weights into float's range, whatever their unit: only their ratios to the count matter.
inline double weights_scale(const Problem& p) { return p.weights ? std::ldexp(1.0, -std::ilogb(p.stats.count[0])) : 1.0; }

struct Channel {
  double count, mean, mean_low, rstd, scale;

  Channel(const Problem& p, int64_t c)
      : Channel(p, c, p.stats.rstd ? p.stats.rstd[c] : 1 / std::sqrt(p.stats.m2[c] / p.stats.count[c] + p.eps)) {}
  Channel(const Problem& p, int64_t c, double known)
      : count(p.stats.count[c]), mean(p.stats.mean[c]), mean_low(p.stats.mean_low[c]), rstd(known) {
    scale = p.weight ? p.weight[c] * rstd : rstd;
  }

  // What the center, the mean rounded to the compute type, left out of the mean.
  double rest(double center) const { return std::isfinite(mean) ? (mean - center) + mean_low : 0.0; }

  // x - center may leave float's range. (Up to 2^102 it cannot: that is less than half of the last place of float's maximum.)
  bool far() const { return std::fabs(mean) > 0x1p102; }
};

inline void forward_coefficients(const Problem& p, int64_t c, Coefficients& k) {
  const Channel ch(p, c);
  const double bias = p.bias ? p.bias[c] : 0.0;
  k.center = rounded(p, ch.mean);
  k.scale = rounded(p, ch.scale);
  k.shift = rounded(p, bias - ch.rest(k.center) * ch.scale);
  k.k1 = k.k0 = k.wide_k1 = k.wide_k0 = 0;
  k.wide = k.wide_z = p.dtype != DType::f64 && (ch.far() || outside_float(ch.scale));
  k.mean = ch.mean;
  k.wide_scale = ch.scale;
  k.wide_shift = bias - ch.mean_low * ch.scale;
  k.rstd = ch.rstd;
}

// What the backward's sums subtract from x.
inline double sums_center(const Coefficients& k) { return k.wide ? k.mean : k.center; }

// Whether a block's sums in float neither overflowed nor are made of products that underflow. Where none is left, all gradients are
// zero, or so small that nothing but the smallest standard deviations could make them count.
inline bool are_trusted(const Problem& p, const Coefficients& k, double n, const Sums& s) {
  if (k.wide || p.dtype == DType::f64) return !k.wide;
  const bool zero = s.g == 0 && s.gd == 0 && k.rstd <= 0x1p20;
  return std::isfinite(s.g) && std::isfinite(s.gd) && (zero || std::fabs(s.gd) >= n * 0x1p-90);
}

// Also writes the gradients of weight and bias, or, where they are given, takes them from there. Call after forward_coefficients.
inline void backward_coefficients(const Problem& p, int64_t c, const Sums& sums, Coefficients& k) {
  const Channel ch(p, c, k.rstd);
  if (p.compute_sums) {
    p.grad_weight[c] = ch.rstd * (sums.gd - ch.rest(sums_center(k)) * sums.g);
    p.grad_bias[c] = sums.g;
  }
  if (!p.training) return;
  const double count = ch.count * weights_scale(p), k1 = ch.rstd * p.grad_weight[c] / count, k0 = p.grad_bias[c] / count;
  k.k1 = rounded(p, k1);
  k.k0 = rounded(p, k0 - ch.rest(k.center) * k1);
  k.wide_k1 = k1;
  k.wide_k0 = k0 - ch.mean_low * k1;
  if (p.dtype != DType::f64 && (outside_float(k1) || std::fabs(k0) > 0x1p100)) k.wide = true;
}

}  // namespace
}  // namespace batchnorm
