// A block's sums, in each layout: cells that stand together where they are, what does not through a small tile; and what float sums
// cannot be trusted with, again in double.
#include <algorithm>
#include <optional>

#include "kernels/tile.h"

namespace batchnorm {
namespace {

struct Block {
  int64_t r, n;
  bool omits;
  BlockWeights weights;

  Block(const Call& call, int64_t b) : r(b * kBlock), n(std::min(kBlock, call.p.m - r)), omits(call.p.omit) {
    if (call.weights) weights = call.weights->block(b);
    else weights.total = static_cast<double>(n);
  }
  bool counts(int64_t i) const { return weights.counts == nullptr || (weights.counts[i / kLanes] >> i % kLanes & 1) != 0; }
  // From position i on.
  There there(int64_t i) const { return {weights.counts ? weights.counts + i / kLanes : nullptr, omits}; }
  // How many positions of a channel count; `counted` is what leaves have counted.
  double total(const double* counted) const { return omits ? *counted : weights.total; }
  // Whether a whole cell begins at position i, in which everything counts.
  bool is_full(int64_t i) const {
    for (int64_t t = 0; weights.counts != nullptr && t < 8; ++t)
      if (n - i >= kCell && weights.counts[i / kLanes + t] != 0xffff) return false;
    return n - i >= kCell;
  }
};

double fold(const double* v, int64_t step) { return (v[0] + v[step]) + (v[2 * step] + v[3 * step]); }

bool is_trusted(const Call& call, double n, double s, double q) { return call.data.compute == 8 || are_good_moments(n, s, q) != 0; }
double value_at(const Call& call, int64_t c, int64_t r) {
  alignas(64) char raw[kLanes * 8] = {};
  double values[kLanes];
  std::memcpy(raw, at(call.p, call.p.x, c, r), static_cast<size_t>(call.data.size));
  call.data.to_double(values, raw, kLanes, nullptr);
  return values[0];
}

// The shift of a block with weights: the first value of the largest one.
double first_weighted(const Call& call, int64_t c, const Block& block) {
  const double K = value_at(call, c, block.r + block.weights.heaviest);
  return std::isfinite(K) ? K : 0.0;
}

// A block's shift: near its mean, in the compute type. `first` is its first value that counts.
template <class First> double shift_of(const Call& call, double sum, int64_t n, const First& first) {
  double K = sum / static_cast<double>(n);
  if (!std::isfinite(K)) K = first();
  return std::isfinite(K) ? rounded(call.p, K) : 0.0;
}

// The positions of a block that its shift is the mean of: the first that count, of some that the golden ratio scatters, for
// neighbors are alike; or the first one of all. Up to `most`: sixteen, or more where some are missing.
int64_t sample_of(const Block& block, int64_t most, int64_t* to) {
  const int64_t step = block.n < kLanes ? 1 : (block.n * 1265 / kBlock) | 1;
  int64_t n = 0, at = 0;
  for (int64_t i = 0; i < kScattered && i < block.n && n < most; ++i, at = at + step < block.n ? at + step : at + step - block.n)
    if (block.counts(at)) to[n++] = at;
  if (n > 0) return n;
  for (at = 0; !block.counts(at);) ++at;
  to[0] = at;
  return 1;
}

// Elements from position r of a channel to those of the sample, which are in runs of `inner`.
void find(const Problem& p, const Array& a, int64_t r, const int64_t* sample, int64_t n, int64_t* offsets) {
  const int64_t inner = run_length(p), outer = r / inner, s = r - outer * inner, step = run_step(p, a);
  const double runs = 1 / static_cast<double>(inner);
  for (int64_t i = 0; i < n; ++i) {
    const int64_t at = s + sample[i];
    int64_t run = static_cast<int64_t>(static_cast<double>(at) * runs);
    if ((run + 1) * inner <= at) ++run;
    offsets[i] = run_offset(p, a, outer + run) + (at - run * inner) * step;
  }
}

// The shift, of the first sixteen elements that are there, of those at n = take(most, offsets); NaN where all of them are missing.
template <class Take> double shift_of_elements(const Call& call, const char* from, const Take& take) {
  const bool omits = call.p.omit;
  int64_t offsets[kScattered];
  for (int64_t most = Sample::most(call.p);; most = std::min(2 * most, kScattered)) {
    int64_t found;
    const int64_t n = take(most, offsets);
    const double sum = call.data.sum_of(from, offsets, n, omits, &found);
    if (found < kLanes && n == most && most < kScattered) continue;
    if (found == 0) return NAN;
    return shift_of(call, sum, found, [&] {
      for (int64_t i = 0, one;; ++i) {
        const double first = call.data.sum_of(from, offsets + i, 1, omits, &one);
        if (one > 0) return first;
      }
    });
  }
}

}  // namespace

Sample sample_of_block(const Call& call, int64_t b) {
  const Block block(call, b);
  Sample sample;
  if (block.weights.counted == Counted::none || block.weights.counted == Counted::weighted) return sample;
  int64_t positions[Sample::kMost];
  sample.n = sample_of(block, Sample::most(call.p), positions);
  find(call.p, call.p.x, block.r, positions, sample.n, sample.offsets);
  return sample;
}

namespace {

const char* first_of_channel(const Call& call, int64_t c) {
  return call.p.x.data + channel_offset(call.p, call.p.x, c) * call.data.size;
}
// `known`: the block's sample, if it has been found out already.
double shift_of_channel(const Call& call, int64_t c, const Block& block, const Sample* known) {
  return shift_of_elements(call, first_of_channel(call, c), [&](int64_t most, int64_t* to) {
    if (known && most <= Sample::kMost) {
      std::copy_n(known->offsets, known->n, to);
      return known->n;
    }
    int64_t positions[kScattered];
    const int64_t n = sample_of(block, most, positions);
    find(call.p, call.p.x, block.r, positions, n, to);
    return n;
  });
}
const Sample* known_sample(const Call& call, const Block& block) {
  const int64_t b = block.r / kBlock;
  return b < call.sampled ? call.samples + b : nullptr;
}

// The values of a channel in a block, in double, up to whole cells.
class Values {
 public:
  alignas(64) double x[kBlock];

