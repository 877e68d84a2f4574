// The canonical order of summation (docs/architecture.md): what a block is, and the fixed tree that merges blocks.
#pragma once

#include "core/numbers.h"

namespace batchnorm {

// Of one channel, or of sixteen.
template <class D> struct MomentsOf {
  D count, mean, mean_low, m2;
};
template <class D> struct SumsOf {
  D g, gd;
};  // sum of g, sum of g * (x - mean)
using Moments = MomentsOf<double>;
using Sums = SumsOf<double>;

namespace {

// hi + lo = a + b exactly (Knuth); lo is 0 where the sum is not finite.
template <class D> inline void two_sum(D a, D b, D* hi, D* lo) {
  const D s = a + b, bb = s - a;
  const D e = (a - (s - bb)) + (b - bb);
  *hi = s;
  *lo = if_finite(e, e, Numbers<D>::all(0));
}

// Squares that leave double's range leave no variance; from an infinite one every output would be 0.
template <class D> inline D or_nan(D m2) {
  return if_less(Numbers<D>::all(std::numeric_limits<double>::max()), absolute(m2), Numbers<D>::all(NAN), m2);
}

// Moments of a block of `count` > 0 positions from its sums shifted by K.
template <class D> inline MomentsOf<D> block_moments(D count, D K, D s1, D s2) {
  const D q = s1 / count, zero = Numbers<D>::all(0);
  MomentsOf<D> m{count, zero, zero, zero};
  two_sum(K, q, &m.mean, &m.mean_low);
  m.m2 = or_nan(s2 - s1 * q);
  m.m2 = if_less(m.m2, zero, zero, m.m2);  // rounding; NaN stays NaN
  return m;
}

// Chan, Golub and LeVeque 1983, with the mean in two doubles; `delta`, the distance of the means, is finite.
template <class D> inline D distance(const MomentsOf<D>& a, const MomentsOf<D>& b) {
  return (b.mean - a.mean) + (b.mean_low - a.mean_low);
}
template <class D> inline MomentsOf<D> merge_near(const MomentsOf<D>& a, const MomentsOf<D>& b, D delta) {
  MomentsOf<D> m{a.count + b.count, delta, delta, delta};
  const D fraction = b.count / m.count;
  two_sum(a.mean, a.mean_low + delta * fraction, &m.mean, &m.mean_low);
  m.m2 = or_nan((a.m2 + b.m2) + (delta * delta) * (a.count * fraction));
  return m;
}
inline Moments merge(const Moments& a, const Moments& b) {
  if (a.count == 0) return b;
  if (b.count == 0) return a;
  const double delta = distance(a, b);
  if (std::isfinite(delta)) return merge_near(a, b, delta);
  const double count = a.count + b.count;
  return {count, (a.count * a.mean + b.count * b.mean) / count, 0, NAN};
}

template <class D> inline SumsOf<D> merge(const SumsOf<D>& a, const SumsOf<D>& b) { return {a.g + b.g, a.gd + b.gd}; }

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

}  // namespace
}  // namespace batchnorm
