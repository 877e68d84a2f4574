#include "kernels/weights.h"

#include <algorithm>

#include "kernels/call.h"

namespace batchnorm {
namespace {

constexpr int64_t kWords = kBlock / kLanes;  // of counts, in a block

template <class W> void read_as(const Problem& p, int64_t r, int64_t n, double* to) {
  const Array& a = p.weights;
  const W* base = reinterpret_cast<const W*>(a.data);
  const int64_t step = run_step(p, a);
  each_segment(p, r, n, [&](int64_t outer, int64_t s, int64_t done, int64_t length) {
    const W* from = base + run_offset(p, a, outer) + s * step;
    for (int64_t i = 0; i < length; ++i) {
      if (sizeof(W) == 1) to[done + i] = from[i * step] != 0 ? 1.0 : 0.0;
      else to[done + i] = static_cast<double>(from[i * step]);
    }
  });
}

// Of positions r … r + n - 1, as doubles that stand together.
void read_weights(const Problem& p, int64_t r, int64_t n, double* to) {
  switch (p.weights.dtype) {
    case DType::boolean: return read_as<uint8_t>(p, r, n, to);
    case DType::f32: return read_as<float>(p, r, n, to);
    default: return read_as<double>(p, r, n, to);
  }
}

}  // namespace

double sum_of_weights(const double* w, int64_t cells) {
  double four[4] = {};
  for (int64_t k = 0; k < cells; ++k, w += kCell) {
    double lane[kLanes];
    for (int64_t l = 0; l < kLanes; ++l) {
      const auto pair = [&](int64_t t) { return w[kLanes * t + l] + w[kLanes * (t + 1) + l]; };
      lane[l] = (pair(0) + pair(2)) + (pair(4) + pair(6));
    }
    for (int j = 0; j < 4; ++j) four[j] += ((lane[j] + lane[j + 4]) + lane[j + 8]) + lane[j + 12];
  }
  return (four[0] + four[1]) + (four[2] + four[3]);
}

Weights::Weights(const Problem& p, int threads)
    : p_(p),
      counts_(blocks_of(p) * kWords),
      values_(p.weights.dtype == DType::boolean ? 0 : blocks_of(p) * kBlock),
      blocks_(blocks_of(p)) {
  parallel_for(blocks_of(p), threads, [&](int64_t b) { blocks_[b] = look_at(b); });
}

BlockWeights Weights::look_at(int64_t b) const {
  double mask[kBlock];
  double* const w = p_.weights.dtype == DType::boolean ? mask : values_ + b * kBlock;
  const int64_t n = std::min(kBlock, p_.m - b * kBlock), cells = (n + kCell - 1) / kCell;
  read_weights(p_, b * kBlock, n, w);
  std::fill(w + n, w + cells * kCell, 0.0);
  uint16_t* counts = counts_ + b * kWords;
  int64_t ones = 0, zeros = 0;
  for (int64_t i = 0; i < cells * kCell; i += kLanes) {
    unsigned bits = 0;
    for (int64_t l = 0; l < kLanes; ++l) bits |= static_cast<unsigned>(w[i + l] == 1) << l, zeros += w[i + l] == 0;
    counts[i / kLanes] = static_cast<uint16_t>(bits);
    ones += __builtin_popcount(bits);
  }
  zeros -= cells * kCell - n;
  if (ones == n) return {Counted::all, static_cast<double>(n), 0, nullptr, nullptr};
  if (zeros == n) return {Counted::none, 0, 0, nullptr, nullptr};
  if (ones + zeros == n) return {Counted::some, static_cast<double>(ones), 0, counts, nullptr};
  return {Counted::weighted, sum_of_weights(w, cells), std::max_element(w, w + n) - w, nullptr, values_ + b * kBlock};
}

void read_factors(const Problem& p, double unit, int64_t size, char* all, int threads) {
  parallel_for(blocks_of(p), threads, [&](int64_t b) {
    double w[kBlock] = {};
    read_weights(p, b * kBlock, std::min(kBlock, p.m - b * kBlock), w);
    char* const to = all + b * kBlock * size;
    for (int64_t i = 0; i < kBlock; ++i) put_computed(to, size, i, w[i] * unit);
  });
}

void join_positions(Problem& p) {
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

}  // namespace batchnorm
