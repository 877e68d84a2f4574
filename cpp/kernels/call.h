// What the parts of one call share: the problem, the leaves for it, and each channel's coefficients.
#pragma once

#include <algorithm>
#include <cstring>

#include "core/coefficients.h"
#include "kernels/layout.h"
#include "kernels/leaves.h"
#include "kernels/weights.h"
#include "runtime/parallel.h"

namespace batchnorm {

constexpr int64_t kSmallProblem = 16384;            // elements; below, handing work to a thread costs more than it does
constexpr int64_t kStreamFrom = int64_t(16) << 20;  // bytes of output; below, the last-level cache holds it
constexpr int64_t kStreamRun = 2048;  // bytes of a run; in shorter ones its ends, which are not whole lines, cost more
constexpr int64_t kMostSamples = 64;
constexpr int64_t kTaskBytes = int64_t(128) << 10;  // of an array, in one task of the second pass

// Coefficients as leaves take them: in the compute type, a value for each of n channels or columns, and 16 more.
class Table {
 public:
  Table(int64_t n, int64_t size) : size_(size), stride_((n + kLanes) * size), memory_(kRows * stride_) {}

  void put(int64_t i, const Coefficients& k) {
    if (size_ == 4) put_as<float>(i, k);
    else put_as<double>(i, k);
  }
  // Coefficients of channels from c on, each `times` times, for one run of columns.
  void spread(const Table& from, int64_t c, int64_t channels, int64_t times) {
    for (int row = 0; row < kRows; ++row) {
      if (size_ == 4) spread_row<float>(from, row, c, channels, times);
      else spread_row<double>(from, row, c, channels, times);
    }
  }
  // The first n values of a table, over and over, for a period of columns and 16 more.
  void repeat(const Table& of, int64_t n, int64_t period) {
    for (int row = 0; row < kRows; ++row)
      for (int64_t i = 0, end = period + kLanes; i < end; i += n)
        std::memcpy(memory_ + row * stride_ + i * size_, of.memory_ + row * of.stride_,
                    static_cast<size_t>(std::min(n, end - i) * size_));
  }
  Coefs at(int64_t i) const {
    const char* first = memory_ + i * size_;
    return {first, first + stride_, first + 2 * stride_, first + 3 * stride_, first + 4 * stride_};
  }

 private:
  static constexpr int kRows = 5;
  int64_t size_, stride_;
  Scratch<char> memory_;

  template <class C> C* row(int row) const { return reinterpret_cast<C*>(memory_ + row * stride_); }
  template <class C> void put_as(int64_t i, const Coefficients& k) {
    const double values[kRows] = {k.center, k.scale, k.shift, k.k1, k.k0};
    for (int r = 0; r < kRows; ++r) row<C>(r)[i] = static_cast<C>(values[r]);
  }
  template <class C> void spread_row(const Table& from, int r, int64_t c, int64_t channels, int64_t times) {
    const C* values = from.row<C>(r) + c;
    for (int64_t i = 0; i < channels; ++i) std::fill_n(row<C>(r) + i * times, times, values[i]);
  }
};

// Where the values stand that a block's shift is the mean of, from a channel's first element on.
struct Sample {
  int64_t n = 0, offsets[kLanes] = {};
};

struct Call {
  const Problem& p;      // in the dimensions of the data
  const Problem& given;  // in those of the weights, too
  const Isa& isa;
  const Leaves &data, &compute, &wide;  // of the data's type, of the compute type, of double
  const Weights* weights = nullptr;     // of the statistics
  int threads;
  const bool backward, reduces, applies, past_cache;
  Scratch<Sample> samples;  // of the first blocks, the same for all channels
  int64_t sampled = 0;
  Scratch<Coefficients> coefs;
  Table table;
  const char* factors = nullptr;  // of positions, where a backward has weights

  Call(const Problem& problem, const Problem& given, const Isa& isa, bool backward)
      : p(problem),
        given(given),
        isa(isa),
        data(*isa.leaves[static_cast<int>(p.dtype)]),
        compute(*isa.leaves[static_cast<int>(p.dtype == DType::f64 ? DType::f64 : DType::f32)]),
        wide(*isa.leaves[static_cast<int>(DType::f64)]),
        threads(p.m * p.C < kSmallProblem ? 1 : p.threads),
        backward(backward),
        reduces(backward ? p.compute_sums : p.compute_stats),
        applies(static_cast<bool>(backward ? p.grad_x : p.y)),
        past_cache(p.m * p.C * data.size >= kStreamFrom),
        samples(std::min(kMostSamples, blocks_of(p))),
        coefs(p.C),
        table(p.C, data.compute) {}

