#include "core/ghosts.h"

#include "core/canonical.h"
#include "runtime/parallel.h"

namespace batchnorm {
namespace {

constexpr int64_t kSmall = 16384;  // elements; below, handing work to a thread costs more than it does

// The values of every channel's ghosts, get(index), up the tree to set(channel, value).
template <class P, class Get, class Set> void merge_rows(int64_t ghosts, int64_t channels, const Get& get, const Set& set) {
  for (int64_t c = 0; c < channels; ++c) {
    Tree<P> tree;
    for (int64_t g = 0; g < ghosts; ++g) tree.push(get(g * channels + c));
    set(c, tree.finish());
  }
}

}  // namespace

Ghosts::Ghosts(const View& x, uint64_t channel_axes, int64_t samples) {
  while (axis < x.ndim && (channel_axes >> axis & 1) != 0) ++axis;
  const int64_t N = axis < x.ndim ? x.sizes[axis] : 1;
  size = samples > 0 && samples < N ? samples : N;
  count = size > 0 ? (N + size - 1) / size : 1;
  for (int d = 0; d < x.ndim; ++d)
    if ((channel_axes >> d & 1) != 0) channels *= x.sizes[d];
}

Statistics Ghosts::statistics(double* table) const {
  const int64_t next = own_moments ? row() : channels;
  return {table, table + next, table + 2 * next, table + 3 * next};
}

void run_ghosts(const Ghosts& ghosts, Problem& p, uint64_t channel_axes, const std::vector<Operand>& operands,
                void (*kernel)(const Problem&)) {
  if (ghosts.count == 1) {
    collapse(p, channel_axes, operands);
    return kernel(p);
  }
  const View& x = operands[0].view;
  const auto run = [&](int64_t g, int threads) {
    const int64_t first = g * ghosts.size, rest = x.sizes[ghosts.axis] - first;
    int64_t sizes[kMaxDims];
    for (int d = 0; d < x.ndim; ++d) sizes[d] = x.sizes[d];
    sizes[ghosts.axis] = rest < ghosts.size ? rest : ghosts.size;
    std::vector<Operand> parts = operands;
    for (Operand& o : parts) {
      o.view.data += first * o.view.strides[ghosts.axis] * bytes_of(o.view.dtype);
      o.view.sizes = sizes;
    }
    Problem part = p;
    collapse(part, channel_axes, parts);
    const int64_t row = g * ghosts.channels;
    if (ghosts.own_moments)
      part.moments.count += row, part.moments.mean += row, part.moments.mean_low += row, part.moments.m2 += row;
    if (ghosts.own_parameters && part.weight) part.weight += row;
    if (ghosts.own_parameters && part.bias) part.bias += row;
    if (part.grad_weight) part.grad_weight += row, part.grad_bias += row;
    part.threads = threads;
    kernel(part);
  };
  int64_t elements = 1;
  for (int d = 0; d < x.ndim; ++d) elements *= x.sizes[d];
  // Whole ghosts to threads where that keeps all of them busy, or a kernel would not; else all threads to one ghost after another.
  const bool small = elements / ghosts.count < kSmall, many = ghosts.count >= 4 * p.threads;
  if (small || many) return parallel_for(ghosts.count, elements < kSmall ? 1 : p.threads, [&](int64_t g) { run(g, 1); });
  for (int64_t g = 0; g < ghosts.count; ++g) run(g, p.threads);
}

void merge_moments(const double* table, int64_t ghosts, int64_t channels, double* merged) {
  const int64_t row = ghosts * channels;
  merge_rows<Moments>(
      ghosts, channels, [&](int64_t i) { return Moments{table[i], table[row + i], table[2 * row + i], table[3 * row + i]}; },
      [&](int64_t c, const Moments& m) {
        merged[c] = m.count, merged[channels + c] = m.mean;
        merged[2 * channels + c] = m.mean_low, merged[3 * channels + c] = m.m2;
      });
}

void merge_sums(const double* table, int64_t ghosts, int64_t channels, double* merged) {
  const int64_t row = ghosts * channels;
  merge_rows<Sums>(
      ghosts, channels, [&](int64_t i) { return Sums{table[i], table[row + i]}; },
      [&](int64_t c, const Sums& s) { merged[c] = s.g, merged[channels + c] = s.gd; });
}

}  // namespace batchnorm