  Values(const Call& call, int64_t c, const Block& block) {
    gather(call.p, call.p.x, c, block.r, block.n, raw_, call.isa);
    call.data.to_double(x, raw_, (block.n + kLanes - 1) / kLanes * kLanes, nullptr);
  }

 private:
  alignas(64) char raw_[kBlock * 8 + 64];
};

// The shift of a channel of which no value is found in the sample, and some are elsewhere.
__attribute__((noinline)) double shift_of_rest(const Call& call, int64_t c, const Block& block) {
  const Values values(call, c, block);
  int64_t i = 0;
  while (!block.counts(i) || std::isnan(values.x[i])) ++i;
  return shift_of(call, values.x[i], 1, [&] { return values.x[i]; });
}

// The moments of a channel with weights, of which some values are missing: they have none.
__attribute__((noinline)) Moments weighted_without_missing(const Call& call, int64_t c, const Block& block) {
  const Values values(call, c, block);
  const int64_t cells = (block.n + kCell - 1) / kCell;
  double weights[kBlock], acc[8] = {};
  for (int64_t i = 0; i < cells * kCell; ++i) weights[i] = i < block.n && !std::isnan(values.x[i]) ? block.weights.values[i] : 0.0;
  const double first = values.x[std::max_element(weights, weights + block.n) - weights], K = std::isfinite(first) ? first : 0.0;
  call.wide.moments_weighted(reinterpret_cast<const char*>(values.x), weights, cells, {}, K, acc);
  const double total = sum_of_weights(weights, cells);
  return total > 0 ? block_moments(total, K, fold(acc, 1), fold(acc + 4, 1)) : Moments{};
}

// How a channel's positions are read. Joined: runs are equally far apart, and a unit that begins in one and goes on in the next is
// made of both. Apart: cells within a run; what goes on in another is copied. Copied: short runs that are no better, and strided
// ones.
enum class Reading { together, joined, apart, copied };
Reading reading_of(const Problem& p, const Array& a) {
  const int64_t inner = run_length(p);
  if (run_step(p, a) != 1) return Reading::copied;
  if (p.reduced_dims == 1) return Reading::together;
  if (p.reduced_dims == 2 && inner >= kLanes && a.reduced[0] >= inner) return Reading::joined;
  return inner < 2 * kCell ? Reading::copied : Reading::apart;
}

// ---- one channel ----------------------------------------------------------------------------------------------------------------

// One value, or sixteen equal ones, in the compute type.
struct Value {
  alignas(64) char values[kLanes * 8];

