// The weights of positions, which all channels share: each block is looked at once, and what its sums need to know of it is kept.
#pragma once

#include <algorithm>

#include "coefficients.h"
#include "parallel.h"
#include "positions.h"

namespace batchnorm {
namespace BN_ISA {
namespace {

// Which positions of a block count: with all of one weight 1, the sums are those without weights.
enum class Counted : uint8_t { none, all, some, weighted };

struct BlockWeights {
  Counted counted;
  double total;
  int64_t heaviest;   // the first position of the largest weight: its value is at most sqrt(n) standard deviations from the mean
  const char* cells;  // to whole vectors; some: int8_t, -1 for a position that counts, else 0; weighted: as they were given
};

// f with a null pointer to the type of the weights.
template <class F> BN_INLINE void with_weight_type(const Problem& p, const F& f) {
  switch (p.weights.dtype) {
    case DType::boolean: return f(static_cast<const uint8_t*>(nullptr));
    case DType::f32: return f(static_cast<const float*>(nullptr));
    default: return f(static_cast<const double*>(nullptr));
  }
}

// Positions r0 … r0 + n - 1, one after another: convert(weight) of each.
template <class W, class To, class F> void gather_weights(const Problem& p, int64_t r0, int64_t n, To* to, const F& convert) {
  const W* base = reinterpret_cast<const W*>(p.weights.data);
  const int64_t step = run_step(p, p.weights);
  each_segment(p, r0, n, [&](int64_t outer, int64_t s, int64_t done, int64_t length) {
    const W* from = base + run_offset(p, p.weights, outer) + s * step;
    To* at = to + done;
    if (step == 1) {
      for (int64_t i = 0; i < length; ++i) at[i] = convert(from[i]);
    } else {
      for (int64_t i = 0; i < length; ++i) at[i] = convert(from[i * step]);
    }
  });
}

// The cells of a mask, and of weights as they were given; padded with zeros to whole vectors.
template <class W> void read_mask(const Problem& p, int64_t r0, int64_t n, int8_t* to) {
  gather_weights<W>(p, r0, n, to, [](W w) { return static_cast<int8_t>(w != 0 ? -1 : 0); });
  std::fill(to + n, to + (n + 15) / 16 * 16, int8_t(0));
}
template <class W> void read_weights(const Problem& p, int64_t r0, int64_t n, W* to) {
  gather_weights<W>(p, r0, n, to, [](W w) { return w; });
  std::fill(to + n, to + (n + 15) / 16 * 16, W(0));
}

inline BlockWeights classify_mask(const int8_t* mask, int64_t n) {
  int32_t ones = 0;
  for (int64_t i = 0; i < n; ++i) ones -= mask[i];
  const Counted counted = ones == 0 ? Counted::none : ones == n ? Counted::all : Counted::some;
  int64_t first = 0;
  while (counted == Counted::some && mask[first] == 0) ++first;
  return {counted, static_cast<double>(ones), first, nullptr};
}

// Whether all are 0 or 1: a mask, whatever their type.
template <class W> bool is_mask(const W* w, int64_t n) {
  for (int64_t i = 0; i < n; i += 16) {
    int others = 0;
    for (int64_t k = i; k < i + 16; ++k) others += w[k] == 0 || w[k] == 1 ? 0 : 1;
    if (others > 0) return false;
  }
  return true;
}

// The total is the canonical sum. The first of the largest weights is looked for in the part that has it.
template <class W> BN_OUTLINED BlockWeights classify_weights(const W* w, int64_t n) {
  constexpr int64_t part = 128;
  D16 sum = fill<double>(0);
  W largest = 0;
  int64_t first = 0;
  for (int64_t start = 0; start < n; start += part) {
    Lanes<W> most = fill<W>(0);
    for (int64_t i = start; i < n && i < start + part; i += 16) {
      const Lanes<W> lanes = load_raw(w + i);
      sum = sum + load_wide(w + i);
      most = if_less(most, lanes, lanes, most);
    }
    W here[16];
    store_raw(here, most);
    const W most_here = *std::max_element(here, here + 16);
    if (most_here > largest) largest = most_here, first = start;
  }
  while (w[first] != largest) ++first;
  return {Counted::weighted, fold(sum), first, nullptr};
}

inline int64_t weight_bytes(const Problem& p) {
  return p.weights.dtype == DType::boolean ? 1 : p.weights.dtype == DType::f32 ? 4 : 8;
}

// Bytes a position that are little beside x: what all channels may share.
template <class T> int64_t spare_bytes(const Problem& p) { return p.C * static_cast<int64_t>(sizeof(T)) / 4; }

// Of the statistics. Cells are used where the weights stand, or kept for all channels, or, where there are too few channels to pay
// for that memory, made anew for each.
class Weights {
 public:
  struct Local {
    alignas(64) char cells[kBlock * sizeof(double)];
  };

  Weights(const Problem& p, int64_t spare, int threads)
      : p_(p),
        in_place_(p.weights.dtype != DType::boolean && are_dense(p)),
        cell_(in_place_ ? 1 : weight_bytes(p)),
        shared_(cell_ <= spare),
        cells_(shared_ ? (p.m + 15) / 16 * 16 * cell_ + kBlock * weight_bytes(p) : 0),
        blocks_(blocks_of(p)) {
    parallel_for(blocks_of(p), threads,
                 [&](int64_t b) { with_weight_type(p_, [&](auto* w) { blocks_[b] = read<std::decay_t<decltype(*w)>>(b); }); });
  }

  // Whether weights that are no mask are float.
  bool single() const { return p_.weights.dtype == DType::f32; }

