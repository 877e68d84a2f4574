// A block's positions sixteen at a time, in the lanes of the canonical order, whatever runs they stand in.
#pragma once

#include "positions.h"

namespace batchnorm {
namespace BN_ISA {
namespace {

constexpr int64_t kRunHead = 1024;  // bytes of the next run to ask for ahead

// A channel of an array, from its first element on.
template <class T> struct Source {
  const Array& array;
  const T* base;
};

// Sixteen positions of A arrays, which stand together at at[a] + i. `part` is one vector of the wide ones: sums take these one by
// one, for all of them at once are more than there are registers.
template <class T, int A> struct Together {
  static constexpr int kArrays = A;
  const T* const* at;
  int64_t i;

  BN_INLINE Lanes<Compute<T>> narrow(int a) const { return load(at[a] + i); }
  BN_INLINE D16 wide(int a) const { return load_wide(at[a] + i); }
  BN_INLINE D16::V part(int a, int k) const { return wide_part(at[a] + i, k); }
  BN_INLINE D16::V only(D16::V lanes, int) const { return lanes; }
};

// Of which the first `split` end a run, and the others begin the next one.
template <class T, int A> struct Across {
  static constexpr int kArrays = A;
  Lanes<Compute<T>> lanes[A];

  BN_INLINE Across(const T* const* at, const T* const* next, int64_t i, int64_t split) {
    for (int a = 0; a < A; ++a) lanes[a] = join(load(at[a] + i), load(next[a] + i), split);
  }
  BN_INLINE Lanes<Compute<T>> narrow(int a) const { return lanes[a]; }
  BN_INLINE D16 wide(int a) const { return to_wide(lanes[a]); }
  BN_INLINE D16::V part(int a, int k) const { return to_wide(lanes[a]).v[k]; }
  BN_INLINE D16::V only(D16::V lanes, int) const { return lanes; }
};

// The same of n positions, which are the block's last; `only` leaves nothing in the other lanes.
template <class T, int A> struct Last {
  static constexpr int kArrays = A;
  const T *const *at, *const *next;
  int64_t i, split, n;

  BN_INLINE Lanes<Compute<T>> narrow(int a) const {
    return split < n ? join(load_some(at[a] + i, 0, split), load_some(next[a] + i, split, n), split) : load_some(at[a] + i, 0, n);
  }
  BN_INLINE D16 wide(int a) const { return to_wide(narrow(a)); }
  BN_INLINE D16::V part(int a, int k) const { return wide(a).v[k]; }
  BN_INLINE D16::V only(D16::V lanes, int k) const { return keep(lanes, k, 0, n); }
};

template <class Values> BN_INLINE D16 only(const Values& values, D16 lanes) {
  BN_EACH(double, k) lanes.v[k] = values.only(lanes.v[k], k);
  return lanes;
}

// Positions r0 … r0 + n - 1 of a channel: in their runs, or `gathered`, one after another at the base of each source.
template <class T> class Walk {
 public:
  Walk(const Problem& p, bool gathered, int64_t r0, int64_t n)
      : p_(p), gathered_(gathered), r0_(gathered ? 0 : r0), n_(n), inner_(gathered ? n : run_length(p)) {}

  // Whether all arrays can be read in their runs: these are no shorter than a vector, and one behind another, so that a vector
  // which begins in one and goes on in the next reads nothing that is not theirs.
  static bool can_read(const Problem& p) {
    if (p.reduced_dims > 2 || (p.reduced_dims == 2 && run_length(p) < kLanes)) return false;
    return all_arrays(
        p, [&](const Array& a) { return run_step(p, a) == 1 && (p.reduced_dims == 1 || a.reduced[0] >= run_length(p)); });
  }

  BN_INLINE const T& operator()(const Source<T>& source, int64_t i) const {
    return run(source, (r0_ + i) / inner_)[(r0_ + i) % inner_];
  }

  // f(i, values) for positions r0 + i … r0 + i + 15, or up to the last one, of all sources.
  template <int A, class F> BN_INLINE void each_sixteen(const Source<T> (&sources)[A], const F& f) const {
    const T *at[A], *next[A];  // position r0 + i is at[a][i]
    int64_t end = inner_ - r0_ % inner_, jump[A], ahead[A];
    for (int a = 0; a < A; ++a) {
      at[a] = &(*this)(sources[a], 0);
      jump[a] = p_.reduced_dims > 1 && !gathered_ ? sources[a].array.reduced[0] - inner_ : 0;
      ahead[a] = is_long() ? kRunHead / sizeof(T) : sources[a].array.channel[p_.channel_dims - 1];
    }
    for (int64_t i = 0; i < n_;) {
      const int64_t stop = end < n_ ? end : n_;
      for (; i + 16 <= stop; i += 16) {
        for (int a = 0; a < A; ++a) __builtin_prefetch(at[a] + i + ahead[a]);
        f(i, Together<T, A>{at, i});
      }
      if (stop == n_) {
        if (i < n_) f(i, Last<T, A>{at, at, i, n_ - i, n_ - i});
        return;
      }
      const int64_t split = end - i;
      end += inner_;
      for (int a = 0; a < A; ++a) {
        next[a] = at[a] + jump[a];
        if (is_long()) prefetch(next[a] + end, kRunHead);
      }
      if (split > 0 && i + 16 <= n_) f(i, Across<T, A>(at, next, i, split));
      else if (split > 0) f(i, Last<T, A>{at, next, i, split, n_ - i});
      if (split > 0) i += 16;
      for (int a = 0; a < A; ++a) at[a] = next[a];
    }
  }

 private:
  const Problem& p_;
  bool gathered_;
  int64_t r0_, n_, inner_;

  bool is_long() const { return inner_ * static_cast<int64_t>(sizeof(T)) > kRunHead; }

  const T* run(const Source<T>& source, int64_t outer) const {
    return source.base + (gathered_ ? 0 : run_offset(p_, source.array, outer));
  }
};

}  // namespace
}  // namespace BN_ISA
}  // namespace batchnorm