  Value(const Call& call, double v) {
    if (call.data.compute == 4) std::fill_n(reinterpret_cast<float*>(values), kLanes, static_cast<float>(v));
    else std::fill_n(reinterpret_cast<double*>(values), kLanes, v);
  }
};

// Arrays of one channel, read by cells, from position i of a block on.
class Positions {
 public:
  Positions(const Call& call, int64_t c, const Block& block, int64_t i, const Array* x, const Array* g)
      : isa_(call.isa), size_(call.data.size), p_(call.p), c_(c), block_(block), i_(i), arrays_{x, g} {
    reading_ = std::max(reading_of(p_, *x), g ? reading_of(p_, *g) : Reading::together);
    if (reading_ == Reading::copied) stage(i, block.n - i);
    for (int a = 0; a < 2; ++a)
      if (arrays_[a]) base_[a] = arrays_[a]->data + channel_offset(p_, *arrays_[a], c) * size_;
  }

  // The block's shift, from what has been copied.
  double shift(const Call& call) const {
    if (reading_ != Reading::copied) return shift_of_channel(call, c_, block_, known_sample(call, block_));
    return shift_of_elements(call, raw_[0], [&](int64_t most, int64_t* to) { return sample_of(block_, most, to); });
  }

  // add(x, g, cells, joints, i) for whole cells, and some(x, g, i, n) for what is less, from position i of the block on; in whole
  // units.
  template <class Add, class Some> void each(const Add& add, const Some& some) {
    constexpr int64_t few = 4;  // cells of a run, from which on only those that go on in another are joined
    const int64_t inner = run_length(p_);
    for (int64_t i = i_; i < block_.n;) {
      const int64_t r = block_.r + i, outer = r < inner ? 0 : r / inner, s = r - outer * inner;  // a division takes long
      const int64_t full = (block_.n - i) / kCell, within = (inner - s) / kCell;
      if (full == 0) {
        const int64_t n = std::min(kCell, block_.n - i);
        if (reading_ == Reading::copied) some(raw_[0] + (i - i_) * size_, raw_[1] + (i - i_) * size_, i, n);
        else stage(i, n), some(raw_[0], raw_[1], i, n);
        i += kCell;
        continue;
      }
      int64_t cells = full;
      if (reading_ == Reading::copied) {
        add(raw_[0] + (i - i_) * size_, raw_[1] + (i - i_) * size_, cells, Joints(), i);
      } else if (reading_ == Reading::joined && (within == 0 || inner < few * kCell) && full > within) {
        if (inner >= few * kCell) cells = 1;
        const int64_t g_jump = arrays_[1] ? arrays_[1]->reduced[0] - inner : 0;
        add(here(0, outer, s), here(1, outer, s), cells, Joints{inner, inner - s, arrays_[0]->reduced[0] - inner, g_jump}, i);
      } else if (within > 0) {
        cells = std::min(full, within);
        add(here(0, outer, s), here(1, outer, s), cells, Joints(), i);
      } else {
        cells = 1;
        stage(i, kCell);
        add(raw_[0], raw_[1], cells, Joints(), i);
      }
      i += cells * kCell;
    }
  }

 private:
  const Isa& isa_;
  const int64_t size_;
  const Problem& p_;
  const int64_t c_;
  const Block& block_;
  const int64_t i_;
  const Array* arrays_[2];
  const char* base_[2] = {};
  Reading reading_;
  alignas(64) char raw_[2][kBlock * 8 + 64];

  // Position s of a run.
  const char* here(int which, int64_t outer, int64_t s) const {
    if (arrays_[which] == nullptr) return nullptr;
    const Array& a = *arrays_[which];
    return base_[which] + (run_offset(p_, a, outer) + s) * size_;
  }

