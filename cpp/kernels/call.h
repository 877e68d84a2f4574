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
class ChannelRows {
 public:
  ChannelRows(int64_t n, int64_t size) : size_(size), stride_((n + kLanes) * size), memory_(CoefficientRows::count * stride_) {}

  // Coefficients of channels from c on, each `times` times, for one run of columns.
  void spread(const ChannelRows& from, int rows, int64_t c, int64_t channels, int64_t times) {
    for (int row = 0; row < rows; ++row) {
      if (size_ == 4) spread_row<float>(from, row, c, channels, times);
      else spread_row<double>(from, row, c, channels, times);
    }
  }
  // The first n values of a table, over and over, for a period of columns and 16 more.
  void repeat(const ChannelRows& of, int rows, int64_t n, int64_t period) {
    const int64_t bytes = (period + kLanes) * size_;
    for (int row = 0; row < rows; ++row) {
      char* const to = memory_ + row * stride_;
      int64_t there = n * size_;
      std::memcpy(to, of.memory_ + row * of.stride_, static_cast<size_t>(there));
      for (; there < bytes; there *= 2) std::memcpy(to + there, to, static_cast<size_t>(std::min(there, bytes - there)));
    }
  }
  CoefficientRows rows() const { return {memory_, stride_, size_}; }
  Coefs at(int64_t i) const {
    const char* first = memory_ + i * size_;
    return {first, first + stride_, first + 2 * stride_, first + 3 * stride_, first + 4 * stride_};
  }
  bool is_wide(int64_t i) const {
    return size_ == 4 && reinterpret_cast<const float*>(memory_ + CoefficientRows::wide * stride_)[i] != 0;
  }

 private:
  int64_t size_, stride_;
  Scratch<char> memory_;

  template <class C> C* row(int row) const { return reinterpret_cast<C*>(memory_ + row * stride_); }
  template <class C> void spread_row(const ChannelRows& from, int r, int64_t c, int64_t channels, int64_t times) {
    const C* values = from.row<C>(r) + c;
    for (int64_t i = 0; i < channels; ++i) std::fill_n(row<C>(r) + i * times, times, values[i]);
  }
};

// One of a row of values in the compute type, of `size` bytes.
inline void put_computed(char* row, int64_t size, int64_t i, double v) {
  if (size == 4) reinterpret_cast<float*>(row)[i] = static_cast<float>(v);
  else reinterpret_cast<double*>(row)[i] = v;
}

// Bits of the first n positions of a cell, and of those only that count.
inline const uint16_t* first_bits(int64_t n, const uint16_t* counts, uint16_t* to) {
  if (n == kCell) return counts;
  for (int64_t t = 0; t < 8; ++t) {
    const int64_t left = n - t * kLanes;
    const unsigned bits = left >= kLanes ? 0xffffu : left > 0 ? (1u << left) - 1 : 0;
    to[t] = static_cast<uint16_t>(bits & (counts ? counts[t] : 0xffffu));
  }
  return to;
}

// Moments or sums of channels side by side: a row for each of their values.
template <class P> struct Parts {
  static constexpr int kValues = sizeof(P) / sizeof(double);
  double* rows[kValues];

  Parts from(int64_t c) const {
    Parts some = *this;
    for (double*& row : some.rows) row += c;
    return some;
  }
  void put(int64_t i, const P& values) const {
    double each[kValues];
    std::memcpy(each, &values, sizeof values);
    for (int k = 0; k < kValues; ++k) rows[k][i] = each[k];
  }
};

// Sixteen of them.
template <class P> struct SomeParts : Parts<P> {
  double values[Parts<P>::kValues][kLanes];

  SomeParts() {
    for (int k = 0; k < Parts<P>::kValues; ++k) this->rows[k] = values[k];
  }
  P at(int64_t i) const {
    double each[Parts<P>::kValues];
    for (int k = 0; k < Parts<P>::kValues; ++k) each[k] = values[k][i];
    P result;
    std::memcpy(&result, each, sizeof result);
    return result;
  }
};

// Where the values stand that a block's shift is the mean of, from a channel's first element on: the first sixteen of them that are
// there; a few more, where some may be missing.
struct Sample {
  static constexpr int64_t kMost = 24;
  int64_t n = 0, offsets[kMost];

  static int64_t most(const Problem& p) { return p.omit ? kMost : kLanes; }
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
  Scratch<double> sums;  // of gradients, two rows
  ChannelRows table;
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
        reduces(backward ? p.compute_sums : p.compute_moments),
        applies(static_cast<bool>(backward ? p.grad_x : p.y)),
        past_cache(p.m * p.C * data.size >= kStreamFrom),
        samples(std::min(kMostSamples, blocks_of(p))),
        sums(backward ? 2 * p.C : 0),
        table(p.C, data.compute) {}

