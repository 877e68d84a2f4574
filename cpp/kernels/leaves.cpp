// The tables of one instruction set (BN_ISA). Compiled once for each, with its flags; nothing here is linked from elsewhere but the
// tables at the end.
#include "kernels/leaves.h"

#include "kernels/activation.h"
#include "kernels/apply.h"
#ifndef BN_ONLY_STORES
#include "kernels/per_channel.h"
#endif
#include "kernels/sums.h"

namespace batchnorm {
namespace {

// ---- tiles: whole units -------------------------------------------------------------------------------------------------------

template <class T> void to_compute(char* to, const char* from, int64_t n, const char* less) {
  using C = Compute<T>;
  const U<C> center = less ? load_raw(reinterpret_cast<const C*>(less)) : fill<C>(0);
  for (int64_t i = 0; i < n; i += kLanes)
    store_raw(reinterpret_cast<C*>(to) + i, load(reinterpret_cast<const T*>(from) + i) - center);
}
template <class T> void to_double(double* to, const char* from, int64_t n, const double* less) {
  const U<double> center = less ? load_raw(less) : fill(0.0);
  for (int64_t i = 0; i < n; i += kLanes) store_raw(to + i, widen(load(reinterpret_cast<const T*>(from) + i)) - center);
}
template <class T> void from_compute(char* to, const char* from, int64_t n) {
  for (int64_t i = 0; i < n; i += kLanes)
    store(reinterpret_cast<T*>(to) + i, load_raw(reinterpret_cast<const Compute<T>*>(from) + i));
}

// a = f(a, b) over units.
template <class C, class F> BN_INLINE void each_pair(char* a, const char* b, int64_t n, const F& f) {
  for (int64_t i = 0; i < n; i += kLanes) {
    C* at = reinterpret_cast<C*>(a) + i;
    store_raw(at, f(load_raw(at), load_raw(reinterpret_cast<const C*>(b) + i)));
  }
}

template <class C, Activation Kind> BN_INLINE void activate_by(double slope, char* z, int64_t n) {
  each_pair<C>(z, z, n, [&](U<C> v, U<C>) BN_INLINE_LAMBDA { return activate(Kind, static_cast<C>(slope), v); });
}
template <class C, Activation Kind> BN_INLINE void activate_backward_by(double slope, char* g, const char* z, int64_t n) {
  each_pair<C>(g, z, n, [&](U<C> a, U<C> b) BN_INLINE_LAMBDA { return activate_backward(Kind, static_cast<C>(slope), b, a); });
}
// A loop of its own for each activation.
template <class C, int Kind = 1> void activate_tile(Activation kind, double slope, char* z, int64_t n) {
  if constexpr (Kind < kActivationCount) {
    constexpr auto this_one = static_cast<Activation>(Kind);
    kind == this_one ? activate_by<C, this_one>(slope, z, n) : activate_tile<C, Kind + 1>(kind, slope, z, n);
  }
}
template <class C, int Kind = 1> void activate_backward_tile(Activation kind, double slope, char* g, const char* z, int64_t n) {
  if constexpr (Kind < kActivationCount) {
    constexpr auto this_one = static_cast<Activation>(Kind);
    kind == this_one ? activate_backward_by<C, this_one>(slope, g, z, n)
                     : activate_backward_tile<C, Kind + 1>(kind, slope, g, z, n);
  }
}

template <class C> void add(char* z, const char* r, int64_t n) {
  each_pair<C>(z, r, n, [](U<C> a, U<C> b) BN_INLINE_LAMBDA { return a + b; });
}
template <class C> void subtract_weighted(char* h, const char* t, const char* w, int64_t period, int64_t n) {
  const C* weights = reinterpret_cast<const C*>(w);
  for (int64_t i = 0; i < n; i += kLanes) {
    C* at = reinterpret_cast<C*>(h) + i;
    const U<C> weight = period ? fill(weights[i / period]) : load_raw(weights + i);
    const U<C> through = load_raw(reinterpret_cast<const C*>(t) + i) * weight;
    store_raw(at, load_raw(at) - if_less(fill<C>(0), weight, through, fill<C>(0)));
  }
}
template <class C> void keep_numbers(char* h, const char* x, int64_t n) {
  each_pair<C>(h, x, n, [](U<C> a, U<C> b) BN_INLINE_LAMBDA { return where_number(b, a); });
}
template <class C> void choose(char* z, const double* wide, const char* is_wide, int64_t period, int64_t n) {
  for (int64_t i = 0; i < n; i += kLanes) {
    C* at = reinterpret_cast<C*>(z) + i;
    const U<float> other = narrow(load_raw(wide + i));
    if constexpr (sizeof(C) == 4) store_raw(at, if_less(fill<C>(0), column<C>(is_wide, i % period), other, load_raw(at)));
  }
}

#ifndef BN_ONLY_STORES
template <class T> constexpr Leaves leaves_of() {
  using C = Compute<T>;
  return {sizeof(T),
          sizeof(C),
          kHasTogether,
          moments<T>,
          moments_weighted<T>,
          sums<T>,
          sum_of<T>,
          moments_rows<T>,
          sums_rows<T>,
          add_cell<C>,
          moments_weighted_rows<T>,
          moments_narrow<T>,
          sums_narrow<T>,
          fold_rows<T>,
          apply<T>,
          inner<T>,
          grad<T>,
          to_compute<T>,
          to_double<T>,
          from_compute<T>,
          activate_tile<C>,
          activate_backward_tile<C>,
          add<C>,
          subtract_weighted<C>,
          keep_numbers<C>,
          choose<C>};
}

// The next piece comes over what is too much. In a dense array the next channel's stands behind it, and is asked for.
void copy_runs(char* to, const char* from, int64_t bytes, int64_t step, int64_t count, const char* end) {
  typedef char Any __attribute__((vector_size(kVectorBytes), aligned(1), may_alias));
  const int64_t whole = (bytes + 63) / 64 * 64;
  for (; count > 0; --count, to += bytes, from += step) {
    if (bytes > 16384 || end - from < whole) {
      std::memcpy(to, from, static_cast<size_t>(bytes));
      continue;
    }
    for (int64_t i = 0; i < whole; i += 64) {
      __builtin_prefetch(from + bytes + i);
      BN_EACH(float, k) reinterpret_cast<Any*>(to + i)[k] = reinterpret_cast<const Any*>(from + i)[k];
    }
  }
}

// ---- yardsticks -----------------------------------------------------------------------------------------------------------------

// Sixteen floats at a time, whatever the bytes mean. Both ends are aligned as floats are.
void stream(char* to, const char* from, int64_t bytes) {
  int64_t i = static_cast<int64_t>((0 - reinterpret_cast<uintptr_t>(to)) % 64);
  if (i > bytes) i = bytes;
  std::memcpy(to, from, static_cast<size_t>(i));
  for (; i + 64 <= bytes; i += 64) put<true>(reinterpret_cast<float*>(to + i), load(reinterpret_cast<const float*>(from + i)));
  std::memcpy(to + i, from + i, static_cast<size_t>(bytes - i));
  fence();
}

// Nothing can be left out: they are summed.
uint64_t add_words(const char* from, int64_t bytes) {
  typedef uint64_t V __attribute__((vector_size(kVectorBytes), aligned(1), may_alias));
  constexpr int64_t step = 8 * kVectorBytes;
  V sums[8] = {};
  int64_t i = 0;
  for (; i + step <= bytes; i += step) {
    for (int64_t k = 0; k < step; k += 64) __builtin_prefetch(from + i + 8192 + k);
#pragma GCC unroll 8
    for (int k = 0; k < 8; ++k) sums[k] += reinterpret_cast<const V*>(from + i)[k];
  }
  uint64_t total = 0, rest[step / 8] = {};
  std::memcpy(rest, from + i, static_cast<size_t>(bytes - i));
  for (const uint64_t word : rest) total += word;
  for (const V& sum : sums)
    for (int k = 0; k < kVectorBytes / 8; ++k) total += sum[k];
  return total;
}

constexpr Leaves f64 = leaves_of<double>(), f32 = leaves_of<float>(), f16 = leaves_of<Half>(), bf16 = leaves_of<BFloat16>();
#endif

}  // namespace

namespace BN_ISA {
#ifdef BN_ONLY_STORES
extern const Stores stores = {apply<BFloat16>, inner<BFloat16>, grad<BFloat16>, from_compute<BFloat16>};
#else
extern const Isa isa = {{&f64, &f32, &f16, &bf16}, &per_channel, copy_runs, stream, add_words};
#endif
}  // namespace BN_ISA

}  // namespace batchnorm