  void stage(int64_t i, int64_t n) {
    for (int a = 0; a < 2; ++a)
      if (arrays_[a]) gather(p_, *arrays_[a], c_, block_.r + i, n, raw_[a], isa_);
  }
};

int64_t whole(int64_t n) { return (n + kLanes - 1) / kLanes * kLanes; }
int nothing(bool omits) { return omits ? 0xff : 0; }  // bytes of what adds 0: NaN, where that is missing

// From position i of the block on.
void add_channel_moments(const Call& call, Positions& cells, const Block& block, double K, double* acc) {
  const int64_t size = call.data.compute;
  const float K_float = static_cast<float>(K);
  const char* const K_at = size == 4 ? reinterpret_cast<const char*>(&K_float) : reinterpret_cast<const char*>(&K);
  cells.each([&](const char* x, const char*, int64_t n, Joints joints,
                 int64_t i) { call.data.moments(x, n, joints, K_at, block.there(i), acc); },
             [&](const char* x, const char*, int64_t i, int64_t n) {
               const Value shift(call, K), zero(call, 0);
               alignas(64) char d[kCell * 8];
               call.data.to_compute(d, x, whole(n), shift.values);
               std::memset(d + n * size, nothing(block.omits), static_cast<size_t>((kCell - n) * size));
               call.compute.moments(d, 1, {}, zero.values, block.there(i), acc);
             });
}

void add_channel_sums(const Call& call, int64_t c, const Block& block, int64_t i, double* acc) {
  const Coefs k = call.table.at(c);
  const Activation act = call.p.activation;
  const int64_t size = call.data.compute;
  Positions(call, c, block, i, &call.p.x, &call.p.grad_y)
      .each([&](const char* x, const char* g, int64_t cells, Joints joints,
                int64_t) { call.data.sums(x, g, cells, joints, k, act, block.omits, acc); },
            [&](const char* x, const char* g, int64_t, int64_t n) {
              const Value center(call, rounded(call.p, call.p.moments.mean[c])), zero(call, 0);
              alignas(64) char values[kCell * 8], d[kCell * 8], h[kCell * 8];
              call.data.to_compute(d, x, whole(n), center.values), call.data.to_compute(h, g, whole(n), nullptr);
              if (block.omits) {
                call.data.to_compute(values, x, whole(n), nullptr);
                call.compute.keep_numbers(d, values, whole(n)), call.compute.keep_numbers(h, values, whole(n));
              }
              const size_t rest = static_cast<size_t>((kCell - n) * size);
              std::memset(d + n * size, 0, rest), std::memset(h + n * size, 0, rest);
              call.compute.sums(d, h, 1, {}, {zero.values, k.scale, k.shift, k.k1, k.k0}, act, false, acc);
            });
}

// The moments of channels of a tile, in double: shifted by K, or, twice, by the mean.
struct InDouble {
  alignas(64) double K[kLanes] = {}, acc[9 * kLanes];
  int64_t step;  // between sums of lanes mod 4

  __attribute__((noinline)) InDouble(const Call& call, const Block& block, int64_t c, int64_t width, bool side_by_side)
      : step(side_by_side ? kLanes : 1) {
    Tile tile(call);
    if (side_by_side) tile.rows(c, width);
    else tile.channel(c);
    add(tile, block);
    for (int64_t i = 0; i < step; ++i) K[i] = fold(acc + i, step) / total(block, i);
    for (int64_t i = 0; i < kLanes; ++i) K[i] = std::isfinite(K[i]) ? K[i] : 0.0;
    if (!side_by_side) std::fill_n(K, kLanes, K[0]);
    add(tile, block);
  }

  void add(Tile& tile, const Block& block) {
    std::fill_n(acc, 9 * kLanes, 0.0);
    tile.add_moments(block.r, block.n, block.weights.counts, K, acc);
  }
  double total(const Block& block, int64_t i) const { return block.total(acc + 8 * step + i); }
  Moments of(const Block& block, int64_t i) const {
    if (total(block, i) == 0) return {};
    return block_moments(total(block, i), K[i], fold(acc + i, step), fold(acc + 4 * step + i, step));
  }
};

Moments settle(const Call& call, int64_t c, const Block& block, double K, const double* acc) {
  const double s = fold(acc, 1), q = fold(acc + 4, 1), n = block.total(acc + 8);
  if (n == 0) return {};
  if (is_trusted(call, n, s, q)) return block_moments(n, K, s, q);
  return InDouble(call, block, c, 1, false).of(block, 0);
}

// The sums of channels of a tile; `acc` as leaves leave it.
struct SumsOfTile {
  alignas(64) double acc[8 * kLanes] = {};
  int64_t step;

