// Channels side by side in memory: rows of C values. Statistics keep 16 lanes of sums for a panel of channels at hand and take the
// rows in the order of memory; applying is one long run of columns.
#pragma once

#include "elementwise.h"
#include "parallel.h"
#include "weights.h"

namespace batchnorm {
namespace BN_ISA {
namespace {

constexpr int64_t kAhead = 8192;  // bytes between a row and the one asked for: two pages, for the hardware stops at their ends
constexpr int64_t kRun = 512;     // columns that make the start of a run cheap; their coefficients stay in L1
constexpr int64_t kTogether = 4;  // rows of one lane that are added while its sums are in registers
// Channels of a panel. The sums of the most (2 x 16 lanes x 256 doubles = 64 KiB) stay in the second-level cache, where four rows
// at a time seldom need them; whole rows, or long parts of them, are what memory gives fastest. The least keeps all threads busy.
constexpr int64_t kMostPanel = 256, kLeastPanel = 64;

inline bool is_channels_last(const Problem& p) {
  return p.channel_dims == 1 && p.C >= 2 && all_arrays(p, [](const Array& a) { return a.channel[0] == 1; });
}

template <class T> class ChannelsLast {
 public:
  using C = Compute<T>;

  // Without weights, or for the other of the two passes, their argument is null.
  ChannelsLast(const Problem& p, Table<C>& table, const Weights* weights, const Factors<C>* factors)
      : p_(p), table_(table), weights_(weights), factors_(factors), repeat_(repeats(p)), repeated_(p.C * repeat_) {
    streaming_ = goes_past_cache<T>(p);
    panel_ = kMostPanel;
    while (panel_ > kLeastPanel && !is_shared_evenly(blocks_of(p) * panels())) panel_ /= 2;
    panel_ = ((p.C + panels() - 1) / panels() + 15) / 16 * 16;
  }

  int64_t panels() const { return (p_.C + panel_ - 1) / panel_; }

  // Block b of the panel's channels; out has one value for each of all.
  void moments_block(int64_t b, int64_t panel, Moments* out) const {
    const int64_t r0 = b * kBlock, n = p_.m - r0 < kBlock ? p_.m - r0 : kBlock;
    BlockWeights block{Counted::all, static_cast<double>(n), 0, nullptr};
    Weights::Local local;
    if (weights_) block = weights_->block(b, local);
    alignas(64) double K[kMostPanel] = {};
    const int64_t c0 = panel * panel_, width = panel_width(c0);
    const T* first = at(p_.x, r0 + block.heaviest) + c0;
    for (int64_t i = 0; i < width; ++i) K[i] = finite_or_zero(to_double(first[i]));
    const auto finish = [&](int64_t i, double s1, double s2) { out[c0 + i] = block_moments(block.total, K[i], s1, s2); };
    const auto row = [](int64_t i, const T* x) BN_INLINE_LAMBDA { return x + i; };
    const auto add = [&](double, const T* x, int64_t i, int j, D16::V& s1, D16::V& s2) BN_INLINE_LAMBDA {
      const D16::V d = minus(wide_part(x, j), wide_part(K + i, j));
      s1 = s1 + d, s2 = s2 + d * d;
    };
    const auto add_weighted = [&](double w, const T* x, int64_t i, int j, D16::V& s1, D16::V& s2) BN_INLINE_LAMBDA {
      const D16::V d = minus(wide_part(x, j), wide_part(K + i, j)), wd = fill<double>(w).v[0] * d;
      s1 = s1 + wd, s2 = s2 + wd * d;
    };
    switch (block.counted) {
      case Counted::none: std::fill_n(out + c0, width, Moments{}); return;
      case Counted::all: return reduce(r0, n, c0, finish, [](int64_t) { return 1.0; }, row, add, p_.x);
      default: return reduce(r0, n, c0, finish, [&](int64_t r) { return weights_->of(block, r); }, row, add_weighted, p_.x);
    }
  }

  void sums_block(int64_t b, int64_t panel, Sums* out) const {
    const int64_t r0 = b * kBlock, n = p_.m - r0 < kBlock ? p_.m - r0 : kBlock;
    const int64_t c0 = panel * panel_;
    const Columns<C> k{table_, c0};
    const auto finish = [&](int64_t i, double sg, double sgd) { out[c0 + i] = {sg, sgd}; };
    with_variant(variant_of(p_, table_.any_wide(c0, panel_width(c0))), [&](auto v) {
      const auto all = [](int64_t) { return 1.0; };
      const auto row = [&](int64_t i, const T* x, const T* g, auto... residual)
                           BN_INLINE_LAMBDA { return Gradients<v()>(*this, k, i, x + i, g + i, (residual + i)...); };
      const auto add = [&](double, const auto& grads, int64_t i, int j, D16::V& sg, D16::V& sgd) BN_INLINE_LAMBDA {
        const D16::V before = grads.part(j);
        sg = sg + before;
        sgd = sgd + before * minus(wide_part(grads.x, j), wide_part(k.mean + i, j));
      };
      if constexpr (v() != Variant::plain) {
        if (p_.residual && p_.activation != Activation::none)
          return reduce(r0, n, c0, finish, all, row, add, p_.x, p_.grad_y, p_.residual);
      }
      reduce(r0, n, c0, finish, all, row, add, p_.x, p_.grad_y);
    });
  }

  // The columns' coefficients, repeated so that short rows make long runs. Call when the table is complete.
  void prepare_apply() {
    wide_ = table_.any_wide(0, p_.C);
    for (int64_t i = 0; i < repeat_; ++i) repeated_.copy(table_, p_.C, i * p_.C, wide_);
  }

  // Rows of one task of the second pass: about 64 KiB, a multiple of what one run takes.
  int64_t task_rows() const {
    const int64_t rows = (int64_t(65536) / static_cast<int64_t>(sizeof(T)) / p_.C + repeat_ - 1) / repeat_ * repeat_;
    return rows > repeat_ ? rows : repeat_;
  }

  void apply(int64_t r0, int64_t r1) const {
    if (factors_ == nullptr) {
      apply_rows(r0, r1, nullptr);
    } else {
      typename Factors<C>::Local local;
      const int64_t most = kBlock / repeat_ * repeat_;
      for (int64_t r = r0, n; r < r1; r += n) {
        n = r1 - r < most ? r1 - r : most;
        apply_rows(r, r + n, factors_->at(r, n, local));
      }
    }
    if (streaming_) fence();
  }

 private:
  const Problem& p_;
  Table<C>& table_;
  const Weights* weights_;
  const Factors<C>* factors_;
  int64_t repeat_;
  Table<C> repeated_;
  int64_t panel_;
  bool streaming_, wide_ = false;

  // With a weight for each row, or null.
  void apply_rows(int64_t r0, int64_t r1, const C* weights) const {
    C spread[2 * kRun + kLanes];
    with_variant(variant_of(p_, wide_), [&](auto v) {
      for (int64_t r = r0; r < r1; r += repeat_) {
        const int64_t rows = r1 - r < repeat_ ? r1 - r : repeat_;
        ask_ahead(p_.x, r, rows), ask_ahead(p_.grad_y, r, rows), ask_ahead(p_.residual, r, rows);
        const C* w = weights ? weights + (r - r0) : nullptr;
        const bool several = w != nullptr && repeat_ > 1;
        for (int64_t i = 0; several && i < rows; ++i) {  // whole vectors: the next row comes over what is too much
          const Lanes<C> lanes = fill<C>(w[i]);
          for (int64_t j = 0; j < p_.C; j += 16) store(spread + i * p_.C + j, lanes);
        }
        const Runs<T> runs{
            at(p_.x, r), at(p_.grad_y, r),     at(p_.residual, r), at(p_.grad_y ? p_.grad_x : p_.y, r), at(p_.grad_residual, r),
            {},          several ? spread : w, several ? 1 : 0};
        apply_to<T, Columns<C>, v()>(p_, repeated_, 0, 1, runs, rows * p_.C, streaming_);
      }
    });
  }

  // Rows that stand one after another in every array can be taken several at a time.
  static int64_t repeats(const Problem& p) {
    const bool dense = p.reduced_dims == 1 && all_arrays(p, [&](const Array& a) { return a.reduced[0] == p.C; });
    const int64_t rows = dense ? (kRun + p.C - 1) / p.C : 1;
    return rows < p.m ? rows : p.m;
  }

  // Of the panel that begins with channel c0.
  int64_t panel_width(int64_t c0) const { return p_.C - c0 < panel_ ? p_.C - c0 : panel_; }

  // Whether no thread waits long for the others: tasks are many, or as long as each other and as many for each.
  bool is_shared_evenly(int64_t tasks) const {
    return tasks >= 4 * p_.threads || (p_.m % kBlock == 0 && p_.C % panel_ == 0 && tasks % p_.threads == 0);
  }

  // Row r of an array; null where there is none.
  T* at(const Array& a, int64_t r) const {
    if (!a) return nullptr;
    if (p_.reduced_dims == 1) return reinterpret_cast<T*>(a.data) + r * a.reduced[0];
    const int64_t inner = run_length(p_), outer = r / inner;
    return reinterpret_cast<T*>(a.data) + run_offset(p_, a, outer) + (r - outer * inner) * run_step(p_, a);
  }

  // The rows kAhead bytes after those at r.
  void ask_ahead(const Array& a, int64_t r, int64_t rows) const {
    if (a) prefetch(at(a, r) + kAhead / static_cast<int64_t>(sizeof(T)), rows * p_.C * static_cast<int64_t>(sizeof(T)));
  }

  // Sixteen gradients before the activation; without one they are read where they are used.
  template <Variant V> struct Gradients {
    const T *x, *g;
    D16 before;

    BN_INLINE Gradients() {}
    BN_INLINE Gradients(const ChannelsLast& owner, const Columns<C>& k, int64_t i, const T* xs, const T* gs,
                        const T* residual = nullptr)
        : x(xs), g(gs) {
      if constexpr (V == Variant::plain) return;
      const Lanes<C> r = residual ? load(residual) : fill<C>(0);
      before = to_wide(grad_before_activation<V>(owner.p_, k, i, load(x), load(g), residual ? &r : nullptr));
    }
    BN_INLINE D16::V part(int j) const {
      if constexpr (V == Variant::plain) return wide_part(g, j);
      return before.v[j];
    }
  };

  // A panel's part of an array's rows, asked for ahead of their use. They are read by whole vectors, which at the end of the array
  // may not be there: such a row is copied.
  template <int64_t n> using Count = std::integral_constant<int64_t, n>;

  struct SameLane {
    const T* first;
    int64_t apart;

    BN_INLINE const T* operator[](int64_t k) const { return first + k * apart; }
  };

  struct Rows {
    const T* next;
    int64_t step, width, ahead;
    const char* end;
    T* spare;

    // Whether n rows can be read by whole vectors where they are.
    BN_INLINE bool whole(int64_t n) const {
      const T* last = step > 0 ? next + (n - 1) * step : next;
      return reinterpret_cast<const char*>(last + (width + 15) / 16 * 16) <= end;
    }

    // Of the next rows, those of one lane.
    BN_INLINE SameLane take_lane(int64_t lane) const {
      const SameLane rows{next + lane * step, kLanes * step};
      for (int64_t k = 0; k < kTogether; ++k) prefetch(rows[k] + ahead, width * sizeof(T));
      return rows;
    }

    BN_INLINE SameLane take() {
      const T* row = next;
      next += step;
      prefetch(row + ahead, width * sizeof(T));
      if (__builtin_expect(reinterpret_cast<const char*>(row + (width + 15) / 16 * 16) <= end, 1)) return {row, 0};
      std::memcpy(spare, row, width * sizeof(T));
      return {spare, 0};
    }
  };

  // `row(i, rows...)` has what channels i … i + 15 of a row are; add(weight, row, i, j, s1, s2) adds vector j of these to sums of
  // the row's lane; finish(i, s1, s2) has channel i's.
  template <class G, class W, class R, class F, class... Arrays>
  BN_INLINE void reduce(int64_t r0, int64_t n, int64_t c0, const G& finish, const W& weight, const R& row, const F& add,
                        const Arrays&... arrays) const {
    alignas(64) double sums[2 * kLanes * kMostPanel];
    alignas(64) T spare[sizeof...(arrays)][kMostPanel] = {};
    const int64_t width = panel_width(c0), padded = (width + 15) / 16 * 16;
    double *const a = sums, *const b = sums + kLanes * padded;  // those of a lane begin at lane * padded
    std::fill_n(sums, 2 * kLanes * padded, 0.0);
    // Rows r, r + 16, …, as many as `of` has.
    const auto add_lane = [&](int64_t r, auto of, auto... rows) BN_INLINE_LAMBDA {
      double *s1 = a + r % kLanes * padded, *s2 = b + r % kLanes * padded, w[of];
      for (int64_t k = 0; k < of; ++k) w[k] = weight(r + k * kLanes);
      for (int64_t i = 0; i < padded; i += 16) {
        decltype(row(i, rows[0]...)) parts[of];
        for (int64_t k = 0; k < of; ++k) parts[k] = row(i, rows[k]...);
        BN_EACH(double, j) {  // vector by vector: what is live at once fits the registers
          D16::V sum1 = wide_part(s1 + i, j), sum2 = wide_part(s2 + i, j);
          for (int64_t k = 0; k < of; ++k) {
            if (w[k] > 0) add(w[k], parts[k], i, j, sum1, sum2);
          }
          store_part(s1 + i, j, sum1), store_part(s2 + i, j, sum2);
        }
      }
    };
    const auto add_rows = [&](int64_t r, int64_t end, auto... rows) BN_INLINE_LAMBDA {
      for (constexpr int64_t n = kTogether * kLanes; end - r >= n && (rows.whole(n) && ...);
           r += n, ((rows.next += n * rows.step), ...)) {
        for (int64_t lane = 0; lane < kLanes; ++lane) add_lane(r + lane, Count<kTogether>(), rows.take_lane(lane)...);
      }
      for (; r < end; ++r) add_lane(r, Count<1>(), rows.take()...);
    };
    each_segment(p_, r0, n, [&](int64_t, int64_t, int64_t done, int64_t length) {
      int64_t which = 0;
      const auto rows = [&](const Array& array) {
        const int64_t step = run_step(p_, array), ahead = kAhead / (width * static_cast<int64_t>(sizeof(T))) * step;
        return Rows{at(array, r0 + done) + c0, step, width, ahead, array.end, spare[which++]};
      };
      add_rows(done, done + length, rows(arrays)...);
    });
    for (int64_t half = kLanes / 2 * padded; half >= padded; half /= 2) {
      for (int64_t i = 0; i < half; i += 16) {
        store(a + i, load(a + i) + load(a + half + i));
        store(b + i, load(b + i) + load(b + half + i));
      }
    }
    for (int64_t i = 0; i < width; ++i) finish(i, a[i], b[i]);
  }
};

}  // namespace
}  // namespace BN_ISA
}  // namespace batchnorm
