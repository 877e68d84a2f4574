// How numbers are summed: cells of 128 positions, in the canonical order, for one data type.
#pragma once

#include "kernels/activation.h"
#include "kernels/leaves.h"

namespace batchnorm {
namespace {

template <class C> BN_INLINE U<C> one(const char* value) { return fill(*reinterpret_cast<const C*>(value)); }
template <class C> BN_INLINE U<C> column(const char* values, int64_t j) { return load_raw(reinterpret_cast<const C*>(values) + j); }

// What a sum takes of sixteen elements: d = x - center and, with gradients, h = g after the activation's derivative; else h = d.
template <class C, bool G> struct Terms {
  U<C> d, h;
};
template <class C> struct Terms<C, false> {
  U<C> d;
};
template <bool G, bool Clips, class C, class Gradient, class Scale, class Shift>
BN_INLINE Terms<C, G> terms_of(U<C> x, U<C> center, U<C> most, Activation act, const Gradient& g, const Scale& scale,
                               const Shift& shift) {
  const U<C> d = x - center;
  if constexpr (!G) return {d};
  else if constexpr (!Clips) return {d, g()};
  else if (kCalls<C> && act == Activation::none) return {d, g()};
  else return {d, where_inside(multiply_add(d, scale(), shift()), most, g())};
}

// The sums of four terms of a lane: in pairs, so that equal values, of which there are many in real data, are added exactly.
template <class C> struct Sum {
  U<C> s, q;
};
template <class C> BN_INLINE Sum<C> operator+(Sum<C> a, Sum<C> b) { return {a.s + b.s, a.q + b.q}; }
template <class C> BN_INLINE Sum<C> pair_of(Terms<C, true> a, Terms<C, true> b) {
  return {a.h + b.h, multiply_add(b.h, b.d, a.h * a.d)};
}
template <class C> BN_INLINE Sum<C> pair_of(Terms<C, false> a, Terms<C, false> b) {
  return {a.d + b.d, multiply_add(b.d, b.d, a.d * a.d)};
}
template <bool Calls, class Term> BN_INLINE auto four_of(int first, const Term& term) {
  const auto at = [&](int t) BN_INLINE_LAMBDA { return inlined_or_called<Calls>(term, first + t); };
  const auto a = at(0), b = at(1), c = at(2), d = at(3);
  return pair_of(a, b) + pair_of(c, d);
}
template <bool Calls, class Term> BN_INLINE auto eight_of(const Term& term) {
  if (!kSmall) {
    const auto first = four_of<Calls>(0, term);
    return first + four_of<Calls>(4, term);
  }
  decltype(four_of<Calls>(0, term)) sum;
#pragma GCC unroll 1
  for (int first = 0; first < 8; first += 4) {
    const auto four = four_of<Calls>(first, term);
    sum = first == 0 ? four : sum + four;
  }
  return sum;
}

// Which elements are summed: all; those that are not NaN; or some: those in `lanes`, and of them, but for those in `anyway`, those
// that are not NaN. `counter` takes what is left.
enum class Which { all, numbers, some };
template <Which which, class C, bool G>
BN_INLINE_IF_SHORT void select(Terms<C, G>& of, const U<C>& x, Lanes<C> lanes, Lanes<C> anyway, Counter<C>& counter) {
  if constexpr (which == Which::all) return;
  if constexpr (which == Which::numbers) lanes = numbers(x);
  else lanes = lanes & (numbers(x) | anyway);
  of.d = keep(of.d, lanes);
  if constexpr (G) of.h = keep(of.h, lanes);
  else counter.add(lanes);
}

// ---- contiguous -------------------------------------------------------------------------------------------------------------

// Units of one channel, one after another: where runs follow each other, one that begins in a run and goes on in the next is joined
// from both, so that every position is added to its own lane.
template <bool Joined, bool G, class T> struct Units {
  const T *x, *g;
  Joints of;
  struct Two {
    U<Compute<T>> x, g;
  };

  BN_INLINE_IF_SHORT Two next() {
    Two two;
    if (!Joined || __builtin_expect(of.left >= kLanes, 1)) {
      two.x = load(x), x += kLanes;
      if (G) two.g = load(g), g += kLanes;
      if (Joined && (of.left -= kLanes) == 0) jump();
    } else {
      two.x = join(load(x), load(x + of.x_jump), of.left), x += kLanes;
      if (G) two.g = join(load(g), load(g + of.g_jump), of.left), g += kLanes;
      of.left -= kLanes, jump();
    }
    return two;
  }

 private:
  BN_INLINE void jump() {
    x += of.x_jump, of.left += of.inner;
    if (G) g += of.g_jump;
  }
};

// Elements ahead of those that are summed, which are asked for, into L2: three pages of floats, where the hardware begins anew in
// each page and each run. Less is not enough, and asking for it into L1 makes what is needed now wait.
constexpr int64_t kAhead = 24 * kCell;
template <class T> BN_INLINE void ask_for_cell(const T* at) {
  for (int64_t i = 0; i < kCell; i += 64 / static_cast<int64_t>(sizeof(T))) __builtin_prefetch(at + i, 0, 2);
}

// What stands together is a run that has no end.
BN_INLINE Joints as_runs(Joints j) {
  if (j.inner == 0) j.inner = j.left = INT64_MAX;
  return j;
}

template <bool G, bool Clips, Which which, bool Joined, class T>
BN_INLINE void add_cells(const char* x, const char* g, int64_t cells, Joints j, const Coefs& k, Activation act, There there,
                         double* acc) {
  using C = Compute<T>;
  if (Joined) j = as_runs(j);
  Units<Joined, G, T> units{reinterpret_cast<const T*>(x), reinterpret_cast<const T*>(g), j};
  const U<C> center = one<C>(k.center), most = gradient_bound<C>(act);
  U<C> scale = center, shift = center;
  if (Clips) scale = one<C>(k.scale), shift = one<C>(k.shift);
  static constexpr uint16_t kAll = 0xffff;
  const uint16_t* bits = there.bits ? there.bits : &kAll;
  const int64_t step = there.bits ? 1 : 0;
  const Lanes<C> anyway = lanes_of<C>(there.omits ? 0 : kAll);
  Counter<C> counter;
  Four s_all, q_all;
  std::memcpy(&s_all, acc, sizeof s_all), std::memcpy(&q_all, acc + 4, sizeof q_all);
  for (; cells > 0; --cells) {
    ask_for_cell(units.x + kAhead);
    if (G) ask_for_cell(units.g + kAhead);
    const auto term = [&](int) BN_INLINE_LAMBDA {
      const auto unit = units.next();
      auto of = terms_of<G, Clips>(
          unit.x, center, most, act, [&]() BN_INLINE_LAMBDA { return unit.g; }, [&] { return scale; }, [&] { return shift; });
      select<which>(of, unit.x, lanes_of<C>(*bits), anyway, counter);
      if (which == Which::some) bits += step;
      return of;
    };
    const Sum<C> sum = eight_of<kCalls<C>>(term);
    s_all += fold(sum.s), q_all += fold(sum.q);
  }
  std::memcpy(acc, &s_all, sizeof s_all), std::memcpy(acc + 4, &q_all, sizeof q_all);
  if constexpr (which != Which::all && !G) {
    const Four n = fold(values_of(counter));
    acc[8] += (n[0] + n[1]) + (n[2] + n[3]);
  }
}
BN_INLINE bool stands_together(const Joints& j) { return kHasTogether && j.inner == 0; }

template <class T> void moments(const char* x, int64_t cells, Joints j, const char* K, There there, double* acc) {
  const Coefs k{K, K, K, K, K};
  constexpr Activation none = Activation::none;
  const bool together = stands_together(j);
  if (there.omits && !there.bits && together)
    add_cells<false, false, Which::numbers, false, T>(x, nullptr, cells, j, k, none, there, acc);
  else if (there.selects()) add_cells<false, false, Which::some, true, T>(x, nullptr, cells, j, k, none, there, acc);
  else if (together) add_cells<false, false, Which::all, false, T>(x, nullptr, cells, j, k, none, there, acc);
  else add_cells<false, false, Which::all, true, T>(x, nullptr, cells, j, k, none, there, acc);
}
template <class T> void moments_weighted(const char* x, const double* weights, int64_t cells, Joints j, double K, double* acc) {
  Units<true, false, T> units{reinterpret_cast<const T*>(x), nullptr, as_runs(j)};
  const U<double> center = fill(K), zero = fill(0.0);
  for (; cells > 0; --cells) {
    ask_for_cell(units.x + kAhead);
    const auto term = [&](int) BN_INLINE_LAMBDA {
      const U<double> w = load_raw(weights), d = if_less(zero, w, widen(units.next().x) - center, zero);
      weights += kLanes;
      return Terms<double, true>{d, w * d};
    };
    const Sum<double> sum = eight_of<kSmall>(term);
    Four s, q;
    std::memcpy(&s, acc, sizeof s), std::memcpy(&q, acc + 4, sizeof q);
    s += fold(sum.s), q += fold(sum.q);
    std::memcpy(acc, &s, sizeof s), std::memcpy(acc + 4, &q, sizeof q);
  }
}
template <class T>
void sums(const char* x, const char* g, int64_t cells, Joints j, Coefs k, Activation act, bool omits, double* acc) {
  using C = Compute<T>;
  static constexpr C kZero = 0, kOne = 1;
  const bool clips = kCalls<C> || act != Activation::none;
  if (kHasTogether && omits) {
    // Without an activation z is 1, or NaN, which are inside of its bounds.
    if (!clips) k.scale = reinterpret_cast<const char*>(&kZero), k.shift = reinterpret_cast<const char*>(&kOne);
    return add_cells<true, true, Which::numbers, true, T>(x, g, cells, j, k, act, {nullptr, true}, acc);
  }
  if (stands_together(j) && clips) add_cells<true, true, Which::all, false, T>(x, g, cells, j, k, act, {}, acc);
  else if (stands_together(j)) add_cells<true, false, Which::all, false, T>(x, g, cells, j, k, act, {}, acc);
  else if (clips) add_cells<true, true, Which::all, true, T>(x, g, cells, j, k, act, {}, acc);
  else add_cells<true, false, Which::all, true, T>(x, g, cells, j, k, act, {}, acc);
}

// Folded as sixteen lanes are, of elements from all over. They come together in registers: a vector would wait for memory that was
// written one by one.
template <class C> BN_INLINE Four fold_scattered(const C* x, const int64_t* offsets) {
  typedef C Some __attribute__((vector_size(4 * sizeof(C))));
  const auto four = [&](int i) BN_INLINE_LAMBDA {
    const int64_t* o = offsets + i;
    return __builtin_convertvector((Some{x[o[0]], x[o[1]], x[o[2]], x[o[3]]}), Four);
  };
  return ((four(0) + four(4)) + four(8)) + four(12);
}
template <class T> BN_INLINE Four fold_scattered_words(const T* x, const int64_t* o) {
  typedef uint16_t All __attribute__((vector_size(32)));
  const auto at = [&](int i) BN_INLINE_LAMBDA { return x[o[i]].bits; };
  const All all{at(0), at(1), at(2),  at(3),  at(4),  at(5),  at(6),  at(7),
                at(8), at(9), at(10), at(11), at(12), at(13), at(14), at(15)};
  return fold(widen(load(reinterpret_cast<const T*>(&all))));
}
template <class T> double sum_of(const char* x, const int64_t* offsets, int64_t n, bool omits, int64_t* found) {
  const T* const from = reinterpret_cast<const T*>(x);
  Four f;
  *found = kLanes;
  if (n == kLanes && !omits) {
    if constexpr (sizeof(T) > 2) f = fold_scattered(from, offsets);
    else f = fold_scattered_words(from, offsets);
    return (f[0] + f[1]) + (f[2] + f[3]);
  }
  alignas(64) T some[kLanes] = {};
  int64_t k = 0;
  for (int64_t i = 0; i < n && k < kLanes; ++i) {
    some[k] = from[offsets[i]];
    k += !omits || is_number(some[k]);
  }
  if (k < kLanes) some[k] = T{};  // the last one may be missing
  *found = k;
  f = fold(widen(load(some)));
  return (f[0] + f[1]) + (f[2] + f[3]);
}

// ---- rows -------------------------------------------------------------------------------------------------------------------

// The rows of one lane, which are `step` apart, along the whole width: each of them is a stream that the next lanes go on with.
// With gradients there are two streams a row, and so many at once would meet in the same sets of L1: rows 0 … 3 first, whose sums
// wait in `rest`, then 4 … 7. Sums go to, or are added to, s and q.
template <class T, bool G, bool Clips> struct Lane {
  using C = Compute<T>;
  const T *x, *g;
  int64_t x_step, g_step, width, whole, stride;  // whole: width in whole units; stride: between rows of sums
  Coefs k;
  Activation act;
  bool omits;
  const T* one;  // a row that can be read in place of one that does not count
  C* n;          // [W]: how many were there is added to it, where not all are known to be

  template <int First, int Rows> BN_INLINE void add(unsigned counts, C* s_to, C* rest, bool begins) const {
    constexpr unsigned all = ((1u << Rows) - 1) << First;
    if (kSmall && (G || kCalls<C>)) add_rows<First, Rows, Which::some>(counts, s_to, rest, begins);
    else if ((counts & all) == all && !omits) add_rows<First, Rows, Which::all>(counts, s_to, rest, begins);
    else if ((counts & all) == all && !G && kHasTogether) add_rows<First, Rows, Which::numbers>(counts, s_to, rest, begins);
    else add_rows<First, Rows, Which::some>(counts, s_to, rest, begins);
  }

 private:
  template <int First, int Rows, Which which>
  __attribute__((noinline)) void add_rows(unsigned counts, C* s_to, C* rest, bool begins) const {
    C *q_to = s_to + stride, *q_rest = rest + stride;
    const U<C> most = gradient_bound<C>(act);
    const T* rows[8];
    Lanes<C> counted[8];
    const Lanes<C> all = lanes_of<C>(0xffff), anyway = lanes_of<C>(omits ? 0 : 0xffff);
    for (int t = 0; which == Which::some && !G && t < 8; ++t) {
      const bool is_in = (counts >> t & 1) != 0;
      rows[t] = is_in ? x + t * x_step : one;
      counted[t] = lanes_of<C>(is_in ? 0xffff : 0);
    }
    const int end = which == Which::some ? 32 - __builtin_clz(counts | 1) : 8;  // no row from there on counts: a block's last rows
    for (int64_t i = 0; i < whole; i += kLanes) {
      const int64_t at = i + kLanes <= width ? i : width - kLanes;
      const U<C> center = column<C>(k.center, at);
      const auto scale = [&]() BN_INLINE_LAMBDA { return column<C>(k.scale, at); };
      const auto shift = [&]() BN_INLINE_LAMBDA { return column<C>(k.shift, at); };
      Counter<C> counter;
      const auto term = [&](int t) BN_INLINE_LAMBDA {
        if constexpr (which == Which::some && !G) {
          if (t >= end) return Terms<C, G>{};
          const U<C> unit = load(rows[t] + at);
          Terms<C, G> of{unit - center};
          select<which>(of, unit, counted[t], anyway, counter);
          return of;
        }
        if (which == Which::some && (counts >> t & 1) == 0) return Terms<C, G>{};
        const U<C> unit = load(x + at + t * x_step);
        auto of =
            terms_of<G, Clips>(unit, center, most, act, [&]() BN_INLINE_LAMBDA { return load(g + at + t * g_step); }, scale, shift);
        if constexpr (!G || kHasTogether) select<which>(of, unit, all, anyway, counter);
        return of;
      };
      Sum<C> sum = Rows == 8 ? eight_of<kCalls<C>>(term) : four_of<kCalls<C>>(First, term);
      if (First > 0) sum = Sum<C>{load_raw(rest + i), load_raw(q_rest + i)} + sum;
      if (First + Rows < 8 && counts >> (First + Rows) != 0) {
        store_raw(rest + i, sum.s), store_raw(q_rest + i, sum.q);
        continue;
      }
      if (!begins) sum = Sum<C>{load_raw(s_to + i), load_raw(q_to + i)} + sum;
      store_raw(s_to + i, sum.s), store_raw(q_to + i, sum.q);
      if (which != Which::all && !G) store_raw(n + i, load_raw(n + i) + values_of(counter));
    }
  }
};

template <class T, bool G, bool Clips>
BN_INLINE void add_lane(const Lane<T, G, Clips>& lane, unsigned counts, Compute<T>* to, Compute<T>* rest, bool begins) {
  if (!G) return lane.template add<0, 8>(counts, to, rest, begins);
  lane.template add<0, 4>(counts, to, rest, begins);
  if (counts >> 4 != 0) lane.template add<4, 4>(counts, to, rest, begins);
}

// Bit t: whether position 16 t + lane of a cell counts.
BN_INLINE unsigned counts_of_lane(const uint16_t* counts, int lane) {
  if (counts == nullptr) return 0xff;
  unsigned bits = 0;
  for (int t = 0; t < 8; ++t) bits |= (static_cast<unsigned>(counts[t]) >> lane & 1) << t;
  return bits;
}

template <class T, bool G, bool Clips>
BN_INLINE void cell_of_rows(const char* x, int64_t x_step, const char* g, int64_t g_step, There there, int64_t width,
                            const Coefs& k, Activation act, char* to, int64_t stride) {
  using C = Compute<T>;
  const int64_t whole = (width + kLanes - 1) / kLanes * kLanes;
  C *four = reinterpret_cast<C*>(to), *rest = four + 8 * stride, *n = rest + 2 * stride;  // s, q of lanes mod 4
  const T* rows = reinterpret_cast<const T*>(x);
  Lane<T, G, Clips> lane{
      rows, reinterpret_cast<const T*>(g), kLanes * x_step, kLanes * g_step, width, whole, stride, k, act, there.omits, rows, n};
  if (!G && there.selects()) std::memset(n, 0, static_cast<size_t>(whole) * sizeof(C));
  for (int l = 0; l < kLanes; ++l, lane.x += x_step, lane.g += G ? g_step : 0)
    add_lane(lane, counts_of_lane(there.bits, l), four + (l & 3) * 2 * stride, rest, l < 4);
}
template <class T>
void moments_rows(const char* x, int64_t step, There there, int64_t width, const char* K, char* to, int64_t stride) {
  cell_of_rows<T, false, false>(x, step, nullptr, 0, there, width, {K, K, K, K, K}, Activation::none, to, stride);
}
template <class T>
void sums_rows(const char* x, int64_t x_step, const char* g, int64_t g_step, There there, int64_t width, Coefs k, Activation act,
               char* to, int64_t stride) {
  if (kCalls<Compute<T>> || act != Activation::none)
    cell_of_rows<T, true, true>(x, x_step, g, g_step, there, width, k, act, to, stride);
  else cell_of_rows<T, true, false>(x, x_step, g, g_step, there, width, k, act, to, stride);
}
template <class C> void add_cell(const char* cell, int64_t stride, int64_t whole, bool counts, bool begins, double* acc) {
  for (int j = 0; j < (counts ? 9 : 8); ++j, acc += whole) {
    const C* from = reinterpret_cast<const C*>(cell) + (j == 8 ? 10 : (j & 3) * 2 + (j >> 2)) * stride;
    for (int64_t i = 0; i < whole; i += kLanes)
      store_raw(acc + i, (begins ? fill(0.0) : load_raw(acc + i)) + widen(load_raw(from + i)));
  }
}

// A row whose weight is 0 is not read.
template <class T>
void moments_weighted_rows(const char* x, int64_t step, const double* weights, int64_t width, const double* K, double* acc) {
  const U<double> zero = fill(0.0);
  const int64_t whole = (width + kLanes - 1) / kLanes * kLanes;
  for (int64_t i = 0; i < whole; i += kLanes) {
    const int64_t at = i + kLanes <= width ? i : width - kLanes;
    const T* from = reinterpret_cast<const T*>(x) + at;
    const U<double> center = load_raw(K + at);
    Sum<double> four[4];
    for (int64_t l = 0; l < kLanes; ++l) {
      int64_t r = l;
      const auto term = [&](int) BN_INLINE_LAMBDA {
        const double w = weights[r];
        __builtin_prefetch(from + (r + kCell) * step, 0, 2);
        const U<double> d = w > 0 ? widen(load(from + r * step)) - center : zero;
        r += kLanes;
        return Terms<double, true>{d, fill(w) * d};
      };
      const Sum<double> sum = eight_of<kSmall>(term);
      four[l & 3] = l < 4 ? sum : four[l & 3] + sum;
    }
    for (int j = 0; j < 4; ++j) {
      double *s = acc + j * whole + i, *q = s + 4 * whole;
      store_raw(s, load_raw(s) + four[j].s), store_raw(q, load_raw(q) + four[j].q);
    }
  }
}

// ---- narrow rows --------------------------------------------------------------------------------------------------------------

// Sixteen rows one behind another are one row of 16 C columns, with all lanes; eight of these are a cell. A lane's columns stand C
// apart.
template <class T, bool G, bool Clips>
BN_INLINE void add_narrow_cells(const char* x, const char* g, int64_t cells, int64_t channels, const Coefs& k, Activation act,
                                bool omits, char* scratch, double* acc) {
  using C = Compute<T>;
  typedef C FourC __attribute__((vector_size(4 * sizeof(C)), aligned(sizeof(C)), may_alias));
  typedef double FourD __attribute__((vector_size(32), aligned(8), may_alias));
  const int64_t width = kLanes * channels, quarter = width / 4;
  C *s = reinterpret_cast<C*>(scratch), *rest = s + 2 * width, *n = rest + 2 * width;
  Lane<T, G, Clips> rows{
      reinterpret_cast<const T*>(x), reinterpret_cast<const T*>(g), width, width, width, width, width, k, act, omits, nullptr, n};
  if (!G && omits) std::memset(n, 0, static_cast<size_t>(width) * sizeof(C));
  for (; cells > 0; --cells, rows.x += 8 * width, rows.g += G ? 8 * width : 0) {
    add_lane(rows, 0xff, s, rest, true);
    for (int half = 0; half < 2; ++half) {
      for (int64_t i = 0; i < quarter; i += 4) {
        const auto part = [&](int64_t lanes) { return *reinterpret_cast<const FourC*>(s + half * width + lanes * quarter + i); };
        const FourC f = ((part(0) + part(1)) + part(2)) + part(3);
        *reinterpret_cast<FourD*>(acc + half * quarter + i) += __builtin_convertvector(f, FourD);
      }
    }
  }
  for (int64_t i = 0; !G && omits && i < width; ++i) acc[8 * channels + i % channels] += static_cast<double>(n[i]);
}
template <class T>
void moments_narrow(const char* x, int64_t cells, int64_t channels, const char* K, bool omits, char* scratch, double* acc) {
  add_narrow_cells<T, false, false>(x, nullptr, cells, channels, {K, K, K, K, K}, Activation::none, omits, scratch, acc);
}
template <class T>
void sums_narrow(const char* x, const char* g, int64_t cells, int64_t channels, Coefs k, Activation act, bool omits, char* scratch,
                 double* acc) {
  if (kCalls<Compute<T>> || act != Activation::none)
    add_narrow_cells<T, true, true>(x, g, cells, channels, k, act, omits, scratch, acc);
  else add_narrow_cells<T, true, false>(x, g, cells, channels, k, act, omits, scratch, acc);
}

// Rows, folded as lanes are. The last unit overlaps the one before.
template <class T> void fold_rows(const char* const* rows, int64_t n, int64_t width, double* sum) {
  for (int64_t i = 0; i < width; i += kLanes) {
    const int64_t at = i + kLanes <= width ? i : width - kLanes;
    U<double> four[4];
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      four[j] = fill(0.0);
      for (int64_t r = j; r < n; r += 4) four[j] = four[j] + widen(load(reinterpret_cast<const T*>(rows[r]) + at));
    }
    store_raw(sum + at, (four[0] + four[1]) + (four[2] + four[3]));
  }
}

}  // namespace
}  // namespace batchnorm
