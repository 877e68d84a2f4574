// How numbers are applied: runs of elements, for one data type.
#pragma once

#include "kernels/sums.h"

namespace batchnorm {
namespace {

constexpr int64_t kNoPeriod = INT64_MAX;

// put(j, unit(j, column)) for whole units from j on, up to one that ends at `end` or behind it.
template <bool Past, class T, class Unit>
BN_INLINE void put_units(T* out, int64_t j, int64_t end, int64_t period, const Unit& unit) {
  for (int64_t column = period == kNoPeriod ? 0 : j % period; j < end; column -= period) {
    int64_t stop = end;
    if (period != kNoPeriod && period - column < end - j) stop = j + period - column;
    for (; j < stop; j += kLanes, column += kLanes) put<Past>(out + j, inlined_or_called<kCalls<Compute<T>>>(unit, j, column));
    if (period == kNoPeriod) return;
  }
}

// A run of n >= 16 elements. Its last unit overlaps the one before, and is computed first, for the output may be an input.
template <class T, class Unit> BN_INLINE void each_unit(T* out, int64_t n, int64_t period, const Unit& unit) {
  const int64_t last = n - kLanes;
  const int64_t column = period == kNoPeriod ? 0 : last % period;
  const U<Compute<T>> at_end = inlined_or_called<kCalls<Compute<T>>>(unit, last, column);
  put_units<false>(out, 0, last, period, unit);
  store(out + last, at_end);
}

// The same past the cache: whole lines; what shares its line with another run is stored as usual, for a line must not be written
// both ways.
template <class T, class Unit> BN_INLINE void each_line(T* out, int64_t n, int64_t period, const Unit& unit) {
  constexpr int64_t lines = sizeof(T) == 2 ? 2 * kLanes : kLanes;  // whole lines and whole units
  const int64_t head = static_cast<int64_t>((0 - reinterpret_cast<uintptr_t>(out)) % 64 / sizeof(T)), last = n - kLanes;
  const int64_t end = head + lines + kLanes <= n ? n - (n - head) % lines : 0, begin = end > 0 ? head : n;
  put_units<true>(out, begin, end, period, unit);
  for (int64_t j = begin > 0 ? 0 : end; j < n; j = j < begin && j + kLanes >= begin && end > 0 ? end : j + kLanes) {
    const int64_t from = j < last ? j : last, some = j < begin && begin - j < kLanes ? begin - j : kLanes;
    T unit_at[kLanes];
    store(unit_at, unit(from, period == kNoPeriod ? 0 : from % period));
    std::memcpy(out + j, unit_at + (j - from), static_cast<size_t>(some - (j - from)) * sizeof(T));
  }
}

// Where one run begins.
template <class T> struct Place {
  T* out;
  const T *x, *g, *residual;

  BN_INLINE explicit Place(const Runs& runs)
      : out(reinterpret_cast<T*>(runs.out)),
        x(reinterpret_cast<const T*>(runs.x)),
        g(reinterpret_cast<const T*>(runs.g)),
        residual(reinterpret_cast<const T*>(runs.residual)) {}
  BN_INLINE void next(const Runs& runs) {
    out += runs.out_step, x += runs.x_step;
    if (g) g += runs.g_step;
    if (residual) residual += runs.residual_step;
  }
};

// Runs of fewer than sixteen elements, through memory that has room for them: apply(runs, coefficients) for each.
template <class T, class Apply>
__attribute__((noinline)) void each_short_run(const Runs& runs, Coefs k, int64_t period, const Apply& apply) {
  constexpr int64_t size = sizeof(Compute<T>);
  alignas(64) char few[4][kLanes * sizeof(T)] = {};
  const size_t bytes = static_cast<size_t>(runs.length) * sizeof(T);
  Runs one{few[0], few[1], runs.g ? few[2] : nullptr, runs.residual ? few[3] : nullptr, 1, kLanes, 0, 0, 0, 0, false, runs.slope};
  one.omits = runs.omits;
  Place<T> at(runs);
  for (int64_t i = 0; i < runs.count; ++i, at.next(runs)) {
    if (runs.weights) one.weights = runs.weights + (period ? i * size : 0);
    std::memcpy(few[1], at.x, bytes);
    if (at.g) std::memcpy(few[2], at.g, bytes);
    if (at.residual) std::memcpy(few[3], at.residual, bytes);
    apply(one, k);
    std::memcpy(at.out, few[0], bytes);
    if (period) continue;
    k.center += size, k.scale += size, k.shift += size, k.k0 += size;
    if (k.k1) k.k1 += size;
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

// run(place, i) for each of the runs.
template <class T, class Run> BN_INLINE void each_run(const Runs& runs, const Run& run) {
  Place<T> at(runs);
  for (int64_t i = 0; i < runs.count; ++i, at.next(runs)) run(at, i);
}
template <bool Past, class T, class Unit> BN_INLINE void over(T* out, int64_t n, int64_t period, const Unit& unit) {
  if constexpr (Past) each_line(out, n, period, unit);
  else each_unit(out, n, period, unit);
}

// What is done to z: nothing, which spares 16-bit data a fifth of the time; a clip; or any other activation.
enum class Then { none, clip, any };
template <class T, class Of, bool Residual, bool Past, Then then>
BN_INLINE void apply_of(const Runs& runs, const Coefs& k, int64_t period, Activation act) {
  using C = Compute<T>;
  const Bounds<C> bounds(act);
  const C slope = static_cast<C>(runs.slope);
  each_run<T>(runs, [&](const Place<T>& at, int64_t i) BN_INLINE_LAMBDA {
    const Of center(k.center, i), scale(k.scale, i), shift(k.shift, i);
    over<Past>(at.out, runs.length, period, [&](int64_t j, int64_t c) BN_INLINE_LAMBDA {
      U<C> z = multiply_add(load(at.x + j) - center(c), scale(c), shift(c));
      if (Residual && (!kSmall || at.residual)) z = z + load(at.residual + j);
      return then == Then::none ? z : then == Then::clip ? bounds.clip(z) : activate_any(act, slope, z);
    });
  });
  if (Past) fence();
}
template <class T, class Of> BN_INLINE void apply_either(const Runs& runs, const Coefs& k, int64_t period, Activation act) {
  if constexpr (kCalls<Compute<T>>) return apply_of<T, Of, true, false, Then::any>(runs, k, period, act);
  const bool plain = act == Activation::none && !runs.residual && !runs.past_cache && kHasTogether;
  if (plain) return apply_of<T, Of, false, false, Then::none>(runs, k, period, act);
  if (!is_clip(act) && runs.residual) apply_of<T, Of, true, false, Then::any>(runs, k, period, act);
  else if (!is_clip(act)) apply_of<T, Of, false, false, Then::any>(runs, k, period, act);
  else if (runs.residual && runs.past_cache) apply_of<T, Of, true, kStreams, Then::clip>(runs, k, period, act);
  else if (runs.residual) apply_of<T, Of, true, false, Then::clip>(runs, k, period, act);
  else if (runs.past_cache) apply_of<T, Of, false, kStreams, Then::clip>(runs, k, period, act);
  else apply_of<T, Of, false, false, Then::clip>(runs, k, period, act);
}
template <class T> void apply(const Runs& runs, Coefs k, int64_t period, Activation act) {
  if (runs.length < kLanes)
    return each_short_run<T>(runs, k, period, [&](const Runs& one, Coefs its) { apply<T>(one, its, period, act); });
  if (period) apply_either<T, OfRows<Compute<T>>>(runs, k, period, act);
  else apply_either<T, OfPlanes<Compute<T>>>(runs, k, kNoPeriod, act);
}

// The gradient before an activation of x, or of x and a residual.
template <class T, class Of, bool Residual, bool Clips>
BN_INLINE void inner_of(const Runs& runs, const Coefs& k, int64_t period, Activation act) {
  using C = Compute<T>;
  const U<C> most = gradient_bound<C>(act);
  const bool omits = kHasTogether && runs.omits;
  const C slope = static_cast<C>(runs.slope);
  each_run<T>(runs, [&](const Place<T>& at, int64_t i) BN_INLINE_LAMBDA {
    const Of center(k.center, i), scale(k.scale, i), shift(k.shift, i);
    over<false>(at.out, runs.length, period, [&](int64_t j, int64_t c) BN_INLINE_LAMBDA {
      const U<C> unit = load(at.x + j);
      U<C> z = multiply_add(unit - center(c), scale(c), shift(c));
      if (Residual && (!kSmall || at.residual)) z = z + load(at.residual + j);
      const U<C> h = Clips ? where_inside(z, most, load(at.g + j)) : activate_any_backward(act, slope, z, load(at.g + j));
      return __builtin_expect(omits, 0) ? where_number(unit, h) : h;
    });
  });
}
template <class T, class Of> BN_INLINE void inner_either(const Runs& runs, const Coefs& k, int64_t period, Activation act) {
  if constexpr (kCalls<Compute<T>>) return inner_of<T, Of, true, false>(runs, k, period, act);
  if (!runs.residual) inner_of<T, Of, false, false>(runs, k, period, act);
  else if (is_clip(act)) inner_of<T, Of, true, true>(runs, k, period, act);
  else inner_of<T, Of, true, false>(runs, k, period, act);
}
template <class T> void inner(const Runs& runs, Coefs k, int64_t period, Activation act) {
  if (runs.length < kLanes)
    return each_short_run<T>(runs, k, period, [&](const Runs& one, Coefs its) { inner<T>(one, its, period, act); });
  if (period) inner_either<T, OfRows<Compute<T>>>(runs, k, period, act);
  else inner_either<T, OfPlanes<Compute<T>>>(runs, k, kNoPeriod, act);
}

// What the statistics' part in a gradient is multiplied with: 1, or a weight; where that is 0 there is none.
enum class Weighing { none, by_position, by_run };

template <class T, class Of, bool Training, bool Clips, bool Past, Weighing W = Weighing::none>
BN_INLINE void grad_of(const Runs& runs, const Coefs& k, int64_t period, Activation act) {
  using C = Compute<T>;
  const U<C> most = gradient_bound<C>(act), zero = fill<C>(0);
  const bool omits = kHasTogether && runs.omits;
  const C* weights = reinterpret_cast<const C*>(runs.weights);
  each_run<T>(runs, [&](const Place<T>& at, int64_t i) BN_INLINE_LAMBDA {
    const Of center(k.center, i), scale(k.scale, i), shift(Clips ? k.shift : k.scale, i);
    const Of k1(Training ? k.k1 : k.scale, i), k0(Training ? k.k0 : k.scale, i);
    const U<C> of_run = W == Weighing::by_run ? fill(weights[i]) : zero;
    over<Past>(at.out, runs.length, period, [&](int64_t j, int64_t c) BN_INLINE_LAMBDA {
      const U<C> unit = load(at.x + j), d = unit - center(c);
      U<C> h = load(at.g + j);
      if (Clips && (!kCalls<C> || act != Activation::none)) h = where_inside(multiply_add(d, scale(c), shift(c)), most, h);
      if (W != Weighing::none) {
        const U<C> w = W == Weighing::by_run ? of_run : load_raw(weights + j);
        h = h - if_less(zero, w, multiply_add(d, k1(c), k0(c)) * w, zero);
      } else if (Training) {
        h = h - multiply_add(d, k1(c), k0(c));
      }
      h = h * scale(c);
      return __builtin_expect(omits, 0) ? where_number(unit, h) : h;
    });
  });
  if (Past) fence();
}
template <class T, class Of, Weighing W>
BN_INLINE void grad_either(const Runs& runs, const Coefs& k, int64_t period, Activation act) {
  const bool clips = kCalls<Compute<T>> || act != Activation::none;
  if (runs.weights && clips) grad_of<T, Of, true, true, false, W>(runs, k, period, act);
  else if (runs.weights) grad_of<T, Of, true, false, false, W>(runs, k, period, act);
  else if (runs.past_cache && k.k1 == nullptr) grad_of<T, Of, false, true, kStreams>(runs, k, period, act);
  else if (runs.past_cache && clips) grad_of<T, Of, true, true, kStreams>(runs, k, period, act);
  else if (runs.past_cache) grad_of<T, Of, true, false, kStreams>(runs, k, period, act);
  else if (k.k1 == nullptr) grad_of<T, Of, false, true, false>(runs, k, period, act);
  else if (clips) grad_of<T, Of, true, true, false>(runs, k, period, act);
  else grad_of<T, Of, true, false, false>(runs, k, period, act);
}
template <class T> void grad(const Runs& runs, Coefs k, int64_t period, Activation act) {
  if (runs.length < kLanes)
    return each_short_run<T>(runs, k, period, [&](const Runs& one, Coefs its) { grad<T>(one, its, period, act); });
  if (period) grad_either<T, OfRows<Compute<T>>, Weighing::by_run>(runs, k, period, act);
  else grad_either<T, OfPlanes<Compute<T>>, Weighing::by_position>(runs, k, kNoPeriod, act);
}

}  // namespace
}  // namespace batchnorm
