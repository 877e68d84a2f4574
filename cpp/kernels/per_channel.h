// Values of channels, sixteen at a time: coefficients, the ends of sums, and how parameters are read and written.
#pragma once

#include "core/coefficients.h"
#include "kernels/leaves.h"
#include "kernels/simd.h"

namespace batchnorm {
namespace {

// f(a unit or a double, i) for i = 0 … n - 1. In the portable code one by one: it is large as it is.
template <class F> BN_INLINE void each_number(int64_t n, const F& f) {
  int64_t i = 0;
  if constexpr (kHasTogether)
    for (; i + kLanes <= n; i += kLanes) f(U<double>(), i);
  for (; i < n; ++i) f(0.0, i);
}

BN_INLINE void put_float(float* to, U<double> v) { store_raw(to, narrow(v)); }
BN_INLINE void put_float(float* to, double v) { *to = static_cast<float>(v); }
template <class D> BN_INLINE void put_value(const CoefficientRows& to, int row, int64_t i, D v) {
  char* const at = to.memory + row * to.stride;
  if (to.size == 4) put_float(reinterpret_cast<float*>(at) + i, v);
  else Numbers<D>::put(reinterpret_cast<double*>(at) + i, v);
}

void put_forward(const Problem& p, int64_t c, int64_t n, CoefficientRows to) {
  each_number(n, [&](auto number, int64_t i) BN_INLINE_LAMBDA {
    using D = decltype(number);
    const CoefficientsOf<D> k = forward_coefficients<D>(p, c + i);
    const D values[] = {k.center, k.scale, k.shift};
    for (int row = 0; row < 3; ++row) put_value(to, row, c + i, values[row]);
    put_value(to, CoefficientRows::wide, c + i, k.wide);
    if (p.moments.new_rstd) Numbers<D>::put(p.moments.new_rstd + c + i, k.rstd);
  });
}

// Of a frozen backward without activation dx is g * scale, whatever x is.
void put_backward(const Problem& p, int64_t c, int64_t n, const double* const* sums, CoefficientRows to) {
  const bool scales = !p.training && p.activation == Activation::none;
  each_number(n, [&](auto number, int64_t i) BN_INLINE_LAMBDA {
    using D = decltype(number);
    using Of = Numbers<D>;
    CoefficientsOf<D> k = forward_coefficients<D>(p, c + i);
    if (p.compute_sums) put_sums(p, c + i, SumsOf<D>{Of::at(sums[0] + c + i), Of::at(sums[1] + c + i)}, k);
    if (p.training) add_backward(p, c + i, k);
    if (scales) k.center = Of::all(0), k.shift = Of::all(-0.0);
    const D values[] = {k.center, k.scale, k.shift, k.k1, k.k0, k.wide};
    for (int row = 0; row < CoefficientRows::count; ++row) put_value(to, row, c + i, values[row]);
  });
}

// Sums of lanes mod 4.
BN_INLINE U<double> fold_lanes(const double* acc, int64_t step) {
  return (load_raw(acc) + load_raw(acc + step)) + (load_raw(acc + 2 * step) + load_raw(acc + 3 * step));
}

bool end_shifts(double* sums, const double* counts, int64_t size, char* to) {
  const U<double> means = load_raw(sums) / load_raw(counts), zero = fill(0.0);
  if (any_zero(if_finite(means, fill(1.0), zero))) return false;
  const CoefficientRows row{to, 0, size};
  const U<double> shifts = size == 4 ? through_float(means) : means;
  store_raw(sums, shifts), put_value(row, 0, 0, shifts);
  return true;
}
// Of nothing they are 0, and good.
bool end_moments(const double* acc, int64_t step, const double* counts, const double* K, double* const* to) {
  const U<double> n = load_raw(counts), zero = fill(0.0), s = fold_lanes(acc, step), q = fold_lanes(acc + 4 * step, step);
  const MomentsOf<U<double>> m = block_moments(n, load_raw(K), s, q);
  store_raw(to[0], n), store_raw(to[1], if_less(zero, n, m.mean, zero));
  store_raw(to[2], if_less(zero, n, m.mean_low, zero)), store_raw(to[3], if_less(zero, n, m.m2, zero));
  return !any_zero(if_less(zero, n, are_good_moments(n, s, q), fill(1.0)));
}
bool end_sums(const double* acc, int64_t step, const double* counts, double* const* to) {
  const SumsOf<U<double>> s{fold_lanes(acc, step), fold_lanes(acc + 4 * step, step)};
  store_raw(to[0], s.g), store_raw(to[1], s.gd);
  return !any_zero(are_good_sums(load_raw(counts), s));
}

template <class D> BN_INLINE MomentsOf<D> moments_at(double* const* rows, int64_t i) {
  using Of = Numbers<D>;
  return {Of::at(rows[0] + i), Of::at(rows[1] + i), Of::at(rows[2] + i), Of::at(rows[3] + i)};
}
template <class D> BN_INLINE void put_moments(double* const* rows, int64_t i, const MomentsOf<D>& m) {
  using Of = Numbers<D>;
  Of::put(rows[0] + i, m.count), Of::put(rows[1] + i, m.mean), Of::put(rows[2] + i, m.mean_low), Of::put(rows[3] + i, m.m2);
}
void merge_moments(double* const* a, double* const* b, int64_t n) {
  const auto one = [&](int64_t i) { put_moments(a, i, merge(moments_at<double>(a, i), moments_at<double>(b, i))); };
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    using D = U<double>;
    const MomentsOf<D> left = moments_at<D>(a, i), right = moments_at<D>(b, i);
    const D delta = distance(left, right), zero = fill(0.0);
    if (!any_zero(if_finite(delta, if_less(zero, left.count, if_less(zero, right.count, right.count, zero), zero), zero)))
      put_moments(a, i, merge_near(left, right, delta));
    else
      for (int64_t j = i; j < i + kLanes; ++j) one(j);
  }
  for (; i < n; ++i) one(i);
}
void merge_sums(double* const* a, double* const* b, int64_t n) {
  each_number(n, [&](auto number, int64_t i) BN_INLINE_LAMBDA {
    using Of = Numbers<decltype(number)>;
    for (int row = 0; row < 2; ++row) Of::put(a[row] + i, Of::at(a[row] + i) + Of::at(b[row] + i));
  });
}

// The last unit is of as many as there are.
template <class T> void widen_values(double* to, const T* from, int64_t n) {
  T some[kLanes] = {};
  double widened[kLanes];
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store_raw(to + i, widen(load(from + i)));
  std::memcpy(some, from + i, static_cast<size_t>(n - i) * sizeof(T));
  store_raw(widened, widen(load(some)));
  std::memcpy(to + i, widened, static_cast<size_t>(n - i) * sizeof(double));
}
template <class T> void narrow_values(T* to, const double* from, int64_t n) {
  T narrowed[kLanes];
  double some[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(to + i, narrow(load_raw(from + i)));
  std::memcpy(some, from + i, static_cast<size_t>(n - i) * sizeof(double));
  store(narrowed, narrow(load_raw(some)));
  std::memcpy(to + i, narrowed, static_cast<size_t>(n - i) * sizeof(T));
}
void to_doubles(DType dtype, double* to, const char* from, int64_t n) {
  switch (dtype) {
    case DType::f32: return widen_values(to, reinterpret_cast<const float*>(from), n);
    case DType::f16: return widen_values(to, reinterpret_cast<const Half*>(from), n);
    case DType::bf16: return widen_values(to, reinterpret_cast<const BFloat16*>(from), n);
    default: std::memcpy(to, from, static_cast<size_t>(n) * sizeof(double));
  }
}
void from_doubles(DType dtype, char* to, const double* from, int64_t n) {
  switch (dtype) {
    case DType::f32: return narrow_values(reinterpret_cast<float*>(to), from, n);
    case DType::f16: return narrow_values(reinterpret_cast<Half*>(to), from, n);
    case DType::bf16: return narrow_values(reinterpret_cast<BFloat16*>(to), from, n);
    default: std::memcpy(to, from, static_cast<size_t>(n) * sizeof(double));
  }
}

constexpr PerChannel per_channel = {put_forward,   put_backward, end_shifts, end_moments, end_sums,
                                    merge_moments, merge_sums,   to_doubles, from_doubles};

}  // namespace
}  // namespace batchnorm