  __attribute__((noinline)) SumsOfTile(const Call& call, const Block& block, int64_t c, int64_t width, bool side_by_side,
                                       bool in_double)
      : step(side_by_side ? kLanes : 1) {
    Tile tile(call);
    if (side_by_side) tile.rows(c, width);
    else tile.channel(c);
    tile.add_sums(block.r, block.n, in_double, acc);
  }
  Sums of(int64_t i) const { return {fold(acc + i, step), fold(acc + 4 * step + i, step)}; }
};

// Where no gradient is left, all are zero, or so small that nothing but the smallest standard deviations could make them count.
bool are_trusted(const Call& call, int64_t c, const Block& block, const Sums& s) {
  if (call.data.compute == 8) return true;
  if (call.table.is_wide(c)) return false;
  return are_good_sums(static_cast<double>(block.n), s) != 0 || (s.g == 0 && s.gd == 0 && rstd_of<double>(call.p, c) <= 0x1p20);
}
Sums settle(const Call& call, int64_t c, const Block& block, const Sums& s) {
  if (are_trusted(call, c, block, s)) return s;
  return SumsOfTile(call, block, c, 1, false, true).of(0);
}

// Whether the gradient before the activation is found in leaves: without one, or a clip of x alone.
bool is_simple(const Call& call) {
  const Problem& p = call.p;
  return (p.activation == Activation::none || (is_clip(p.activation) && !p.residual)) && (!p.omit || call.data.omits);
}

}  // namespace

void Call::take_samples() {
  for (int64_t b = 0; b < std::min(kMostSamples, blocks_of(p)); ++b) samples[b] = sample_of_block(*this, b);
  sampled = std::min(kMostSamples, blocks_of(p));
}

template <> Moments block_of_channel(const Call& call, int64_t c, int64_t b) {
  const Block block(call, b);
  if (block.weights.counted == Counted::none) return {};
  double acc[9] = {};
  if (block.weights.counted == Counted::weighted) {
    const double K = first_weighted(call, c, block);
    Positions(call, c, block, 0, &call.p.x, nullptr)
        .each([&](const char* x, const char*, int64_t n, Joints joints,
                  int64_t i) { call.data.moments_weighted(x, block.weights.values + i, n, joints, K, acc); },
              [&](const char* x, const char*, int64_t i, int64_t) {
                call.data.moments_weighted(x, block.weights.values + i, 1, {}, K, acc);
              });
    const Moments moments = block_moments(block.weights.total, K, fold(acc, 1), fold(acc + 4, 1));
    return block.omits && std::isnan(moments.mean) ? weighted_without_missing(call, c, block) : moments;
  }
  Positions cells(call, c, block, 0, &call.p.x, nullptr);
  double K = cells.shift(call);
  const bool is_found = !std::isnan(K);
  if (!is_found) K = 0;
  add_channel_moments(call, cells, block, K, acc);
  if (!is_found && acc[8] > 0) {
    K = shift_of_rest(call, c, block);
    std::fill_n(acc, 9, 0.0);
    add_channel_moments(call, cells, block, K, acc);
  }
  return settle(call, c, block, K, acc);
}

template <> Sums block_of_channel(const Call& call, int64_t c, int64_t b) {
  const Block block(call, b);
  double acc[8] = {};
  if (!is_simple(call)) return settle(call, c, block, SumsOfTile(call, block, c, 1, false, false).of(0));
  add_channel_sums(call, c, block, 0, acc);
  return settle(call, c, block, Sums{fold(acc, 1), fold(acc + 4, 1)});
}

namespace {

// Of up to sixteen blocks, what their ends take; of more than there are, nothing.
struct Ends {
  alignas(64) double acc[8 * kLanes] = {}, counts[kLanes] = {};

