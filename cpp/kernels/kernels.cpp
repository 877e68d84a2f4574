#include "kernels/kernels.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <optional>

#include "kernels/call.h"

namespace batchnorm {
namespace {

// `given` in the dimensions of the weights, p in those of the data.
void run(const Problem& p, const Problem& given, const Isa& isa, bool backward) {
  Call call(p, given, isa, backward);
  std::optional<Weights> weights;
  if (given.weights && call.reduces && !backward) weights.emplace(given, call.threads), call.weights = &*weights;
  std::optional<Scratch<char>> factors;
  if (given.weights && call.applies && backward && p.training) {
    factors.emplace((blocks_of(p) * kBlock + kLanes) * call.data.compute);
    read_factors(given, weights_scale(given), call.data.compute, *factors, call.threads);
    call.factors = *factors;
  }
  const Layout layout = layout_of(p);
  if (layout == Layout::channels) walk_channels(call);
  else walk_rows(call, layout);
}
void run(const Problem& given, const Isa& isa, bool backward) {
  if (!given.weights) return run(given, given, isa, backward);
  Problem joined = given;
  join_positions(joined);
  run(joined, given, isa, backward);
}

// A part for each thread, cut between cache lines: f(first byte, bytes).
template <class F> void each_part(int64_t bytes, int threads, const F& f) {
  constexpr int64_t least = 128 * 1024;  // copied in about the time that waking a thread takes
  const int64_t parts = std::clamp<int64_t>(bytes / least, 1, threads), lines = (bytes + 63) / 64;
  parallel_for(parts, threads, [&](int64_t part) {
    const int64_t first = std::min(lines * part / parts * 64, bytes), end = std::min(lines * (part + 1) / parts * 64, bytes);
    f(first, end - first);
  });
}

// Whether arrays fill their memory without gaps, each in the same order.
bool are_dense_alike(const Problem& p, const Array& a, const Array& b) {
  int64_t last = 0;
  const auto same = [&](int dims, const int64_t* sizes, const int64_t* of_a, const int64_t* of_b) {
    for (int d = 0; d < dims; ++d) {
      if (sizes[d] > 1 && (of_a[d] != of_b[d] || of_a[d] <= 0)) return false;
      if (sizes[d] > 1) last += (sizes[d] - 1) * of_a[d];
    }
    return true;
  };
  return same(p.reduced_dims, p.reduced, a.reduced, b.reduced) && same(p.channel_dims, p.channel, a.channel, b.channel) &&
         last == p.m * p.C - 1;
}

// Where the gradient before the activation can be written first: then what is left is a backward without activation, and the
// activation's derivative is found once, not once for the sums and once for the elements. In 16 bits only what a clip lets through
// is not rounded.
const Array* inner_gradient(const Problem& p) {
  const bool in_leaves = p.activation == Activation::none || (is_clip(p.activation) && !p.residual);
  const bool is_exact = is_clip(p.activation) || p.dtype == DType::f32 || p.dtype == DType::f64;
  if (in_leaves || !is_exact || !p.grad_x || p.only_activation) return nullptr;
  const Array& to = p.grad_residual ? p.grad_residual : p.grad_x;
  return to.data == p.x.data ? nullptr : &to;
}

// y tells it without the channels, in the order of memory, where all arrays are alike.
bool is_told_by_y(const Problem& p, const Array& to) {
  const bool is_compute_type = p.dtype == DType::f32 || p.dtype == DType::f64;
  return p.residual_is_y && is_compute_type && are_dense_alike(p, p.residual, p.grad_y) && are_dense_alike(p, p.residual, to);
}
void take_from_y(const Problem& p, const Array& to, const Isa& isa) {
  const Leaves& leaves = *isa.leaves[static_cast<int>(p.dtype)];
  constexpr int64_t some = 2048;  // elements, whole units
  const int64_t n = p.m * p.C;
  parallel_for((n + some - 1) / some, n < kSmallProblem ? 1 : p.threads, [&](int64_t t) {
    alignas(64) char h[some * sizeof(double)], y[some * sizeof(double)];
    const int64_t first = t * some, here = std::min(some, n - first), units = (here + kLanes - 1) / kLanes * kLanes;
    const size_t bytes = static_cast<size_t>(here * leaves.size);
    if (units > here) std::memset(h + bytes, 0, static_cast<size_t>((units - here) * leaves.size));
    if (units > here) std::memset(y + bytes, 0, static_cast<size_t>((units - here) * leaves.size));
    std::memcpy(h, p.grad_y.data + first * leaves.size, bytes);
    std::memcpy(y, p.residual.data + first * leaves.size, bytes);
    leaves.activate_backward(p.activation, p.slope, h, y, units);
    std::memcpy(to.data + first * leaves.size, h, bytes);
  });
}
void take_inner_gradient(const Problem& p, const Array& to, const Isa& isa) {
  if (is_told_by_y(p, to)) return take_from_y(p, to, isa);
  Problem inner = p;
  inner.grad_x = to, inner.grad_residual = inner.weights = Array{};
  inner.only_activation = true, inner.training = inner.compute_sums = false;
  run(inner, isa, true);
}

}  // namespace

void forward(const Problem& p, const Isa& isa) { run(p, isa, false); }
void backward(const Problem& p, const Isa& isa) {
  const Array* const inner = inner_gradient(p);
  if (inner == nullptr) return run(p, isa, true);
  take_inner_gradient(p, *inner, isa);
  Problem rest = p;
  rest.grad_y = *inner;
  rest.residual = rest.grad_residual = Array{}, rest.residual_is_y = false, rest.activation = Activation::none;
  run(rest, isa, true);
}

void copy(char* to, const char* from, int64_t bytes, int threads, bool streaming, const Isa& isa) {
  each_part(bytes, threads, [&](int64_t first, int64_t some) {
    if (streaming) isa.stream(to + first, from + first, some);
    else std::memcpy(to + first, from + first, static_cast<size_t>(some));
  });
}

uint64_t read(const char* from, int64_t bytes, int threads, const Isa& isa) {
  std::atomic<uint64_t> total{0};
  each_part(bytes, threads, [&](int64_t first, int64_t some) { total += isa.add_words(from + first, some); });
  return total;
}

}  // namespace batchnorm