  // A channel, before its sums are known, and after. Backward: the sums take coefficients of the forward.
  void prepare(int64_t c) {
    if (backward) take(c, [&](Coefficients& k) { forward_coefficients(p, c, k); });
  }
  void finish(int64_t c, const Moments& m) {
    if (reduces) p.stats.count[c] = m.count, p.stats.mean[c] = m.mean, p.stats.mean_low[c] = m.mean_low, p.stats.m2[c] = m.m2;
    if (applies) take(c, [&](Coefficients& k) { forward_coefficients(p, c, k); });
  }
  void finish(int64_t c, const Sums& s) {
    backward_coefficients(p, c, s, coefs[c]);
    table.put(c, applied(c));
  }

  // What elements are multiplied with and moved by. Of a frozen backward without activation that is g * scale, whatever x is.
  Coefficients applied(int64_t c) const {
    Coefficients k = coefs[c];
    if (backward && !p.training && p.activation == Activation::none) k.center = 0, k.shift = -0.0;
    return k;
  }

  // Whether elements go through leaves where they are: a forward, a gradient before an activation, and a backward of no more than a
  // clip of x.
  bool is_simple() const {
    if (p.only_activation) return !p.residual_is_y;
    return !backward || (is_clip(p.activation) && !(p.grad_residual || (p.residual && p.activation != Activation::none)));
  }

  // here(array), step(array): where runs begin, at position r0, and how far they are apart.
  template <class Here, class Step> Runs runs(const Here& here, const Step& step, int64_t r0, int64_t count, int64_t length) const {
    const Array none, &out = backward ? p.grad_x : p.y, &residual = backward && !p.only_activation ? none : p.residual;
    const auto from = [&](const Array& a) -> char* { return a ? here(a) : nullptr; };
    Runs r{from(out), from(p.x), from(p.grad_y), from(residual), count, length,
           step(out), step(p.x), step(p.grad_y), step(residual), false};
    r.slope = p.slope, r.weights = factors_from(r0);
    r.past_cache = past_cache && length * data.size >= kStreamRun && r.out != r.x && r.out != r.g && r.out != r.residual;
    return r;
  }

  // Planes, or, with a period, columns.
  void elements(Runs r, Coefs k, int64_t period) const {
    const Activation act = p.activation;
    if (p.only_activation) return period ? data.inner_rows(r, k, period, act) : data.inner_planes(r, k, act);
    const bool frozen = backward && !p.training, scales = frozen && act == Activation::none;
    if (scales) r.x = r.g, r.x_step = r.g_step, r.g = nullptr;
    if (frozen) k.k1 = nullptr;
    if (!backward || scales) return period ? data.apply_rows(r, k, period, act) : data.apply_planes(r, k, act);
    if (period) data.grad_rows(r, k, period, act);
    else data.grad_planes(r, k, act);
  }
  const char* factors_from(int64_t r) const { return factors ? factors + r * data.compute : nullptr; }
  void take_samples();
  bool any_wide(int64_t c0, int64_t c1) const {
    for (int64_t c = c0; c < c1; ++c)
      if (coefs[c].wide) return true;
    return false;
  }

  // f(c) for all channels.
  template <class F> void each_channel(const F& f) const {
    constexpr int64_t some = 128;
    parallel_for((p.C + some - 1) / some, threads, [&](int64_t t) {
      for (int64_t c = t * some; c < p.C && c < (t + 1) * some; ++c) f(c);
    });
  }

 private:
  template <class F> void take(int64_t c, const F& compute_them) {
    compute_them(coefs[c]);
    table.put(c, coefs[c]);
  }
};

// The sums of a block (blocks.cpp): of one channel, or of `width` channels side by side from c on, all of them where rows are
// narrow.
Sample sample_of_block(const Call& call, int64_t b);
void block_of_channel(const Call& call, int64_t c, int64_t b, Moments* out);
void block_of_channel(const Call& call, int64_t c, int64_t b, Sums* out);
void block_of_rows(const Call& call, int64_t c, int64_t width, int64_t b, Moments* out);
void block_of_rows(const Call& call, int64_t c, int64_t width, int64_t b, Sums* out);
void block_of_narrow(const Call& call, int64_t b, Moments* out);
void block_of_narrow(const Call& call, int64_t b, Sums* out);

// The two passes, in the order of memory that suits the layout.
void walk_channels(Call& call);
void walk_rows(Call& call, Layout layout);

}  // namespace batchnorm