  void put(int64_t i, const double* own, double count) {
    for (int j = 0; j < 8; ++j) acc[j * kLanes + i] = own[j];
    counts[i] = count;
  }
};

template <class P> void each_alone(const Call& call, const BlockOf* blocks, int64_t n, const Parts<P>& out) {
  for (int64_t i = 0; i < n; ++i) out.put(i, block_of_channel<P>(call, blocks[i].c, blocks[i].b));
}

}  // namespace

void blocks_of_channels(const Call& call, const BlockOf* blocks, int64_t n, const Parts<Moments>& out) {
  alignas(64) double K[kLanes] = {}, found[kLanes];
  if (call.p.omit || call.weights || reading_of(call.p, call.p.x) == Reading::copied) return each_alone(call, blocks, n, out);
  std::fill_n(found, kLanes, 1.0);
  Sample other;
  for (int64_t i = 0; i < n; ++i) {
    const auto [c, b] = blocks[i];
    if (b >= call.sampled && (i == 0 || b != blocks[i - 1].b)) other = sample_of_block(call, b);
    const Sample& sample = b < call.sampled ? call.samples[b] : other;
    int64_t all;
    K[i] = call.data.sum_of(first_of_channel(call, c), sample.offsets, sample.n, false, &all);
    found[i] = static_cast<double>(sample.n);
  }
  alignas(64) char shifts[kLanes * 8];
  if (!call.isa.channels->end_shifts(K, found, call.data.compute, shifts)) return each_alone(call, blocks, n, out);
  Ends ends;
  for (int64_t i = 0; i < n; ++i) {
    const Block block(call, blocks[i].b);
    double own[9] = {};
    Positions cells(call, blocks[i].c, block, 0, &call.p.x, nullptr);
    add_channel_moments(call, cells, block, K[i], own);
    ends.put(i, own, block.weights.total);
  }
  if (call.isa.channels->end_moments(ends.acc, kLanes, ends.counts, K, out.rows) || call.data.compute == 8) return;
  for (int64_t i = 0; i < n; ++i) {
    double own[9];
    for (int j = 0; j < 8; ++j) own[j] = ends.acc[j * kLanes + i];
    out.put(i, settle(call, blocks[i].c, Block(call, blocks[i].b), K[i], own));
  }
}

void blocks_of_channels(const Call& call, const BlockOf* blocks, int64_t n, const Parts<Sums>& out) {
  if (!is_simple(call)) return each_alone(call, blocks, n, out);
  Ends ends;
  for (int64_t i = 0; i < n; ++i) {
    const Block block(call, blocks[i].b);
    double own[8] = {};
    add_channel_sums(call, blocks[i].c, block, 0, own);
    ends.put(i, own, static_cast<double>(block.n));
  }
  const bool good = call.isa.channels->end_sums(ends.acc, kLanes, ends.counts, out.rows);
  for (int64_t i = 0; i < n; ++i)
    if (!good || call.table.is_wide(blocks[i].c))
      out.put(i, settle(call, blocks[i].c, Block(call, blocks[i].b), Sums{out.rows[0][i], out.rows[1][i]}));
}

// ---- rows -----------------------------------------------------------------------------------------------------------------------

namespace {

// The positions of the cell from position i on.
There there_of(const Block& block, int64_t i, uint16_t* some) {
  if (block.is_full(i)) return {nullptr, block.omits};
  const uint16_t* const counts = block.weights.counts ? block.weights.counts + i / kLanes : nullptr;
  return {first_bits(std::min(kCell, block.n - i), counts, some), block.omits};
}

// What rows of `width` channels need beside them. Fewer than sixteen are copied into rows of sixteen.
class RowsOf {
 public:
  const int64_t width, own;  // of what leaves take; and of it, channels

  RowsOf(const Call& call, int64_t c, int64_t width)
      : width(std::max(width, kLanes)),
        own(width),
        call_(call),
        p_(call.p),
        c_(c),
        whole_(whole(this->width)),
        memory_(whole_ * (9 * 8 + 8 + 8) + bytes_of_cell() +
                (p_.reduced_dims > 1 || is_narrow() ? 2 * copied() * bytes_of_row() : 0)),
        acc(reinterpret_cast<double*>(static_cast<char*>(memory_))),
        values(acc + 9 * whole_),
        K(reinterpret_cast<char*>(values + whole_)),
        of_cell_(K + whole_ * 8) {
    if (is_narrow()) std::fill_n(values, kLanes, 0.0);
  }

  // The rows of a cell of n positions: where they are, if they are equally far apart, else copied.
  const char* cell(const Array& a, int64_t r, int64_t n, int which, int64_t* step) const {
    if (!is_narrow() && (p_.reduced_dims == 1 || r % run_length(p_) + n <= run_length(p_))) {
      *step = run_step(p_, a);
      return at(p_, a, c_, r);
    }
    for (int64_t i = 0; i < n; ++i) copy(a, r + i, which, i);
    *step = width;
    return place(which, 0);
  }
  // One row, copied as row i of the second cell.
  const char* row(const Array& a, int64_t r, int64_t i) const { return is_narrow() ? copy(a, r, 1, i) : at(p_, a, c_, r); }

  int64_t step() const { return whole_; }
  double* counts(int64_t at) const { return acc + 8 * whole_ + at; }

  // Sums of all cells of a block.
  void add_cells(const Block& block) const {
    const Array* const g = call_.backward ? &p_.grad_y : nullptr;
    for (int64_t i = add_narrow(block); i < block.n; i += kCell) {
      int64_t x_step, g_step;
      uint16_t some[8];
      const There there = there_of(block, i, some);
      const int64_t n = std::min(kCell, block.n - i);
      const char *x = cell(p_.x, block.r + i, n, 0, &x_step), *h = g ? cell(*g, block.r + i, n, 1, &g_step) : nullptr;
      if (g) call_.data.sums_rows(x, x_step, h, g_step, there, width, call_.table.at(c_), p_.activation, of_cell_, stride());
      else call_.data.moments_rows(x, x_step, there, width, K, of_cell_, stride());
      call_.data.add_cell(of_cell_, stride(), whole_, !g && block.omits, i == 0, acc);
    }
  }

