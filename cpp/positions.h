// From position numbers to memory: where the positions of a channel stand, and how to bring them together.
#pragma once

#include "load_store.h"

namespace batchnorm {
namespace BN_ISA {
namespace {

inline int64_t channel_offset(const Problem& p, const Array& a, int64_t c) {
  int64_t offset = 0;
  for (int d = p.channel_dims - 1; d > 0; --d) {
    offset += c % p.channel[d] * a.channel[d];
    c /= p.channel[d];
  }
  return offset + c * a.channel[0];
}

// Of the run numbered `outer`: all reduced dimensions but the last.
inline int64_t run_offset(const Problem& p, const Array& a, int64_t outer) {
  int64_t offset = 0;
  for (int d = p.reduced_dims - 2; d > 0; --d) {
    offset += outer % p.reduced[d] * a.reduced[d];
    outer /= p.reduced[d];
  }
  return p.reduced_dims > 1 ? offset + outer * a.reduced[0] : 0;
}

// Whether every data array there is (not the weights) has a property.
template <class F> bool all_arrays(const Problem& p, const F& holds) {
  const Array* const arrays[] = {&p.x, &p.y, &p.residual, &p.grad_y, &p.grad_x, &p.grad_residual};
  for (const Array* a : arrays) {
    if (*a && !holds(*a)) return false;
  }
  return true;
}

inline int64_t run_length(const Problem& p) { return p.reduced[p.reduced_dims - 1]; }
inline int64_t run_step(const Problem& p, const Array& a) { return a.reduced[p.reduced_dims - 1]; }

// f(outer, s, done, length) for each part of a run of `inner` positions that positions r0 … r0 + n - 1 touch, in order.
template <class F> BN_INLINE void each_segment(int64_t inner, int64_t r0, int64_t n, const F& f) {
  int64_t outer = r0 / inner, s = r0 - outer * inner;
  for (int64_t done = 0; done < n; ++outer, s = 0) {
    const int64_t length = inner - s < n - done ? inner - s : n - done;
    f(outer, s, done, length);
    done += length;
  }
}

template <class F> BN_INLINE void each_segment(const Problem& p, int64_t r0, int64_t n, const F& f) {
  each_segment(run_length(p), r0, n, f);
}

template <class T> BN_INLINE void copy_run(const T* from, int64_t n, T* to) {
  if (n < 16) {
    for (int64_t i = 0; i < n; ++i) to[i] = from[i];
    return;
  }
  struct Sixteen {
    T t[16];
  };
  for (int64_t i = 0; i + 16 <= n; i += 16) std::memcpy(to + i, from + i, sizeof(Sixteen));
  std::memcpy(to + n - 16, from + n - 16, sizeof(Sixteen));  // the tail, over what may be there already
}

template <class T> T* element(const Problem& p, const Array& a, int64_t c) {
  return reinterpret_cast<T*>(a.data) + channel_offset(p, a, c);
}

template <class T> void gather(const Problem& p, const Array& a, int64_t c, int64_t r0, int64_t n, T* to) {
  const T* base = element<T>(p, a, c);
  const int64_t step = run_step(p, a);
  each_segment(p, r0, n, [&](int64_t outer, int64_t s, int64_t done, int64_t length) {
    const T* from = base + run_offset(p, a, outer) + s * step;
    if (step == 1) {
      if (length <= 512) prefetch(from + length, length * sizeof(T));  // in a dense array: the next channel's run
      return copy_run(from, length, to + done);
    }
    for (int64_t i = 0; i < length; ++i) to[done + i] = from[i * step];
  });
}

template <class T> void scatter(const Problem& p, const Array& a, int64_t c, int64_t r0, int64_t n, const T* from) {
  T* base = element<T>(p, a, c);
  const int64_t step = run_step(p, a);
  each_segment(p, r0, n, [&](int64_t outer, int64_t s, int64_t done, int64_t length) {
    T* to = base + run_offset(p, a, outer) + s * step;
    if (step == 1) return copy_run(from + done, length, to);
    for (int64_t i = 0; i < length; ++i) to[i * step] = from[done + i];
  });
}

template <class T> BN_INLINE double to_double(T value) {
  if constexpr (std::is_same<T, double>::value) return value;
  else return to_float(value);
}

// The shift of a block: its first counted value, or 0 where that would spoil every difference.
inline double finite_or_zero(double v) { return __builtin_isfinite(v) ? v : 0.0; }

BN_INLINE double fold(D16 lanes) {
  double s[16];
  std::memcpy(s, &lanes, sizeof s);
  for (int half = 8; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) s[i] = s[i] + s[i + half];
  }
  return s[0];
}

constexpr int64_t kStreamFrom = int64_t(16) << 20;  // bytes of output; below, the last-level cache holds it

// 16-bit vectors are half a line and are never streamed.
template <class T> bool goes_past_cache(const Problem& p) {
  return sizeof(T) >= 4 && p.m * p.C * static_cast<int64_t>(sizeof(T)) >= kStreamFrom;
}

inline int64_t blocks_of(const Problem& p) { return (p.m + kBlock - 1) / kBlock; }

}  // namespace
}  // namespace BN_ISA
}  // namespace batchnorm