  BlockWeights block(int64_t b, Local& local) const {
    BlockWeights block = blocks_[b];
    if (block.cells == nullptr && (block.counted == Counted::some || block.counted == Counted::weighted)) {
      with_weight_type(p_, [&](auto* w) { read_cells<std::decay_t<decltype(*w)>>(b, block.counted, local.cells); });
      block.cells = local.cells;
    }
    return block;
  }

  // Of position r of a block that has cells.
  double of(const BlockWeights& block, int64_t r) const {
    if (block.counted == Counted::some) return block.cells[r] != 0 ? 1.0 : 0.0;
    return single() ? reinterpret_cast<const float*>(block.cells)[r] : reinterpret_cast<const double*>(block.cells)[r];
  }

 private:
  const Problem& p_;
  bool in_place_;
  int64_t cell_;
  bool shared_;
  Scratch<char> cells_;
  Scratch<BlockWeights> blocks_;

  // Position after position.
  static bool are_dense(const Problem& p) {
    int64_t step = 1;
    for (int d = p.reduced_dims - 1; d >= 0; step *= p.reduced[d--]) {
      if (p.weights.reduced[d] != step) return false;
    }
    return true;
  }

  int64_t positions(int64_t b) const { return p_.m - b * kBlock < kBlock ? p_.m - b * kBlock : kBlock; }

  template <class W> void read_cells(int64_t b, Counted counted, char* to) const {
    if (counted == Counted::some) read_mask<W>(p_, b * kBlock, positions(b), reinterpret_cast<int8_t*>(to));
    else read_weights(p_, b * kBlock, positions(b), reinterpret_cast<W*>(to));
  }

  template <class W> BlockWeights read(int64_t b) const {
    const int64_t n = positions(b);
    char* const kept = shared_ ? cells_ + b * kBlock * cell_ : nullptr;
    Local local;
    char* cells = kept ? kept : local.cells;
    if constexpr (!std::is_same<W, uint8_t>::value) {
      const W* w = reinterpret_cast<const W*>(p_.weights.data) + b * kBlock;
      const bool here = in_place_ && n % kLanes == 0;
      if (!here) read_weights(p_, b * kBlock, n, reinterpret_cast<W*>(cells)), w = reinterpret_cast<const W*>(cells);
      if (!is_mask(w, (n + 15) / 16 * 16)) {
        BlockWeights block = classify_weights(w, n);
        block.cells = here ? reinterpret_cast<const char*>(w) : kept;
        return block;
      }
    }
    read_cells<W>(b, Counted::some, cells);
    BlockWeights block = classify_mask(reinterpret_cast<const int8_t*>(cells), n);
    block.cells = kept;
    return block;
  }
};

// Of the second pass of a backward: as factors in the compute type.
template <class C> class Factors {
 public:
  struct Local {
    C values[kBlock];
  };

  Factors(const Problem& p, int64_t spare, int threads)
      : p_(p), shared_(static_cast<int64_t>(sizeof(C)) <= spare), values_(shared_ ? p.m : 0), scale_(weights_scale(p)) {
    if (!shared_) return;
    parallel_for(blocks_of(p), threads, [&](int64_t b) {
      const int64_t r0 = b * kBlock;
      read(r0, p_.m - r0 < kBlock ? p_.m - r0 : kBlock, values_ + r0);
    });
  }

  // How many positions may be asked for at once.
  int64_t most() const { return shared_ ? p_.m : kBlock; }

  // Of positions r … r + n - 1.
  const C* at(int64_t r, int64_t n, Local& local) const {
    if (shared_) return values_ + r;
    read(r, n, local.values);
    return local.values;
  }

 private:
  const Problem& p_;
  bool shared_;
  Scratch<C> values_;
  double scale_;

  void read(int64_t r, int64_t n, C* to) const {
    const double scale = scale_;
    const C one = static_cast<C>(scale);
    // A power of two: where float can hold it, the product is rounded once in float as it is in double.
    const bool in_range = sizeof(C) == sizeof(double) || (scale >= 0x1p-126 && scale <= 0x1p127);
    with_weight_type(p_, [&](auto* w) {
      using W = std::decay_t<decltype(*w)>;
      if constexpr (std::is_same<W, uint8_t>::value) {
        gather_weights<W>(p_, r, n, to, [one](W weight) { return static_cast<C>(weight != 0) * one; });
      } else {
        if (std::is_same<W, C>::value && in_range)
          gather_weights<W>(p_, r, n, to, [one](W weight) { return static_cast<C>(weight) * one; });
        else gather_weights<W>(p_, r, n, to, [scale](W weight) { return static_cast<C>(weight * scale); });
      }
    });
  }
};

// Reduced dimensions that are one in every data array's memory become one, where only the weights kept them apart. Position numbers
// stay what they are.
inline void join_positions(Problem& p) {
  Array* const arrays[] = {&p.x, &p.y, &p.residual, &p.grad_y, &p.grad_x, &p.grad_residual};
  int n = 1;
  for (int d = 1; d < p.reduced_dims; ++d) {
    const bool joins = all_arrays(p, [&](const Array& a) { return a.reduced[n - 1] == a.reduced[d] * p.reduced[d]; });
    if (joins) p.reduced[n - 1] *= p.reduced[d];
    else p.reduced[n++] = p.reduced[d];
    for (Array* a : arrays) a->reduced[n - 1] = a->reduced[d];
  }
  p.reduced_dims = n;
}

}  // namespace
}  // namespace BN_ISA
}  // namespace batchnorm
