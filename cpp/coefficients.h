// What a channel's statistics become before elements are touched: computed in float64, rounded once to the compute type.
//   forward:   y  = fma(x - center, scale, shift)
//   backward:  dx = (g - w * fma(x - center, k1, k0)) * scale
#pragma once

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <type_traits>

#include "canonical.h"
#include "problem.h"
#include "scratch.h"

namespace batchnorm {
namespace {

// One value for each channel, or column, in each row. `wide` is 1 for a channel whose float coefficients would leave the range of
// float; such a channel is computed from the doubles.
template <class NarrowRow, class WideRow> struct Coefficients {
  NarrowRow center, scale, shift, k1, k0, wide;
  WideRow mean, wide_scale, wide_shift, wide_k1, wide_k0;
};

// Owns rows of that many channels, and 16 more for whole vectors.
template <class C> struct Table : Coefficients<C*, double*> {
  using Rows = Coefficients<C*, double*>;
  using Rows::center, Rows::scale, Rows::shift, Rows::k1, Rows::k0, Rows::wide;
  using Rows::mean, Rows::wide_scale, Rows::wide_shift, Rows::wide_k1, Rows::wide_k0;

  explicit Table(int64_t channels) : narrow_(6 * (channels + kLanes)), doubles_(5 * (channels + kLanes)) {
    const int64_t stride = channels + kLanes;
    C* row = narrow_;
    for (C** to : {&center, &scale, &shift, &k1, &k0, &wide}) *to = row, row += stride;
    double* wide_row = doubles_;
    for (double** to : {&mean, &wide_scale, &wide_shift, &wide_k1, &wide_k0}) *to = wide_row, wide_row += stride;
  }

  // Any channel of these that is wide.
  bool any_wide(int64_t first, int64_t n) const {
    for (int64_t c = first; c < first + n; ++c) {
      if (wide[c] != 0) return true;
    }
    return false;
  }

  // Entries to … to + times - 1 become channel c of another table; `all` with what only wide channels use.
  void spread(const Table& from, int64_t c, int64_t to, int64_t times, bool all) {
    each_row(from, all, [&](auto* row, const auto* source) { std::fill_n(row + to, times, source[c]); });
  }

  // Entries from `to` on become the first n channels of another table.
  void copy(const Table& from, int64_t n, int64_t to, bool all) {
    each_row(from, all, [&](auto* row, const auto* source) { std::copy_n(source, n, row + to); });
  }

 private:
  template <class F> void each_row(const Table& from, bool all, const F& set) {
    set(center, from.center), set(scale, from.scale), set(shift, from.shift), set(k1, from.k1), set(k0, from.k0);
    if (!all) return;
    set(wide, from.wide), set(mean, from.mean), set(wide_scale, from.wide_scale), set(wide_shift, from.wide_shift);
    set(wide_k1, from.wide_k1), set(wide_k0, from.wide_k0);
  }

  Scratch<C> narrow_;
  Scratch<double> doubles_;
};

// Far enough inside float's range that no product of two such values and no sum of a few leaves it.
inline bool outside_float(double v) {
  v = std::fabs(v);
  return v != 0 && std::isfinite(v) && (v < 0x1p-100 || v > 0x1p100);
}

// A power of two that brings weights into float's range, whatever their unit: only their ratios to the count matter.
inline double weights_scale(const Problem& p) { return p.weights ? std::ldexp(1.0, -std::ilogb(p.stats.count[0])) : 1.0; }

struct Channel {
  double count, mean, mean_low, rstd, scale;

  Channel(const Problem& p, int64_t c) : count(p.stats.count[c]), mean(p.stats.mean[c]), mean_low(p.stats.mean_low[c]) {
    rstd = p.stats.rstd ? p.stats.rstd[c] : 1 / std::sqrt(p.stats.m2[c] / count + p.eps);
    scale = p.weight ? p.weight[c] * rstd : rstd;
  }

  // What the center, the mean rounded to the compute type, left out of the mean.
  double rest(double center) const { return std::isfinite(mean) ? (mean - center) + mean_low : 0.0; }

  // x - center may leave float's range. (Up to 2^102 it cannot: that is less than half of the last place of float's maximum.)
  bool far() const { return std::fabs(mean) > 0x1p102; }
};

template <class C> void forward_coefficients(const Problem& p, int64_t c, Table<C>& t) {
  const Channel ch(p, c);
  const double bias = p.bias ? p.bias[c] : 0.0;
  t.center[c] = static_cast<C>(ch.mean);
  t.scale[c] = static_cast<C>(ch.scale);
  t.shift[c] = static_cast<C>(bias - ch.rest(t.center[c]) * ch.scale);
  t.mean[c] = ch.mean;
  t.wide_scale[c] = ch.scale;
  t.wide_shift[c] = bias - ch.mean_low * ch.scale;
  t.wide[c] = std::is_same<C, float>::value && (ch.far() || outside_float(ch.scale));
}

// Also writes the gradients of weight and bias, or, where they are given, takes them from there. Call after forward_coefficients.
template <class C> void backward_coefficients(const Problem& p, int64_t c, const Sums& sums, Table<C>& t) {
  const Channel ch(p, c);
  if (p.compute_sums) {
    p.grad_weight[c] = ch.rstd * (sums.gd - ch.mean_low * sums.g);
    p.grad_bias[c] = sums.g;
  }
  if (!p.training) return;
  const double count = ch.count * weights_scale(p), k1 = ch.rstd * p.grad_weight[c] / count, k0 = p.grad_bias[c] / count;
  t.k1[c] = static_cast<C>(k1);
  t.k0[c] = static_cast<C>(k0 - ch.rest(t.center[c]) * k1);
  t.wide_k1[c] = k1;
  t.wide_k0[c] = k0 - ch.mean_low * k1;
  if (std::is_same<C, float>::value && (outside_float(k1) || std::fabs(k0) > 0x1p100)) t.wide[c] = 1;
}

}  // namespace
}  // namespace batchnorm
