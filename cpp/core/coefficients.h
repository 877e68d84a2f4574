// What a channel's statistics become before elements are touched: computed in float64, rounded once to the compute type. Of one
// channel, D is a double; of sixteen, a unit of them (simd.h).
//   forward:   y  = fma(x - center, scale, shift)
//   backward:  dx = (g - w * fma(x - center, k1, k0)) * scale
#pragma once

#include "core/canonical.h"
#include "core/problem.h"

namespace batchnorm {
namespace {

// What would leave float's range is computed in double, from the values below: z where `wide_z` is not 0, gradients where `wide` is
// not, which it is then, too.
template <class D> struct CoefficientsOf {
  D center, scale, shift, k1, k0;
  D wide, wide_z;
  D mean, wide_scale, wide_shift, wide_k1, wide_k0;
  D rstd;
};
using Coefficients = CoefficientsOf<double>;

// To the compute type, which is double for float64 data and float for everything else.
template <class D> inline D rounded(const Problem& p, D v) { return p.dtype == DType::f64 ? v : through_float(v); }

// 1 where it is, else 0. Inside, no product of two such values and no sum of a few leaves float's range.
template <class D> inline D outside_float(D v) {
  const D zero = Numbers<D>::all(0), one = Numbers<D>::all(1), size = absolute(v);
  const D large = if_less(Numbers<D>::all(0x1p100), size, if_finite(v, one, zero), zero);
  return if_less(size, Numbers<D>::all(0x1p-100), if_less(zero, size, one, zero), large);
}

// x - center may leave float's range. (Up to 2^102 it cannot: that is less than half of the last place of float's maximum.)
template <class D> inline D is_far(D mean) {
  return if_less(Numbers<D>::all(0x1p102), absolute(mean), Numbers<D>::all(1), Numbers<D>::all(0));
}

// 1 where a block's sums in float are good, else 0: no overflow, no underflow, and K near enough to the mean.
template <class D> inline D are_good_moments(D n, D s, D q) {
  const D zero = Numbers<D>::all(0), near = if_at_most(q * Numbers<D>::all(0.5), q - s * (s / n), Numbers<D>::all(1), zero);
  return if_finite(q, if_at_most(n * Numbers<D>::all(0x1p-90), q, near, zero), zero);
}
template <class D> inline D are_good_sums(D n, const SumsOf<D>& s) {
  const D zero = Numbers<D>::all(0), large = if_at_most(n * Numbers<D>::all(0x1p-90), absolute(s.gd), Numbers<D>::all(1), zero);
  return if_finite(s.g, if_finite(s.gd, large, zero), zero);
}

// A power of two that brings weights into float's range, whatever their unit: only their ratios to the count matter.
inline double weights_scale(const Problem& p) { return p.weights ? std::ldexp(1.0, -std::ilogb(p.moments.count[0])) : 1.0; }

template <class D> inline D rstd_of(const Problem& p, int64_t c) {
  using Of = Numbers<D>;
  if (p.moments.rstd) return Of::at(p.moments.rstd + c);
  return Of::all(1) / root(Of::at(p.moments.m2 + c) / Of::at(p.moments.count + c) + Of::all(p.eps));
}

// What the center, the mean rounded to the compute type, left out of the mean.
template <class D> inline D rest_of(const Problem& p, int64_t c, D center) {
  const D mean = Numbers<D>::at(p.moments.mean + c);
  return if_finite(mean, (mean - center) + Numbers<D>::at(p.moments.mean_low + c), Numbers<D>::all(0));
}

template <class D> inline CoefficientsOf<D> forward_coefficients(const Problem& p, int64_t c) {
  using Of = Numbers<D>;
  const D zero = Of::all(0), bias = p.bias ? Of::at(p.bias + c) : zero;
  CoefficientsOf<D> k;
  k.mean = Of::at(p.moments.mean + c), k.rstd = rstd_of<D>(p, c);
  k.wide_scale = p.weight ? Of::at(p.weight + c) * k.rstd : k.rstd;
  k.wide_shift = bias - Of::at(p.moments.mean_low + c) * k.wide_scale;
  k.center = rounded(p, k.mean), k.scale = rounded(p, k.wide_scale);
  k.shift = rounded(p, bias - rest_of(p, c, k.center) * k.wide_scale);
  k.k1 = k.k0 = k.wide_k1 = k.wide_k0 = zero;
  k.wide = k.wide_z = p.dtype == DType::f64 ? zero : is_far(k.mean) + outside_float(k.wide_scale);
  return k;
}

// What the backward's sums subtract from x.
inline double sums_center(const Coefficients& k) { return k.wide_z != 0 ? k.mean : k.center; }

// The gradients of weight and bias, of the sums.
template <class D> inline void put_sums(const Problem& p, int64_t c, const SumsOf<D>& sums, const CoefficientsOf<D>& k) {
  const D rest = rest_of(p, c, if_less(Numbers<D>::all(0), k.wide_z, k.mean, k.center));
  Numbers<D>::put(p.grad_weight + c, k.rstd * (sums.gd - rest * sums.g));
  Numbers<D>::put(p.grad_bias + c, sums.g);
}

// From the gradients of weight and bias, in training.
template <class D> inline void add_backward(const Problem& p, int64_t c, CoefficientsOf<D>& k) {
  using Of = Numbers<D>;
  const D count = Of::at(p.moments.count + c) * Of::all(weights_scale(p));
  k.wide_k1 = k.rstd * Of::at(p.grad_weight + c) / count;
  const D k0 = Of::at(p.grad_bias + c) / count;
  k.k1 = rounded(p, k.wide_k1);
  k.k0 = rounded(p, k0 - rest_of(p, c, k.center) * k.wide_k1);
  k.wide_k0 = k0 - Of::at(p.moments.mean_low + c) * k.wide_k1;
  if (p.dtype == DType::f64) return;
  k.wide = k.wide + outside_float(k.wide_k1) + if_less(Of::all(0x1p100), absolute(k0), Of::all(1), Of::all(0));
}

}  // namespace
}  // namespace batchnorm