  // f(i, at, n, to): n channels from i on, whose sums are from `at` on, a unit of them; the last ones overlap those before. What a
  // unit has beyond narrow rows are the first channel's sums, good if they are.
  template <class P, class F> void each_unit(const Parts<P>& out, const F& f) const {
    for (int64_t at = 0; !is_narrow() && at < width; at += kLanes) {
      const int64_t i = std::min(at, width - kLanes);
      f(i, at, kLanes, out.from(i));
    }
    if (!is_narrow()) return;
    for (int j = 0; j < sums(); ++j) std::fill(acc + j * kLanes + own, acc + (j + 1) * kLanes, acc[j * kLanes]);
    SomeParts<P> some;
    f(0, 0, own, some);
    for (int64_t i = 0; i < own; ++i) out.put(i, some.at(i));
  }

 private:
  const Call& call_;
  const Problem& p_;
  int64_t c_, whole_;
  Scratch<char> memory_;

  bool is_narrow() const { return own < kLanes; }
  int sums() const { return p_.omit ? 9 : 8; }  // the last one counts what is there
  int64_t bytes_of_row() const { return width * call_.data.size; }
  int64_t stride() const { return whole_ + kLanes; }  // of a cell's rows, which do not all meet in the same sets of L1 then
  int64_t bytes_of_cell() const { return 11 * stride() * 8; }
  int64_t copied() const { return std::min(kCell, p_.m); }  // rows, of each of two arrays
  char* place(int which, int64_t i) const { return of_cell_ + bytes_of_cell() + (which * copied() + i) * bytes_of_row(); }
  const char* copy(const Array& a, int64_t r, int which, int64_t i) const {
    char* const to = place(which, i);
    const int64_t bytes = own * call_.data.size;
    std::memcpy(to, at(p_, a, c_, r), static_cast<size_t>(bytes));
    if (is_narrow()) std::memset(to + bytes, 0, static_cast<size_t>(bytes_of_row() - bytes));
    return to;
  }

  // Sums of the whole cells of a block of narrow rows, in which all positions count. How many positions those are.
  int64_t add_narrow(const Block& block) const {
    const int64_t cells = is_narrow() && block.weights.counted == Counted::all ? block.n / kCell : 0;
    if (cells == 0) return 0;
    alignas(64) char scratch[kLanes * 160 * 8];
    double found[9 * kLanes] = {};
    const char* x = at(p_, p_.x, 0, block.r);
    if (call_.backward) {
      ChannelRows columns(kLanes * own, call_.data.compute);
      columns.repeat(call_.table, call_.rows(), own, kLanes * own);
      call_.data.sums_narrow(x, at(p_, p_.grad_y, 0, block.r), cells, own, columns.at(0), p_.activation, block.omits, scratch,
                             found);
    } else {
      alignas(64) char shifts[kLanes * kLanes * 8];
      const auto bytes = static_cast<size_t>(own * call_.data.compute);
      for (size_t i = 0; i < kLanes; ++i) std::memcpy(shifts + i * bytes, K, bytes);
      call_.data.moments_narrow(x, cells, own, shifts, block.omits, scratch, found);
    }
    for (int j = 0; j < sums(); ++j) std::copy_n(found + j * own, own, acc + j * kLanes);
    return cells * kCell;
  }

 public:
  double *const acc, *const values;
  char* const K;

