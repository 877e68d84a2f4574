// From position numbers to memory: where the positions of a channel stand, and how to bring them together.
#pragma once

#include <cstring>
#include <initializer_list>

#include "kernels/leaves.h"

namespace batchnorm {

// How a call's arrays lie, all of them alike.
enum class Layout {
  channels,  // one channel at a time: contiguous and general
  rows,      // sixteen or more channels side by side
  narrow,    // fewer of them, and the rows one behind another
};
Layout layout_of(const Problem& p);

// Positions r … r + n - 1 of channel c, one after another. `to` has room for 64 bytes more.
void gather(const Problem& p, const Array& a, int64_t c, int64_t r, int64_t n, char* to, const Isa& isa);
void scatter(const Problem& p, const Array& a, int64_t c, int64_t r, int64_t n, const char* from);

// Elements from the first one of channel c to that of position r.
int64_t channel_offset(const Problem& p, const Array& a, int64_t c);
int64_t position_offset(const Problem& p, const Array& a, int64_t r);

inline int64_t blocks_of(const Problem& p) { return (p.m + kBlock - 1) / kBlock; }
inline int64_t size_of(const Problem& p) { return p.dtype == DType::f64 ? 8 : p.dtype == DType::f32 ? 4 : 2; }
inline int64_t run_length(const Problem& p) { return p.reduced[p.reduced_dims - 1]; }
inline int64_t run_step(const Problem& p, const Array& a) { return a.reduced[p.reduced_dims - 1]; }
inline char* at(const Problem& p, const Array& a, int64_t c, int64_t r) {
  return a.data + (channel_offset(p, a, c) + position_offset(p, a, r)) * size_of(p);
}

// Whether every data array there is (not the weights) has a property.
template <class F> bool all_arrays(const Problem& p, const F& holds) {
  for (const Array* a : {&p.x, &p.y, &p.residual, &p.grad_y, &p.grad_x, &p.grad_residual})
    if (*a && !holds(*a)) return false;
  return true;
}

// f(outer, s, done, length) for each part of a run that positions r … r + n - 1 touch, in order.
template <class F> void each_segment(const Problem& p, int64_t r, int64_t n, const F& f) {
  const int64_t inner = run_length(p);
  int64_t outer = r / inner, s = r - outer * inner;
  for (int64_t done = 0; done < n; ++outer, s = 0) {
    const int64_t length = inner - s < n - done ? inner - s : n - done;
    f(outer, s, done, length);
    done += length;
  }
}

// Of the run numbered `outer`: all reduced dimensions but the last.
inline int64_t run_offset(const Problem& p, const Array& a, int64_t outer) {
  int64_t offset = 0;
  for (int d = p.reduced_dims - 2; d > 0; --d) offset += outer % p.reduced[d] * a.reduced[d], outer /= p.reduced[d];
  return p.reduced_dims > 1 ? offset + outer * a.reduced[0] : 0;
}

}  // namespace batchnorm
