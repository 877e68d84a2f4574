// How numbers are applied: runs of elements, for one data type.
#pragma once

#include <limits>
#include <utility>

#include "leaves.h"
#include "sums.h"

namespace batchnorm {
namespace {

constexpr int64_t kNoPeriod = INT64_MAX;

template <class T> BN_INLINE void put_some(T* out, int64_t first, int64_t end, U<Compute<T>> unit) {
  T all[kLanes];
  store(all, unit);
  std::memcpy(out, all + first, static_cast<size_t>(end - first) * sizeof(T));
}

// The results unit(j, column) of a run of n >= 16 elements. Its last unit overlaps the one before, and is computed first, for the
// output may be an input. Past the cache go whole lines; what shares its line with another run is stored as usual, for a line must
// not be written both ways.
template <class T, class Unit> BN_INLINE void each_unit(T* out, int64_t n, int64_t period, bool past_cache, const Unit& unit) {
  constexpr int64_t lines = sizeof(T) == 2 ? 2 * kLanes : kLanes;  // whole lines and whole units
  const auto column_of = [&](int64_t j) BN_INLINE_LAMBDA { return period == kNoPeriod ? 0 : j % period; };
  const int64_t last = n - kLanes, head = static_cast<int64_t>((0 - reinterpret_cast<uintptr_t>(out)) % 64 / sizeof(T));
  past_cache = past_cache && head + lines + kLanes <= n;
  const int64_t begin = past_cache ? head : 0, end = past_cache ? n - (n - head) % lines : last;
  U<Compute<T>> edge;
  for (int64_t j = begin > 0 ? 0 : end; j < n; j = j < begin && j + kLanes >= begin ? end : j + kLanes) {
    const int64_t from = j < last ? j : last;
    edge = unit(from, column_of(from));
    if (past_cache) put_some(out + j, j - from, j < begin && begin - j < kLanes ? begin - j : kLanes, edge);
  }
  for (int64_t j = begin, column = column_of(j); j < end;) {
    int64_t units = (end - j + kLanes - 1) / kLanes;
    if (period != kNoPeriod && period - column < units * kLanes) units = (period - column + kLanes - 1) / kLanes;
    for (; units > 0; --units, j += kLanes, column += kLanes) {
      const U<Compute<T>> result = unit(j, column);
      if (past_cache) put<true>(out + j, result);
      else put<false>(out + j, result);
    }
    column -= period;
  }
  if (!past_cache) store(out + last, edge);
}

// run(out, x, g, residual, n, i) for each of the runs; one of fewer than sixteen elements through memory that has room for them.
template <class T, class Run> BN_INLINE void each_run(const Runs& runs, const Run& run) {
  T few[4][kLanes] = {};
  const size_t bytes = static_cast<size_t>(runs.length) * sizeof(T);
  const bool short_ones = runs.length < kLanes;
  for (int64_t i = 0; i < runs.count; ++i) {
    T* out = reinterpret_cast<T*>(runs.out) + i * runs.out_step;
    const T* x = reinterpret_cast<const T*>(runs.x) + i * runs.x_step;
    const T* g = runs.g ? reinterpret_cast<const T*>(runs.g) + i * runs.g_step : nullptr;
    const T* r = runs.residual ? reinterpret_cast<const T*>(runs.residual) + i * runs.residual_step : nullptr;
    T* const to = out;
    if (short_ones) {
      for (const auto& [from, copy] : {std::pair<const T**, T*>{&x, few[0]}, {&g, few[1]}, {&r, few[2]}})
        if (*from) std::memcpy(copy, *from, bytes), *from = copy;
      out = few[3];
    }
    run(out, x, g, r, short_ones ? kLanes : runs.length, i);
    if (short_ones) std::memcpy(to, out, bytes);
  }
}

// The coefficients of run i, from column j on: of one channel, or of sixteen columns.
template <class C> struct OfPlanes {
  U<C> values;
  BN_INLINE OfPlanes(const char* values, int64_t run) : values(one<C>(values + run * static_cast<int64_t>(sizeof(C)))) {}
  BN_INLINE U<C> operator()(int64_t) const { return values; }
};
template <class C> struct OfRows {
  const char* values;
  BN_INLINE OfRows(const char* values, int64_t) : values(values) {}
  BN_INLINE U<C> operator()(int64_t j) const { return column<C>(values, j); }
};

template <class T, class Of, bool Residual> BN_INLINE void apply_of(const Runs& runs, const Coefs& k, int64_t period, bool relu) {
  using C = Compute<T>;
  const U<C> least = fill<C>(relu ? 0 : -std::numeric_limits<C>::infinity());
  each_run<T>(runs, [&](T* out, const T* x, const T*, const T* r, int64_t n, int64_t i) BN_INLINE_LAMBDA {
    const Of center(k.center, i), scale(k.scale, i), shift(k.shift, i);
    each_unit(out, n, period, runs.past_cache, [&](int64_t j, int64_t c) BN_INLINE_LAMBDA {
      U<C> z = multiply_add(load(x + j) - center(c), scale(c), shift(c));
      if (Residual) z = z + load(r + j);
      return at_least(z, least);
    });
  });
  if (runs.past_cache) fence();
}
template <class T, class Of> BN_INLINE void apply_either(const Runs& runs, const Coefs& k, int64_t period, bool relu) {
  if (runs.residual) apply_of<T, Of, true>(runs, k, period, relu);
  else apply_of<T, Of, false>(runs, k, period, relu);
}
template <class T> void apply_planes(const Runs& runs, Coefs k, bool relu) {
  apply_either<T, OfPlanes<Compute<T>>>(runs, k, kNoPeriod, relu);
}
template <class T> void apply_rows(const Runs& runs, Coefs k, int64_t period, bool relu) {
  apply_either<T, OfRows<Compute<T>>>(runs, k, period, relu);
}

template <class T, class Of, bool Training, bool Relu> BN_INLINE void grad_of(const Runs& runs, const Coefs& k, int64_t period) {
  using C = Compute<T>;
  each_run<T>(runs, [&](T* out, const T* x, const T* g, const T*, int64_t n, int64_t i) BN_INLINE_LAMBDA {
    const Of center(k.center, i), scale(k.scale, i), shift(Relu ? k.shift : k.scale, i);
    const Of k1(Training ? k.k1 : k.scale, i), k0(Training ? k.k0 : k.scale, i);
    each_unit(out, n, period, runs.past_cache, [&](int64_t j, int64_t c) BN_INLINE_LAMBDA {
      const U<C> d = load(x + j) - center(c);
      U<C> h = load(g + j);
      if (Relu) h = where_positive(multiply_add(d, scale(c), shift(c)), h);
      if (Training) h = h - multiply_add(d, k1(c), k0(c));
      return h * scale(c);
    });
  });
  if (runs.past_cache) fence();
}
template <class T, class Of> BN_INLINE void grad_either(const Runs& runs, const Coefs& k, int64_t period, bool relu) {
  if (k.k1 == nullptr) grad_of<T, Of, false, true>(runs, k, period);
  else if (relu) grad_of<T, Of, true, true>(runs, k, period);
  else grad_of<T, Of, true, false>(runs, k, period);
}
template <class T> void grad_planes(const Runs& runs, Coefs k, bool relu) {
  grad_either<T, OfPlanes<Compute<T>>>(runs, k, kNoPeriod, relu);
}
template <class T> void grad_rows(const Runs& runs, Coefs k, int64_t period, bool relu) {
  grad_either<T, OfRows<Compute<T>>>(runs, k, period, relu);
}

}  // namespace
}  // namespace batchnorm