  // Where the moments or sums of all positions belong.
  Parts<Moments> whole(Moments) const { return {{p.moments.count, p.moments.mean, p.moments.mean_low, p.moments.m2}}; }
  Parts<Sums> whole(Sums) const { return {{sums, sums + p.C}}; }

  // Channels, before their sums are known, and after. Backward: the sums take coefficients of the forward.
  void prepare(int64_t c0, int64_t c1) const {
    if (backward) isa.channels->put_forward(p, c0, c1 - c0, table.rows());
  }
  void finish(int64_t c0, int64_t c1) const {
    double* const rows[] = {sums, sums + p.C};
    if (backward) isa.channels->put_backward(p, c0, c1 - c0, rows, table.rows());
    else if (applies) isa.channels->put_forward(p, c0, c1 - c0, table.rows());
  }
  int rows() const { return backward ? CoefficientRows::wide : CoefficientRows::k1; }  // those that elements take

  // Whether elements go through leaves where they are: a forward, a gradient before an activation, and a backward of no more than a
  // clip of x.
  bool is_simple() const {
    if (backward && p.omit && !data.omits) return false;
    if (p.only_activation) return !p.residual_is_y;
    if (backward && p.omit && !p.training && p.activation == Activation::none) return false;  // of x it only takes what is NaN
    return !backward || (is_clip(p.activation) && !(p.grad_residual || (p.residual && p.activation != Activation::none)));
  }

  // here(array), step(array): where runs begin, at position r0, and how far they are apart.
  template <class Here, class Step> Runs runs(const Here& here, const Step& step, int64_t r0, int64_t count, int64_t length) const {
    const Array none{}, &out = backward ? p.grad_x : p.y, &residual = backward && !p.only_activation ? none : p.residual;
    const auto from = [&](const Array& a) -> char* { return a ? here(a) : nullptr; };
    const auto by = [&](const Array& a) { return a ? step(a) : 0; };
    Runs r{from(out), from(p.x), from(p.grad_y), from(residual), count, length,
           by(out),   by(p.x),   by(p.grad_y),   by(residual),   false};
    r.slope = p.slope, r.weights = factors_from(r0), r.omits = p.omit;
    r.past_cache = past_cache && length * data.size >= kStreamRun && r.out != r.x && r.out != r.g && r.out != r.residual;
    return r;
  }

  // Planes, or, with a period, columns.
  void elements(Runs r, Coefs k, int64_t period) const {
    const Activation act = p.activation;
    if (p.only_activation) return data.inner(r, k, period, act);
    const bool frozen = backward && !p.training, scales = frozen && act == Activation::none;
    if (scales) r.x = r.g, r.x_step = r.g_step, r.g = nullptr;
    if (frozen) k.k1 = nullptr;
    if (!backward || scales) data.apply(r, k, period, act);
    else data.grad(r, k, period, act);
  }
  const char* factors_from(int64_t r) const { return factors ? factors + r * data.compute : nullptr; }
  void take_samples();
  bool any_wide(int64_t c0, int64_t c1) const {
    for (int64_t c = c0; c < c1; ++c)
      if (table.is_wide(c)) return true;
    return false;
  }

  // f(c0, c1) for all channels, in parts that are worth a thread where each takes about so many operations.
  template <class F> void each_channels(int64_t operations, const F& f) const {
    const int64_t some = std::max<int64_t>(kLanes, kPart / std::max<int64_t>(operations, 1) / kLanes * kLanes);
    const int64_t parts = std::max<int64_t>(1, p.C / some);  // none of fewer than sixteen
    parallel_for(parts, threads, [&](int64_t t) { f(t * some, t + 1 == parts ? p.C : (t + 1) * some); });
  }

 private:
  static constexpr int64_t kPart = 8192;
};

// The sums of a block (blocks.cpp): of one channel, or of `width` channels side by side from c on, all of them where rows are
// narrow.
Sample sample_of_block(const Call& call, int64_t b);
template <class P> P block_of_channel(const Call& call, int64_t c, int64_t b);
// Up to sixteen of them at a time, whose shifts are found and whose sums are ended together. `out` has room for sixteen.
struct BlockOf {
  int64_t c, b;
};
void blocks_of_channels(const Call& call, const BlockOf* blocks, int64_t n, const Parts<Moments>& out);
void blocks_of_channels(const Call& call, const BlockOf* blocks, int64_t n, const Parts<Sums>& out);
void block_of_rows(const Call& call, int64_t c, int64_t width, int64_t b, Parts<Moments> out);
void block_of_rows(const Call& call, int64_t c, int64_t width, int64_t b, Parts<Sums> out);

// The two passes, in the order of memory that suits the layout.
void walk_channels(Call& call);
void walk_rows(Call& call, Layout layout);

}  // namespace batchnorm
