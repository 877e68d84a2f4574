// Channels side by side in memory: rows of C values. Statistics keep 16 lanes x 16 channels of sums in L1 and visit the rows of one
// lane together; applying is one long run of columns.
#pragma once

#include "elementwise.h"
#include "parallel.h"
#include "positions.h"

namespace batchnorm {
namespace BN_ISA {
namespace {

constexpr int64_t kPanel = 64;  // channels whose sums (2 x 16 lanes x 64 doubles = 16 KiB) stay in L1
constexpr int64_t kTile = 64;   // rows visited lane by lane: four for each lane

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
    double K[kPanel];
    int64_t offset;
    row_offsets(p_.x, r0 + heaviest(weights, n), 1, &offset);
    const int64_t width = p_.C - panel * kPanel < kPanel ? p_.C - panel * kPanel : kPanel;
    const T* first = reinterpret_cast<const T*>(p_.x.data) + offset + panel * kPanel;
    for (int64_t i = 0; i < kPanel; ++i) K[i] = i < width ? finite_or_zero(to_double(first[i])) : 0.0;
    const auto contribute = [&](const int64_t* rows, const int64_t*, const int64_t*, int64_t r, int64_t i, D16& s1, D16& s2)
                                BN_INLINE_LAMBDA {
                                  if (weights && !(weights[r] > 0)) return;
                                  const D16 d = to_wide(load_row(p_.x, rows, i, width, panel)) - load(K + i);
                                  if (weights) {
                                    const D16 wd = fill<double>(weights[r]) * d;
                                    s1 = s1 + wd, s2 = s2 + wd * d;
                                  } else {
                                    s1 = s1 + d, s2 = s2 + d * d;
                                  }
                                };
    reduce(r0, n, width, contribute, [&](int64_t i, double s1, double s2) { out[i] = block_moments(count, K[i], s1, s2); });
  }

  void sums_block(int64_t b, int64_t panel, Sums* out) const {
    const int64_t r0 = b * kBlock, n = p_.m - r0 < kBlock ? p_.m - r0 : kBlock;
    const int64_t width = p_.C - panel * kPanel < kPanel ? p_.C - panel * kPanel : kPanel;
    const Columns<C> k{table_, panel * kPanel};
    with_variant(variant_of(p_, table_.any_wide(panel * kPanel, width)), [&](auto v) {
      const auto contribute = [&](const int64_t* x_rows, const int64_t* g_rows, const int64_t* r_rows, int64_t, int64_t i, D16& sg,
                                  D16& sgd) BN_INLINE_LAMBDA {
        const Lanes<C> x = load_row(p_.x, x_rows, i, width, panel), g = load_row(p_.grad_y, g_rows, i, width, panel);
        Lanes<C> r = fill<C>(0);
        if (p_.residual && v() != Variant::plain) r = load_row(p_.residual, r_rows, i, width, panel);
        const D16 before = to_wide(grad_before_activation<v()>(p_, k, i, x, g, p_.residual ? &r : nullptr));
        sg = sg + before;
        sgd = sgd + before * (to_wide(x) - k.widened(k.mean, i));
      };
      reduce(r0, n, width, contribute, [&](int64_t i, double sg, double sgd) { out[i] = {sg, sgd}; });
    });
  }

  // The period of the columns' coefficients, repeated so that short rows make long runs. Call when the table is complete.
  void prepare_apply() {
    wide_ = table_.any_wide(0, p_.C);
    for (int64_t i = 0; i < repeat_; ++i) {
      for (int64_t c = 0; c < p_.C; ++c) repeated_.spread(table_, c, i * p_.C + c, 1, wide_);
    }
  }

  // Rows of one task of the second pass: about 64 KiB, a multiple of what one run takes.
  int64_t task_rows() const {
    const int64_t rows = (int64_t(65536) / static_cast<int64_t>(sizeof(T)) / p_.C + repeat_ - 1) / repeat_ * repeat_;
    return rows > repeat_ ? rows : repeat_;
  }

