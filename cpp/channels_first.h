// Contiguous and general layouts: one channel at a time. Runs of a channel that stand together in memory are used where they are;
// everything else is gathered, a block at a time, into L1.
#pragma once

#include "elementwise.h"
#include "parallel.h"
#include "walk.h"
#include "weights.h"

namespace batchnorm {
namespace BN_ISA {
namespace {

constexpr int64_t kSmallProblem = 16384;  // elements; below, handing work to a thread costs more than it does
constexpr int64_t kColumns = 1024;        // of a sample of tiny planes: their coefficients stay in L1

template <class T> class ChannelsFirst {
 public:
  using C = Compute<T>;

  // Without weights, or for the other of the two passes, their argument is null.
  ChannelsFirst(const Problem& p, Table<C>& table, const Weights* weights, const Factors<C>* factors)
      : p_(p), table_(table), weights_(weights), factors_(factors) {
    direct_ = all_arrays(p, [&](const Array& a) { return run_step(p, a) == 1; });
    in_runs_ = Walk<T>::can_read(p);
    columns_ = direct_ && is_dense() && run_length(p) < kLanes;
    streaming_ = goes_past_cache<T>(p);
  }

  Moments moments_block(int64_t c, int64_t b) const {
    const int64_t r0 = b * kBlock, n = p_.m - r0 < kBlock ? p_.m - r0 : kBlock;
    const auto sums = [&](const BlockWeights& w) {
      if (in_runs_) return moments_of(w, element<T>(p_, p_.x, c), r0, n, false);
      T packed[kBlock];
      gather(p_, p_.x, c, r0, n, packed);
      return moments_of(w, packed, 0, n, true);
    };
    if (weights_ == nullptr) return sums({Counted::all, static_cast<double>(n), 0, nullptr});
    Weights::Local local;
    const BlockWeights w = weights_->block(b, local);
    return w.counted == Counted::none ? Moments{} : sums(w);
  }

  Sums sums_block(int64_t c, int64_t b) const {
    const int64_t r0 = b * kBlock, n = p_.m - r0 < kBlock ? p_.m - r0 : kBlock;
    const bool with_residual = p_.residual && p_.activation != Activation::none;
    const Variant variant = variant_of(p_, table_.wide[c] != 0);
    if (in_runs_) {
      const T* r = with_residual ? element<T>(p_, p_.residual, c) : nullptr;
      return sums_of(variant, c, {element<T>(p_, p_.x, c), element<T>(p_, p_.grad_y, c), r}, r0, n, false);
    }
    T x[kBlock], g[kBlock], r[kBlock];
    gather(p_, p_.x, c, r0, n, x);
    gather(p_, p_.grad_y, c, r0, n, g);
    if (with_residual) gather(p_, p_.residual, c, r0, n, r);
    return sums_of(variant, c, {x, g, with_residual ? r : nullptr}, 0, n, true);
  }

  // Whether the second pass works on runs where they are.
  bool by_runs() const { return direct_ && run_length(p_) >= kLanes; }

  // Channels c0 … c1 - 1, positions r0 … r1 - 1, last ones first: they are the ones a cache still holds.
  void apply(int64_t c0, int64_t c1, int64_t r0, int64_t r1) const {
    if (columns_ && c1 - c0 > 1 && r0 == 0 && r1 == p_.m) {
      const int64_t width = kColumns / run_length(p_) > 1 ? kColumns / run_length(p_) : 1;
      for (int64_t c = c1; c > c0; c -= width) apply_columns(c - width > c0 ? c - width : c0, c);
    } else if (by_runs()) {
      apply_runs(c0, c1, r0, r1);
    } else {
      for (int64_t c = c1 - 1; c >= c0; --c) apply_packed(c, r0, r1);
    }
    if (streaming_) fence();
  }

 private:
  const Problem& p_;
  Table<C>& table_;
  const Weights* weights_;
  const Factors<C>* factors_;
  bool direct_, in_runs_, columns_, streaming_;

  // All channels of a sample stand one after another, in every array.
  bool is_dense() const {
    if (p_.channel_dims != 1 || p_.reduced_dims > 2) return false;
    return all_arrays(p_, [&](const Array& a) { return a.channel[0] == run_length(p_); });
  }

  Moments moments_of(const BlockWeights& w, const T* base, int64_t r0, int64_t n, bool gathered) const {
    if (w.counted == Counted::all) return moments_of(w, static_cast<const void*>(nullptr), base, r0, n, gathered);
    if (w.counted == Counted::some) return moments_of(w, reinterpret_cast<const int8_t*>(w.cells), base, r0, n, gathered);
    if (weights_->single()) return moments_of(w, reinterpret_cast<const float*>(w.cells), base, r0, n, gathered);
    return moments_of(w, reinterpret_cast<const double*>(w.cells), base, r0, n, gathered);
  }

  // Of a channel's values: in runs where they stand, or gathered into one run. A position's weight is 1 where W is void, a mask's
  // where it is int8_t.
  template <class W>
  BN_OUTLINED Moments moments_of(const BlockWeights& block, const W* weights, const T* base, int64_t r0, int64_t n,
                                 bool gathered) const {
    const Walk<T> walk(p_, gathered, r0, n);
    const Source<T> x{p_.x, base};
    const double K = finite_or_zero(to_double(walk(x, block.heaviest)));
    const D16 shift = fill<double>(K), zero = fill<double>(0);
    D16 s1 = zero, s2 = zero;
    walk.each_sixteen({x}, [&](int64_t i, const auto& values) BN_INLINE_LAMBDA {
      D16 d = only(values, minus(values.wide(0), shift)), wd = d;
      if constexpr (std::is_same<W, int8_t>::value) {
        wd = d = keep(d, weights + i);
      } else if constexpr (!std::is_void<W>::value) {
        const D16 weight = load_wide(weights + i);
        d = if_less(zero, weight, d, zero);
        wd = weight * d;
      }
      s1 = s1 + wd;
      s2 = s2 + wd * d;
    });
    return block_moments(block.total, K, fold(s1), fold(s2));
  }

  struct GradValues {
    const T *x, *g, *residual;
  };

  Sums sums_of(Variant variant, int64_t c, GradValues from, int64_t r0, int64_t n, bool gathered) const {
    Sums sums;
    with_variant(variant, [&](auto v) { sums = sums_of<v()>(c, from, r0, n, gathered); });
    return sums;
  }

  template <Variant V> BN_OUTLINED Sums sums_of(int64_t c, GradValues from, int64_t r0, int64_t n, bool gathered) const {
    const Uniform<C> k{table_, c};
    const D16 mean = fill<double>(table_.mean[c]);
    D16 sg = fill<double>(0), sgd = sg;
    const auto add = [&](int64_t, const auto& values) BN_INLINE_LAMBDA {
      D16 before;
      if constexpr (V != Variant::plain) before = wide_grad<V>(k, values);
      BN_EACH(double, j) {
        const D16::V d = minus(values.part(0, j), mean.v[j]);
        D16::V g;
        if constexpr (V == Variant::plain) g = values.part(1, j);
        else g = before.v[j];
        sg.v[j] = plus(values.only(g, j), sg.v[j]);
        sgd.v[j] = sgd.v[j] + values.only(g * d, j);
      }
    };
    const Walk<T> walk(p_, gathered, r0, n);
    const Source<T> x{p_.x, from.x}, g{p_.grad_y, from.g};
    if constexpr (V != Variant::plain) {  // with an activation the derivative needs the residual, too
      if (from.residual) walk.each_sixteen({x, g, {p_.residual, from.residual}}, add);
    }
    if (V == Variant::plain || !from.residual) walk.each_sixteen({x, g}, add);
    return {fold(sg), fold(sgd)};
  }

  // Sixteen gradients before the activation, of x, g and perhaps a residual.
  template <Variant V, class Values> BN_INLINE D16 wide_grad(const Uniform<C>& k, const Values& values) const {
    Lanes<C> r = fill<C>(0);
    if constexpr (Values::kArrays > 2) r = values.narrow(2);
    return to_wide(grad_before_activation<V>(p_, k, 0, values.narrow(0), values.narrow(1), Values::kArrays > 2 ? &r : nullptr));
  }

  // Run by run, and within a run's number channel by channel: in a dense array that is the order of memory.
  void apply_runs(int64_t c0, int64_t c1, int64_t r0, int64_t r1) const {
    const int64_t inner = run_length(p_);
    const Runs<T> first = first_runs(c0);
    with_variant(variant_of(p_, table_.any_wide(c0, c1 - c0)), [&](auto v) {
      for (int64_t outer = (r1 - 1) / inner; outer >= r0 / inner; --outer) {
        const int64_t s0 = outer * inner < r0 ? r0 - outer * inner : 0;
        const int64_t s1 = (outer + 1) * inner > r1 ? r1 - outer * inner : inner;
        each_weighted(outer * inner, s0, s1, [&](int64_t s, int64_t n, const C* w) BN_INLINE_LAMBDA {
          int64_t c = c0;
          const int64_t some = p_.channel_dims == 1 ? c1 - c0 : 1;
          do {
            const Runs<T> runs = runs_at(c == c0 ? first : first_runs(c), outer, s, w);
            apply_to<T, Uniform<C>, v()>(p_, table_, c, c + some, runs, n, streaming_);
          } while ((c += some) < c1);
        });
      }
    });
  }

  // f(s, n, weights) for the parts of a run's positions s0 … s1 - 1, which begins at position r: those whose weights are there
  // together.
  template <class F> BN_INLINE void each_weighted(int64_t r, int64_t s0, int64_t s1, const F& f) const {
    typename Factors<C>::Local local;
    do {
      const int64_t n = factors_ && factors_->most() < s1 - s0 ? factors_->most() : s1 - s0;
      f(s0, n, factors_ ? factors_->at(r + s0, n, local) : nullptr);
      s0 += n;
    } while (s0 < s1);
  }

  // The first runs of channel c.
  Runs<T> first_runs(int64_t c) const {
    const auto at = [&](const Array& a) { return a ? element<T>(p_, a, c) : nullptr; };
    const auto step = [&](const Array& a) { return a ? a.channel[p_.channel_dims - 1] : 0; };
    const Array& out = p_.grad_y ? p_.grad_x : p_.y;
    return {at(p_.x),
            at(p_.grad_y),
            at(p_.residual),
            at(out),
            at(p_.grad_residual),
            {step(p_.x), step(p_.grad_y), step(p_.residual), step(out), step(p_.grad_residual)},
            nullptr,
            1};
  }

  // Those with another number, from position s of each on.
  BN_INLINE Runs<T> runs_at(Runs<T> runs, int64_t outer, int64_t s, const C* weights) const {
    const auto move = [&](auto*& pointer, const Array& a) BN_INLINE_LAMBDA {
      if (pointer != nullptr) pointer += run_offset(p_, a, outer) + s;
    };
    move(runs.x, p_.x), move(runs.g, p_.grad_y), move(runs.residual, p_.residual);
    move(runs.out, p_.grad_y ? p_.grad_x : p_.y), move(runs.grad_residual, p_.grad_residual);
    runs.weights = weights;
    return runs;
  }

  void apply_packed(int64_t c, int64_t r0, int64_t r1) const {
    T x[kBlock], g[kBlock], r[kBlock], out[kBlock], grad_r[kBlock];
    typename Factors<C>::Local local;
    for (int64_t start = r0; start < r1; start += kBlock) {
      const int64_t n = r1 - start < kBlock ? r1 - start : kBlock;
      gather(p_, p_.x, c, start, n, x);
      if (p_.residual) gather(p_, p_.residual, c, start, n, r);
      if (p_.grad_y) gather(p_, p_.grad_y, c, start, n, g);
      const C* w = factors_ ? factors_->at(start, n, local) : nullptr;
      const T* residual = p_.residual ? r : nullptr;
      with_variant(variant_of(p_, table_.wide[c] != 0), [&](auto v) {
        const Runs<T> runs{x, g, residual, out, p_.grad_residual ? grad_r : nullptr, {}, w, 1};
        apply_to<T, Uniform<C>, v()>(p_, table_, c, c + 1, runs, n, false);
      });
      scatter(p_, p_.grad_y ? p_.grad_x : p_.y, c, start, n, out);
      if (p_.grad_residual) scatter(p_, p_.grad_residual, c, start, n, grad_r);
    }
  }

  // Small planes: a sample's channels c0 … c1 - 1 are one run of columns, each with the coefficients of its channel.
  void apply_columns(int64_t c0, int64_t c1) const {
    const int64_t S = run_length(p_), width = (c1 - c0) * S;
    const bool wide = table_.any_wide(c0, c1 - c0);
    Table<C> columns(width);
    for (int64_t c = c0; c < c1; ++c) columns.spread(table_, c, (c - c0) * S, S, wide);
    C spread[kColumns + 2 * kLanes];
    typename Factors<C>::Local local;
    const Runs<T> first = first_runs(c0);
    with_variant(variant_of(p_, wide), [&](auto v) {
      for (int64_t outer = p_.m / S - 1; outer >= 0; --outer) {
        const C* w = factors_ ? factors_->at(outer * S, S, local) : nullptr;
        for (int64_t i = 0; w != nullptr && i < width; i += S) std::copy_n(w, S, spread + i);
        apply_to<T, Columns<C>, v()>(p_, columns, 0, 1, runs_at(first, outer, 0, w ? spread : nullptr), width, streaming_);
      }
    });
  }
};

}  // namespace
}  // namespace BN_ISA
}  // namespace batchnorm