 private:
  char* const of_cell_;
};

// Strips of sixteen channels: f(first, width)
template <class F> void each_strip(int64_t width, const F& f) {
  for (int64_t i = 0; i < width; i += kLanes) f(i, std::min(kLanes, width - i));
}

// NaN where none of the sample is there.
void find_shifts(const Call& call, int64_t c, const Block& block, const RowsOf& rows) {
  const PerChannel& channels = *call.isa.channels;
  int64_t sample[kLanes];
  const char* sampled[kLanes];
  const int64_t n = sample_of(block, kLanes, sample);
  for (int64_t i = 0; i < n; ++i) sampled[i] = rows.row(call.p.x, block.r + sample[i], i);
  call.data.fold_rows(sampled, n, rows.width, rows.values);
  double found[kLanes];
  std::fill_n(found, kLanes, static_cast<double>(n));
  Sample others;
  each_strip(rows.width, [&](int64_t from, int64_t some) {
    const int64_t size = call.data.compute;
    if (some == kLanes && channels.end_shifts(rows.values + from, found, size, rows.K + from * size)) return;
    for (int64_t i = from; i < std::min(from + some, rows.own); ++i) {
      if (block.omits && std::isnan(rows.values[i])) {  // one of them is missing
        if (others.n == 0) others = sample_of_block(call, block.r / kBlock);
        rows.values[i] = shift_of_channel(call, c + i, block, &others);
      } else {
        rows.values[i] = shift_of(call, rows.values[i], n, [&] { return value_at(call, c + i, block.r + sample[0]); });
      }
      put_computed(rows.K, call.data.compute, i, std::isnan(rows.values[i]) ? 0.0 : rows.values[i]);
    }
  });
}

}  // namespace

void block_of_rows(const Call& call, int64_t c, int64_t width, int64_t b, Parts<Moments> out) {
  const Block block(call, b);
  if (block.weights.counted == Counted::none) {
    for (double* row : out.rows) std::fill_n(row, width, 0.0);
    return;
  }
  const PerChannel& channels = *call.isa.channels;
  const double count = block.weights.total;
  RowsOf rows(call, c, width);
  if (block.weights.counted == Counted::weighted) {
    std::fill_n(rows.acc, 8 * rows.step(), 0.0);
    for (int64_t i = 0; i < rows.own; ++i) rows.values[i] = first_weighted(call, c + i, block);
    for (int64_t i = 0; i < block.n; i += kCell) {
      int64_t step;
      const char* x = rows.cell(call.p.x, block.r + i, std::min(kCell, block.n - i), 0, &step);
      call.data.moments_weighted_rows(x, step, block.weights.values + i, rows.width, rows.values, rows.acc);
    }
    return rows.each_unit(out, [&](int64_t from, int64_t at, int64_t n, const Parts<Moments>& to) {
      std::fill_n(rows.counts(at), kLanes, count);
      channels.end_moments(rows.acc + at, rows.step(), rows.counts(at), rows.values + from, to.rows);
      for (int64_t i = 0; block.omits && i < n; ++i)
        if (std::isnan(to.rows[1][i])) to.put(i, weighted_without_missing(call, c + from + i, block));
    });
  }
  find_shifts(call, c, block, rows);
  rows.add_cells(block);
  rows.each_unit(out, [&](int64_t from, int64_t at, int64_t n, const Parts<Moments>& to) {
    const double *acc = rows.acc + at, *K = rows.values + from, *counts = rows.counts(at);
    if (!block.omits) std::fill_n(rows.counts(at), kLanes, count);
    if (!channels.end_moments(acc, rows.step(), counts, K, to.rows) && call.data.compute == 4) {
      const InDouble again(call, block, c + from, n, true);
      for (int64_t i = 0; i < n; ++i)
        if (!is_trusted(call, counts[i], fold(acc + i, rows.step()), fold(acc + 4 * rows.step() + i, rows.step())))
          to.put(i, again.of(block, i));
    }
    for (int64_t i = 0; block.omits && i < n; ++i) {  // where none of the sample was there, and others are
      if (!std::isnan(K[i]) || counts[i] == 0) continue;
      to.put(i, block_of_channel<Moments>(call, c + from + i, b));
    }
  });
}

void block_of_rows(const Call& call, int64_t c, int64_t width, int64_t b, Parts<Sums> out) {
  const Block block(call, b);
  const bool simple = is_simple(call);
  RowsOf rows(call, c, width);
  double counts[kLanes];
  std::fill_n(counts, kLanes, static_cast<double>(block.n));
  if (simple) rows.add_cells(block);
  rows.each_unit(out, [&](int64_t from, int64_t at, int64_t n, const Parts<Sums>& to) {
    const double* acc = rows.acc + at;
    int64_t step = rows.step();
    std::optional<SumsOfTile> of_tile;
    if (!simple) of_tile.emplace(call, block, c + from, n, true, false), acc = of_tile->acc, step = of_tile->step;
    const bool good = call.isa.channels->end_sums(acc, step, counts, to.rows);
    if (call.data.compute == 8 || (good && !call.any_wide(c + from, c + from + n))) return;
    const auto trusted = [&](int64_t i) { return are_trusted(call, c + from + i, block, Sums{to.rows[0][i], to.rows[1][i]}); };
    int64_t i = 0;
    while (i < n && trusted(i)) ++i;
    if (i == n) return;
    const SumsOfTile again(call, block, c + from, n, true, true);
    for (; i < n; ++i)
      if (!trusted(i)) to.put(i, again.of(i));
  });
}

}  // namespace batchnorm