  void apply(int64_t r0, int64_t r1) const {
    const bool backward = static_cast<bool>(p_.grad_y);
    const Columns<C> k{repeated_, 0};
    with_variant(variant_of(p_, wide_), [&](auto v) {
      for (int64_t r = r0; r < r1; r += repeat_) {
        const int64_t rows = r1 - r < repeat_ ? r1 - r : repeat_;
        const auto at = [&](const Array& a) -> T* {
          int64_t offset = 0;
          if (a) row_offsets(a, r, 1, &offset);
          return a ? reinterpret_cast<T*>(a.data) + offset : nullptr;
        };
        if (backward) {
          C w = 1;
          if (p_.weights) gather_weights(p_, r, 1, &w, weights_scale(p_));
          backward_run<T, Columns<C>, v()>(
              p_, k, {at(p_.x), at(p_.grad_y), at(p_.residual), at(p_.grad_x), at(p_.grad_residual), p_.weights ? &w : nullptr, 0},
              rows * p_.C, streaming_);
        } else {
          forward_run<T, Columns<C>, v()>(p_, k, {at(p_.x), at(p_.residual), at(p_.y)}, rows * p_.C, streaming_);
        }
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
    if (!dense || p.C >= 512) return 1;
    const int64_t rows = (512 + p.C - 1) / p.C;
    const int64_t whole = (rows + 15) / 16 * 16;  // any C: 16 rows are whole vectors
    return rows * p.C % 16 == 0 ? rows : (whole < p.m ? whole : p.m);
  }

  void row_offsets(const Array& a, int64_t r0, int64_t n, int64_t* to) const {
    const int64_t step = run_step(p_, a);
    if (p_.reduced_dims == 1) {
      for (int64_t i = 0; i < n; ++i) to[i] = (r0 + i) * step;
      return;
    }
    each_segment(p_, r0, n, [&](int64_t outer, int64_t s, int64_t done, int64_t length) {
      const int64_t base = run_offset(p_, a, outer) + s * step;
      for (int64_t i = 0; i < length; ++i) to[done + i] = base + i * step;
    });
  }

  // Sixteen channels of a row. Past the panel's width stand other channels, or the next row: their sums are never used.
  BN_INLINE Lanes<C> load_row(const Array& a, const int64_t* row, int64_t i, int64_t width, int64_t panel) const {
    const T* p = reinterpret_cast<const T*>(a.data) + *row + panel * kPanel + i;
    // Lanes are visited out of memory order, which defeats the hardware's prefetch: ask for the same place of the next tile.
    __builtin_prefetch(p + kTile * a.reduced[p_.reduced_dims - 1]);
    if (__builtin_expect(reinterpret_cast<const char*>(p + 16) <= a.end, 1)) return load(p);
    return load_some(p, width - i < 16 ? width - i : 16);
  }

  template <class F, class G>
  BN_INLINE void reduce(int64_t r0, int64_t n, int64_t width, const F& contribute, const G& finish) const {
    alignas(64) double a[kPanel / 16][kLanes][16], b[kPanel / 16][kLanes][16];
    const int64_t vectors = (width + 15) / 16;
    std::memset(a, 0, static_cast<size_t>(vectors) * sizeof a[0]);
    std::memset(b, 0, static_cast<size_t>(vectors) * sizeof b[0]);
    int64_t x_rows[kTile], g_rows[kTile], r_rows[kTile];
    for (int64_t t = 0; t < n; t += kTile) {
      const int64_t rows = n - t < kTile ? n - t : kTile;
      row_offsets(p_.x, r0 + t, rows, x_rows);
      if (p_.grad_y) row_offsets(p_.grad_y, r0 + t, rows, g_rows);
      if (p_.grad_y && p_.residual) row_offsets(p_.residual, r0 + t, rows, r_rows);
      for (int64_t v = 0; v < vectors; ++v) {
        for (int64_t lane = 0; lane < kLanes && lane < rows; ++lane) {
          D16 s1 = load(a[v][lane]), s2 = load(b[v][lane]);
          for (int64_t r = lane; r < rows; r += kLanes) { contribute(x_rows + r, g_rows + r, r_rows + r, t + r, v * 16, s1, s2); }
          store(a[v][lane], s1), store(b[v][lane], s2);
        }
      }
    }
    for (int64_t v = 0; v < vectors; ++v) {
      for (int half = 8; half > 0; half /= 2) {
        for (int lane = 0; lane < half; ++lane) {
          store(a[v][lane], load(a[v][lane]) + load(a[v][lane + half]));
          store(b[v][lane], load(b[v][lane]) + load(b[v][lane + half]));
        }
      }
      for (int64_t i = v * 16; i < width && i < v * 16 + 16; ++i) finish(i, a[v][0][i % 16], b[v][0][i % 16]);
    }
  }
};

}  // namespace
}  // namespace BN_ISA
}  // namespace batchnorm
