// The vector kernels of one instruction set (BN_ISA): which layout a problem has, and in what order its parts run. Compiled once
// for each instruction set; nothing here has external linkage but the table at the end.
#include <optional>

#include "channels_first.h"
#include "channels_last.h"
#include "copy.h"

namespace batchnorm {
namespace BN_ISA {
namespace {

void put(const Problem& p, int64_t c, const Moments& m) {
  p.stats.count[c] = m.count, p.stats.mean[c] = m.mean, p.stats.mean_low[c] = m.mean_low, p.stats.m2[c] = m.m2;
}

constexpr int64_t kTaskBytes = 128 << 10;  // of input in one task of the second pass

int threads_for(const Problem& p) { return p.m * p.C < kSmallProblem ? 1 : p.threads; }

// The second pass over everything, last parts first; runs in the order of memory where there are any.
template <class Apply> void apply_all(const Problem& p, int64_t bytes, bool by_runs, const Apply& apply) {
  const auto at_least_1 = [](int64_t n) { return n < 1 ? 1 : n; };
  int64_t chunk = p.C >= 4 * p.threads ? p.m : 4 * kBlock;
  if (by_runs) chunk = run_length(p) * at_least_1(kTaskBytes / (run_length(p) * p.C * bytes));
  const int64_t some = at_least_1(kTaskBytes / (chunk * bytes)), parts = (p.C + some - 1) / some;
  const int64_t chunks = (p.m + chunk - 1) / chunk;
  const auto task = [&](int64_t t) {
    const int64_t r0 = t / parts * chunk, c0 = t % parts * some;
    apply(c0, c0 + some < p.C ? c0 + some : p.C, r0, r0 + chunk < p.m ? r0 + chunk : p.m);
  };
  parallel_for(chunks * parts, threads_for(p), task, Order::backwards);
}

// Two passes over memory: `block` by block to a value, up the tree, `finish` a channel; then `apply`. Where the second-level cache
// can hold a group of channels, the group's second pass reads from there.
template <class P, class Block, class Finish, class Apply>
void channels_first(const Problem& p, int64_t bytes, bool reduces, bool applies, bool by_runs, const Block& block,
                    const Finish& finish, const Apply& apply) {
  const int threads = threads_for(p);
  const int64_t blocks = blocks_of(p);
  const bool many = threads == 1 || p.C >= 4 * threads;  // channels enough to share them out whole
  const auto channel = [&](int64_t c) {
    Tree<P> tree;
    for (int64_t b = 0; reduces && b < blocks; ++b) tree.push(block(c, b));
    finish(c, tree);
  };
  if (reduces && many) {
    // What the last-level cache holds is read again from there, in the order of memory: faster than a group's short runs from the
    // second.
    const bool both = applies && p.m * p.C * bytes >= kStreamFrom;
    int64_t group = cache_budget() / (p.m * bytes);
    if (threads > 1 && p.C / (4 * threads) < group) group = p.C / (4 * threads);
    if (group < 1) group = 1;
    parallel_for((p.C + group - 1) / group, threads, [&](int64_t t) {
      const int64_t c0 = t * group, c1 = c0 + group < p.C ? c0 + group : p.C;
      for (int64_t c = c0; c < c1; ++c) channel(c);
      if (both) apply(c0, c1, 0, p.m);
    });
    if (both) return;
  } else if (reduces) {
    Scratch<P> parts(p.C * blocks);
    parallel_for(p.C * blocks, threads, [&](int64_t t) { parts[t] = block(t / blocks, t % blocks); });
    for (int64_t c = 0; c < p.C; ++c) {
      Tree<P> tree;
      for (int64_t b = 0; b < blocks; ++b) tree.push(parts[c * blocks + b]);
      finish(c, tree);
    }
  } else {
    for (int64_t c = 0; c < p.C; ++c) channel(c);
  }
  if (applies) apply_all(p, bytes, by_runs, apply);
}

// The same two passes where a block holds all channels of a panel.
template <class P, class Block, class Finish, class Prepare, class Apply>
void channels_last(const Problem& p, int64_t panels, bool reduces, bool applies, const Block& block, const Finish& finish,
                   const Prepare& prepare, const Apply& apply) {
  const int threads = threads_for(p);
  const int64_t blocks = blocks_of(p);
  Scratch<P> parts(reduces ? p.C * blocks : 0);
  if (reduces) parallel_for(panels * blocks, threads, [&](int64_t t) { block(t / panels, t % panels, parts + t / panels * p.C); });
  parallel_for((p.C + 15) / 16, threads, [&](int64_t t) {
    for (int64_t c = t * 16; c < p.C && c < t * 16 + 16; ++c) {
      Tree<P> tree;
      if (reduces)
        for (int64_t b = 0; b < blocks; ++b) tree.push(parts[b * p.C + c]);
      finish(c, tree);
    }
  });
  if (!applies) return;
  const int64_t rows = prepare(), tasks = (p.m + rows - 1) / rows;
  parallel_for(
      tasks, threads, [&](int64_t t) { apply(t * rows, t * rows + rows < p.m ? t * rows + rows : p.m); }, Order::backwards);
}

// p has the dimensions of the data, `given` those of the weights, too.
template <class T> void forward_of(const Problem& p, const Problem& given) {
  Table<Compute<T>> table(p.C);
  const bool reduces = p.compute_stats, applies = static_cast<bool>(p.y), last = is_channels_last(p);
  std::optional<Weights> weights;
  if (given.weights && reduces) weights.emplace(given, last ? 0 : spare_bytes<T>(p), threads_for(p));
  const auto finish = [&](int64_t c, Tree<Moments>& tree) {
    if (reduces) put(p, c, tree.finish());
    if (applies) forward_coefficients(p, c, table);
  };
  const Weights* const w = weights ? &*weights : nullptr;
  if (last) {
    ChannelsLast<T> k(p, table, w, nullptr);
    return channels_last<Moments>(
        p, k.panels(), reduces, applies, [&](int64_t b, int64_t panel, Moments* out) { k.moments_block(b, panel, out); }, finish,
        [&] { return k.prepare_apply(), k.task_rows(); }, [&](int64_t r0, int64_t r1) { k.apply(r0, r1); });
  }
  const ChannelsFirst<T> k(p, table, w, nullptr);
  channels_first<Moments>(
      p, sizeof(T) * (p.residual ? 2 : 1), reduces, applies, k.by_runs(),
      [&](int64_t c, int64_t b) { return k.moments_block(c, b); }, finish,
      [&](int64_t c0, int64_t c1, int64_t r0, int64_t r1) { k.apply(c0, c1, r0, r1); });
}

template <class T> void backward_of(const Problem& p, const Problem& given) {
  using C = Compute<T>;
  Table<C> table(p.C);
  const bool applies = static_cast<bool>(p.grad_x), last = is_channels_last(p);
  std::optional<Factors<C>> factors;
  if (given.weights && applies && p.training) factors.emplace(given, last ? 0 : spare_bytes<T>(p), threads_for(p));
  const Factors<C>* const f = factors ? &*factors : nullptr;
  for (int64_t c = 0; c < p.C; ++c) forward_coefficients(p, c, table);
  const auto finish = [&](int64_t c, Tree<Sums>& tree) { backward_coefficients(p, c, tree.finish(), table); };
  if (last) {
    ChannelsLast<T> k(p, table, nullptr, f);
    return channels_last<Sums>(
        p, k.panels(), p.compute_sums, applies, [&](int64_t b, int64_t panel, Sums* out) { k.sums_block(b, panel, out); }, finish,
        [&] { return k.prepare_apply(), k.task_rows(); }, [&](int64_t r0, int64_t r1) { k.apply(r0, r1); });
  }
  const ChannelsFirst<T> k(p, table, nullptr, f);
  channels_first<Sums>(
      p, sizeof(T) * (p.residual ? 3 : 2), p.compute_sums, applies, k.by_runs(),
      [&](int64_t c, int64_t b) { return k.sums_block(c, b); }, finish,
      [&](int64_t c0, int64_t c1, int64_t r0, int64_t r1) { k.apply(c0, c1, r0, r1); });
}

template <class F> void with_type(const Problem& p, const F& f) {
  switch (p.dtype) {
    case DType::f64: return f(double());
    case DType::f16: return f(Half());
    case DType::bf16: return f(BFloat16());
    default: return f(float());
  }
}

// f(problem in the dimensions of the data)
template <class F> void with_positions(const Problem& given, const F& f) {
  if (!given.weights) return f(given);
  Problem p = given;
  join_positions(p);
  f(p);
}

void forward(const Problem& given) {
  with_positions(given, [&](const Problem& p) { with_type(p, [&](auto t) { forward_of<decltype(t)>(p, given); }); });
}
void backward(const Problem& given) {
  with_positions(given, [&](const Problem& p) { with_type(p, [&](auto t) { backward_of<decltype(t)>(p, given); }); });
}

#define BN_STRING_OF(x) #x
#define BN_STRING(x) BN_STRING_OF(x)

}  // namespace

const Kernels kernels = {BN_STRING(BN_ISA), forward, backward, copy, read};

}  // namespace BN_ISA
}  // namespace batchnorm
