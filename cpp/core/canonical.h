// The canonical order of summation (docs/architecture.md): what a block is, and the fixed tree that merges blocks.
#pragma once

#include <cmath>
#include <cstdint>

namespace batchnorm {
struct Moments {
  double count, mean, mean_low, m2;
};
struct Sums {
  double g, gd;
};  // sum of g, sum of g * (x - mean)

// hi + lo = a + b exactly (Knuth); lo is 0 where the sum is not finite.
inline void two_sum(double a, double b, double* hi, double* lo) {
  const double s = a + b, bb = s - a;
  const double e = (a - (s - bb)) + (b - bb);
  *hi = s;
  *lo = std::isfinite(e) ? e : 0.0;
}

// Squares that leave double's range leave no variance; from an infinite one every output would be 0.
inline double or_nan(double m2) { return std::isinf(m2) ? NAN : m2; }

// Moments of a block from its sums shifted by K.
inline Moments block_moments(double count, double K, double s1, double s2) {
  if (count == 0) return {0, 0, 0, 0};
  Moments m{count, 0, 0, 0};
  const double q = s1 / count;
  two_sum(K, q, &m.mean, &m.mean_low);
  m.m2 = or_nan(s2 - s1 * q);
  if (m.m2 < 0) m.m2 = 0;  // rounding; NaN stays NaN
  return m;
}

// Chan, Golub and LeVeque 1983, with the mean in two doubles.
inline Moments merge(const Moments& a, const Moments& b) {
  if (a.count == 0) return b;
  if (b.count == 0) return a;
  Moments m{a.count + b.count, 0, 0, 0};
  const double delta = (b.mean - a.mean) + (b.mean_low - a.mean_low);
  if (!std::isfinite(delta)) {
    m.mean = (a.count * a.mean + b.count * b.mean) / m.count;
    m.m2 = NAN;
    return m;
  }
  const double fraction = b.count / m.count;
  two_sum(a.mean, a.mean_low + delta * fraction, &m.mean, &m.mean_low);
  m.m2 = or_nan((a.m2 + b.m2) + (delta * delta) * (a.count * fraction));
  return m;
}

inline Sums merge(const Sums& a, const Sums& b) { return {a.g + b.g, a.gd + b.gd}; }

// Merges blocks pushed in order of their index. A binary counter of complete subtrees, so that a node's left part always
// has the largest power of two of blocks smaller than the whole.
template <class P> class Tree {
 public:
  void push(P block) {
    for (int64_t k = pushed_++; k & 1; k >>= 1) block = merge(level_[--depth_], block);
    level_[depth_++] = block;
  }
  P finish() {
    if (depth_ == 0) return {};  // of nothing
    P all = level_[--depth_];
    while (depth_ > 0) all = merge(level_[--depth_], all);
    return all;
  }

 private:
  P level_[64];
  int depth_ = 0;
  int64_t pushed_ = 0;
};

}  // namespace batchnorm
