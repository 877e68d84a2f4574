// Channels side by side in memory: rows of C values. Statistics keep 16 lanes of sums for a panel of channels in L1 and take the
// rows in the order of memory; applying is one long run of columns.
#pragma once

#include "elementwise.h"
#include "parallel.h"
#include "positions.h"

namespace batchnorm {
namespace BN_ISA {
namespace {

constexpr int64_t kAhead = 8192;  // bytes between a row and the one asked for: two pages, for the hardware stops at their ends
constexpr int64_t kRun = 512;     // columns that make the start of a run cheap; their coefficients stay in L1
constexpr int64_t kPanel = 64;    // channels whose sums (2 x 16 lanes x 64 doubles = 16 KiB) stay in L1 beside the rows

inline bool is_channels_last(const Problem& p) {
  return p.channel_dims == 1 && p.C >= 2 && all_arrays(p, [](const Array& a) { return a.channel[0] == 1; });
}

template <class T> class ChannelsLast {
 public:
  using C = Compute<T>;

  ChannelsLast(const Problem& p, Table<C>& table) : p_(p), table_(table), repeat_(repeats(p)), repeated_(p.C * repeat_) {
    streaming_ = goes_past_cache<T>(p);
  }

  int64_t panels() const { return (p_.C + kPanel - 1) / kPanel; }

  // Block b of channels panel * kPanel …; out has one value for each of them.
  void moments_block(int64_t b, int64_t panel, Moments* out) const {
    const int64_t r0 = b * kBlock, n = p_.m - r0 < kBlock ? p_.m - r0 : kBlock;
    double w[kBlock + 16];
    const double* weights = nullptr;
    double count = static_cast<double>(n);
    if (p_.weights) {
      gather_weights(p_, r0, n, w);
      for (int64_t i = n; i < (n + 15) / 16 * 16; ++i) w[i] = 0;
      weights = w, count = sum_weights(w, n);
    }
    alignas(64) double K[kPanel] = {};
    const int64_t width = panel_width(panel);
    const T* first = at(p_.x, r0 + heaviest(weights, n)) + panel * kPanel;
    for (int64_t i = 0; i < width; ++i) K[i] = finite_or_zero(to_double(first[i]));
    const auto finish = [&](int64_t i, double s1, double s2) { out[i] = block_moments(count, K[i], s1, s2); };
    if (weights) {
      const auto add = [&](int64_t r, int64_t i, D16& s1, D16& s2, const T* x) BN_INLINE_LAMBDA {
        if (!(weights[r] > 0)) return;
        const D16 d = load_wide(x + i) - load(K + i), wd = fill<double>(weights[r]) * d;
        s1 = s1 + wd, s2 = s2 + wd * d;
      };
      return reduce(r0, n, panel, finish, add, p_.x);
    }
    const auto add = [&](int64_t, int64_t i, D16& s1, D16& s2, const T* x) BN_INLINE_LAMBDA {
      const D16 d = load_wide(x + i) - load(K + i);
      s1 = s1 + d, s2 = s2 + d * d;
    };
    reduce(r0, n, panel, finish, add, p_.x);
  }

  void sums_block(int64_t b, int64_t panel, Sums* out) const {
    const int64_t r0 = b * kBlock, n = p_.m - r0 < kBlock ? p_.m - r0 : kBlock;
    const Columns<C> k{table_, panel * kPanel};
    const auto finish = [&](int64_t i, double sg, double sgd) { out[i] = {sg, sgd}; };
    with_variant(variant_of(p_, table_.any_wide(panel * kPanel, panel_width(panel))), [&](auto v) {
      const auto add = [&](int64_t, int64_t i, D16& sg, D16& sgd, const T* x, const T* g, auto... residual) BN_INLINE_LAMBDA {
        const D16 before = wide_grad<v()>(k, i, x + i, g + i, (residual + i)...);
        sg = sg + before;
        sgd = sgd + before * (load_wide(x + i) - k.widened(k.mean, i));
      };
      if (p_.residual && p_.activation != Activation::none) reduce(r0, n, panel, finish, add, p_.x, p_.grad_y, p_.residual);
      else reduce(r0, n, panel, finish, add, p_.x, p_.grad_y);
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
    with_variant(variant_of(p_, wide_), [&](auto v) {
      for (int64_t r = r0; r < r1; r += repeat_) {
        const int64_t rows = r1 - r < repeat_ ? r1 - r : repeat_;
        ask_ahead(p_.x, r, rows), ask_ahead(p_.grad_y, r, rows), ask_ahead(p_.residual, r, rows);
        C w = 1;
        const bool weighted = p_.grad_y && p_.weights;
        if (weighted) gather_weights(p_, r, 1, &w, weights_scale(p_));
        const Runs<T> runs{at(p_.x, r),
                           at(p_.grad_y, r),
                           at(p_.residual, r),
                           at(p_.grad_y ? p_.grad_x : p_.y, r),
                           at(p_.grad_residual, r),
                           {},
                           weighted ? &w : nullptr,
                           0};
        apply_to<T, Columns<C>, v()>(p_, repeated_, 0, 1, runs, rows * p_.C, streaming_);
      }
    });
    if (streaming_) fence();
  }

 private:
  const Problem& p_;
  Table<C>& table_;
  int64_t repeat_;
  Table<C> repeated_;
  bool streaming_, wide_ = false;

  // Rows that stand one after another in every array can be taken several at a time.
  static int64_t repeats(const Problem& p) {
    const bool dense =
        p.reduced_dims == 1 && !(p.grad_y && p.weights) && all_arrays(p, [&](const Array& a) { return a.reduced[0] == p.C; });
    const int64_t rows = dense ? (kRun + p.C - 1) / p.C : 1;
    return rows < p.m ? rows : p.m;
  }

  int64_t panel_width(int64_t panel) const { return p_.C - panel * kPanel < kPanel ? p_.C - panel * kPanel : kPanel; }

  // Row r of an array; null where there is none.
  T* at(const Array& a, int64_t r) const {
    if (!a) return nullptr;
    const int64_t inner = run_length(p_), outer = r / inner;
    return reinterpret_cast<T*>(a.data) + run_offset(p_, a, outer) + (r - outer * inner) * run_step(p_, a);
  }

  // The rows kAhead bytes after those at r.
  void ask_ahead(const Array& a, int64_t r, int64_t rows) const {
    if (a) prefetch(at(a, r) + kAhead / static_cast<int64_t>(sizeof(T)), rows * p_.C * static_cast<int64_t>(sizeof(T)));
  }

  // Sixteen gradients before the activation.
  template <Variant V, class K>
  BN_INLINE D16 wide_grad(const K& k, int64_t i, const T* x, const T* g, const T* residual = nullptr) const {
    if constexpr (V == Variant::plain) return load_wide(g);
    const Lanes<C> r = residual ? load(residual) : fill<C>(0);
    return to_wide(grad_before_activation<V>(p_, k, i, load(x), load(g), residual ? &r : nullptr));
  }

  // A panel's part of an array's rows, asked for ahead of their use. They are read by whole vectors, which at the end of the array
  // may not be there: such a row is copied.
  struct Rows {
    const T* next;
    int64_t step, width, ahead;
    const char* end;
    T* spare;

    BN_INLINE const T* take() {
      const T* row = next;
      next += step;
      prefetch(row + ahead, width * sizeof(T));
      if (__builtin_expect(reinterpret_cast<const char*>(row + (width + 15) / 16 * 16) <= end, 1)) return row;
      std::memcpy(spare, row, width * sizeof(T));
      return spare;
    }
  };

  // add(r, i, s1, s2, rows...) adds channels i … i + 15 of row r to the sums of the row's lane; finish(i, s1, s2) has channel i's.
  template <class G, class F, class... Arrays>
  BN_INLINE void reduce(int64_t r0, int64_t n, int64_t panel, const G& finish, const F& add, const Arrays&... arrays) const {
    alignas(64) double a[kLanes][kPanel], b[kLanes][kPanel];
    alignas(64) T spare[sizeof...(arrays)][kPanel] = {};
    const int64_t width = panel_width(panel), padded = (width + 15) / 16 * 16;
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      for (int64_t i = 0; i < padded; i += 16) store(a[lane] + i, fill<double>(0)), store(b[lane] + i, fill<double>(0));
    }
    const auto add_row = [&](int64_t r, auto... rows) BN_INLINE_LAMBDA {
      double *s1 = a[r % kLanes], *s2 = b[r % kLanes];
      for (int64_t i = 0; i < padded; i += 16) {
        D16 sum1 = load(s1 + i), sum2 = load(s2 + i);
        add(r, i, sum1, sum2, rows...);
        store(s1 + i, sum1), store(s2 + i, sum2);
      }
    };
    const auto add_rows = [&](int64_t r, int64_t end, auto... rows) BN_INLINE_LAMBDA {
      for (; r < end; ++r) add_row(r, rows.take()...);
    };
    each_segment(p_, r0, n, [&](int64_t, int64_t, int64_t done, int64_t length) {
      int64_t which = 0;
      const auto rows = [&](const Array& array) {
        const int64_t step = run_step(p_, array), ahead = kAhead / (width * static_cast<int64_t>(sizeof(T))) * step;
        return Rows{at(array, r0 + done) + panel * kPanel, step, width, ahead, array.end, spare[which++]};
      };
      add_rows(done, done + length, rows(arrays)...);
    });
    for (int half = kLanes / 2; half > 0; half /= 2) {
      for (int lane = 0; lane < half; ++lane) {
        for (int64_t i = 0; i < padded; i += 16) {
          store(a[lane] + i, load(a[lane] + i) + load(a[lane + half] + i));
          store(b[lane] + i, load(b[lane] + i) + load(b[lane + half] + i));
        }
      }
    }
    for (int64_t i = 0; i < width; ++i) finish(i, a[0][i], b[0][i]);
  }
};

}  // namespace
}  // namespace BN_ISA
}  // namespace batchnorm
