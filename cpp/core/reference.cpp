// The scalar specification of the kernels: one position at a time, any strides, the canonical order written as plainly as it can
// be. Vector kernels must equal it bit for bit (tests/arrays/test_bits.py). Shared with them: the tree, the coefficients, 16-bit
// conversion.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <iterator>
#include <type_traits>

#include "core/coefficients.h"
#include "core/convert.h"

namespace batchnorm {
namespace reference {
namespace {

int64_t offset_of(const Problem& p, const Array& a, int64_t c, int64_t r) {
  int64_t offset = 0;
  for (int d = p.channel_dims - 1; d >= 0; --d) offset += c % p.channel[d] * a.channel[d], c /= p.channel[d];
  for (int d = p.reduced_dims - 1; d >= 0; --d) offset += r % p.reduced[d] * a.reduced[d], r /= p.reduced[d];
  return offset;
}

double get(const Problem& p, const Array& a, int64_t c, int64_t r) { return value_at(a.dtype, a.data, offset_of(p, a, c, r)); }
void set(const Problem& p, const Array& a, int64_t c, int64_t r, double value) {
  put_value(a.dtype, a.data, offset_of(p, a, c, r), value);
}

float madd(float a, float b, float c) { return std::fmaf(a, b, c); }
double madd(double a, double b, double c) { return a * b + c; }

// e^t = 2^n * e^r for t <= 0.
template <class C> struct Parts {
  C r, power;  // power: 2^n
};
template <class C> Parts<C> parts_of(C t) {
  constexpr bool single = sizeof(C) == 4;
  const C lowest = single ? C(-87.0f) : C(-708.0);
  const bool vanishes = t < lowest;
  if (vanishes) t = lowest;
  const C magic = single ? C(0x1.8p23f) : C(0x1.8p52), n = (t * static_cast<C>(1.4426950408889634) + magic) - magic;
  C r = madd(n, single ? C(-0.693359375f) : C(-6.93147180369123816490e-01), t);
  r = madd(n, single ? C(2.12194440e-4f) : C(-1.90821492927058770002e-10), r);
  return {r, vanishes || n != n ? C(0) : static_cast<C>(std::ldexp(1.0, static_cast<int>(n)))};
}
// (e^r - 1) / r
template <class C> C slope_of_exp(C r) {
  const int degree = sizeof(C) == 4 ? 7 : 13;
  double factorial = 1;
  for (int k = 2; k <= degree; ++k) factorial *= k;
  C e = static_cast<C>(1 / factorial);
  for (int k = degree; k > 1; --k) factorial /= k, e = madd(e, r, static_cast<C>(1 / factorial));
  return e;
}
template <class C> C exp_of(Parts<C> of) { return madd(slope_of_exp(of.r), of.r, C(1)) * of.power; }

template <class C> C sigmoid(C z) {
  const C e = exp_of(parts_of(z < 0 ? z : 0 - z));
  return (z < 0 ? e : C(1)) / (C(1) + e);
}

template <class C> C exp_minus_1(C t) {
  const Parts<C> parts = parts_of(t);
  return madd(slope_of_exp(parts.r) * parts.r, parts.power, parts.power - 1);
}

template <class C> struct Normal {
  C at, below, density;
};
template <class C> Normal<C> normal(C z) {
  C a = z < 0 ? 0 - z : z;
  if (a > 40) a = 40;
  const C shrink = 1 / (a + 5), u = (a - 5) * shrink;
  C tail = 0;
  const auto& coefficients = NormalTail<C>::kCoefficients;
  for (auto c = std::rbegin(coefficients); c != std::rend(coefficients); ++c)
    tail = c == std::rbegin(coefficients) ? *c : madd(tail, u, *c);
  const C split = a * (sizeof(C) == 4 ? C(4097) : C(134217729)), high = split - (split - a), low = a - high;
  Parts<C> parts = parts_of(0 - C(0.5) * (high * high));
  parts.r = parts.r - C(0.5) * (low * (a + high));
  const C e = exp_of(parts);
  tail = tail * shrink * e;
  return {z < 0 ? 0 - a : a, z < 0 ? tail : 1 - tail, e * static_cast<C>(kNormalPeak)};
}

template <class C> struct Cubic {
  C at, w, slope;
};
template <class C> Cubic<C> cubic(C z) {
  const C at = z < -32 ? C(-32) : z > 32 ? C(32) : z, first = static_cast<C>(kTanh1), third = static_cast<C>(kTanh3);
  return {at, at * madd(at * at, third, first), madd(at * at, third * 3, first)};
}

template <class C> C activate(const Problem& p, C z) {
  switch (p.activation) {
    case Activation::none: return z;
    case Activation::relu: return z < 0 ? 0 : z;
    case Activation::relu6: return z > 6 ? 6 : z < 0 ? 0 : z;
    case Activation::leaky_relu: return z < 0 ? z * static_cast<C>(p.slope) : z;
    case Activation::silu: return z * sigmoid(z);
    case Activation::gelu: return z * normal(z).below;
    case Activation::gelu_tanh: return z * sigmoid(cubic(z).w);
    case Activation::hardswish: return z * ((z + 3 < 0 ? 0 : z + 3 > 6 ? 6 : z + 3) / 6);
    case Activation::elu: return z < 0 ? static_cast<C>(p.slope) * exp_minus_1(z) : z;
  }
  return z;
}

template <class C> C activate_backward(const Problem& p, C z, C g) {
  switch (p.activation) {
    case Activation::none: return g;
    case Activation::relu: return z <= 0 ? 0 : g;
    case Activation::relu6: return z >= 6 || z <= 0 ? 0 : g;
    case Activation::leaky_relu: return z <= 0 ? g * static_cast<C>(p.slope) : g;
    case Activation::silu: {
      const C s = sigmoid(z);
      return g * (s * madd(z, 1 - s, C(1)));
    }
    case Activation::gelu: {
      const Normal<C> n = normal(z);
      return g * madd(n.at, n.density, n.below);
    }
    case Activation::gelu_tanh: {
      const Cubic<C> c = cubic(z);
      const C s = sigmoid(c.w), rest = sigmoid(0 - c.w);
      return g * (s * madd(c.at * c.slope, rest, C(1)));
    }
    case Activation::hardswish: return z <= -3 ? 0 : z < 3 ? g * madd(z, C(1) / 3, C(0.5)) : g;
    case Activation::elu: return z <= 0 ? g * (static_cast<C>(p.slope) * exp_of(parts_of(z))) : g;
  }
  return g;
}

double weight_at(const Problem& p, int64_t r) { return p.weights ? get(p, p.weights, 0, r) : 1.0; }
bool is_missing(const Problem& p, double x) { return p.omit && std::isnan(x); }
double finite_or(double value, double otherwise) { return std::isfinite(value) ? value : otherwise; }

// A value for each position of a block; 0 where there is none.
template <class A> using Terms = std::array<A, kBlock>;

template <class A> A in_pairs(const A* p) { return (p[0] + p[1]) + (p[2] + p[3]); }
template <class A> A in_four(const A* lane, int j) { return ((lane[j] + lane[j + 4]) + lane[j + 8]) + lane[j + 12]; }

// The canonical sum over a block's first n positions, all others being 0: position r is term r / 16 mod 8 of lane r mod 16 of cell
// r / 128. pair(r): the sum of the terms r and r + 16. In type A a lane's four pairs are added up, and sixteen lanes become four;
// cells are added up in double.
template <class A, class Pair> double sum_of_pairs(int64_t n, const Pair& pair) {
  constexpr int64_t cell = 8 * kLanes;
  double four[4] = {};
  for (int64_t first = 0; first < n; first += cell) {
    A lane[kLanes];
    for (int64_t l = 0; l < kLanes; ++l) {
      A pairs[4];
      for (int64_t k = 0; k < 4; ++k) pairs[k] = pair(first + 2 * k * kLanes + l);
      lane[l] = in_pairs(pairs);
    }
    for (int j = 0; j < 4; ++j) four[j] += static_cast<double>(in_four(lane, j));
  }
  return in_pairs(four);
}

template <class A> double sum(int64_t n, const Terms<A>& a) {
  return sum_of_pairs<A>(n, [&](int64_t r) { return a[r] + a[r + kLanes]; });
}

template <class A> double sum_of_products(int64_t n, const Terms<A>& a, const Terms<A>& b) {
  return sum_of_pairs<A>(n, [&](int64_t r) { return madd(a[r + kLanes], b[r + kLanes], a[r] * b[r]); });
}

// The values of a block, and what they weigh: nothing where one is missing.
struct Block {
  int64_t n;
  bool is_mask;  // whether the weights of its positions are 0 or 1
  Terms<double> x{}, w{};

  Block(const Problem& p, int64_t c, int64_t r0, int64_t r1) : n(r1 - r0) {
    for (int64_t i = 0; i < n; ++i) x[i] = get(p, p.x, c, r0 + i), w[i] = weight_at(p, r0 + i);
    is_mask = std::all_of(w.begin(), w.end(), [](double weight) { return weight == 0 || weight == 1; });
    for (int64_t i = 0; i < n; ++i) w[i] = is_missing(p, x[i]) ? 0 : w[i];
  }
};

// The mean of the first sixteen values that count at scattered positions, or of all of fewer: near the data, whatever its offset
// and order. A golden ratio apart they are spread over the block, its lanes and the columns of an image.
template <class C> C near_mean(const Block& b) {
  const int64_t step = b.n < kLanes ? 1 : b.n * 1265 / kBlock | 1;
  double values[kLanes] = {}, four[4];
  int64_t k = 0;
  for (int64_t i = 0; i < kScattered && i < b.n && k < kLanes; ++i) {
    const int64_t r = i * step % b.n;
    if (b.w[r] != 0) values[k++] = b.x[r];
  }
  if (k == 0) values[k++] = b.x[std::find(b.w.begin(), b.w.end(), 1.0) - b.w.begin()];
  for (int j = 0; j < 4; ++j) four[j] = in_four(values, j);
  return static_cast<C>(finite_or(in_pairs(four) / static_cast<double>(k), finite_or(values[0], 0)));
}

// Sums of a block's values less K, of those that count.
struct Shifted {
  double K, s, q;
};

template <class A> Shifted shifted(const Block& b, A K) {
  Terms<A> d{};
  for (int64_t i = 0; i < b.n; ++i) d[i] = b.w[i] != 0 ? static_cast<A>(b.x[i]) - K : A(0);
  return {static_cast<double>(K), sum(b.n, d), sum_of_products(b.n, d, d)};
}

// Whether sums in float are good: no overflow, no underflow, and K near enough to the mean.
bool is_trusted(double count, const Shifted& sums) {
  return std::isfinite(sums.q) && sums.q >= count * 0x1p-90 && sums.q - sums.s * (sums.s / count) >= sums.q / 2;
}

// Of a block in which the weight of every position is 0 or 1.
template <class C> Moments counted_moments(const Block& b) {
  const double count = static_cast<double>(std::count(b.w.begin(), b.w.begin() + b.n, 1.0));
  if (count == 0) return {};
  Shifted sums = shifted<C>(b, near_mean<C>(b));
  if (std::is_same<C, float>::value && !is_trusted(count, sums))
    sums = shifted<double>(b, finite_or(shifted<double>(b, 0).s / count, 0));
  return block_moments(count, sums.K, sums.s, sums.q);
}

// Of a block with other weights, in double; K is the first value of the largest weight.
Moments weighted_moments(const Block& b) {
  const double K = finite_or(b.x[std::max_element(b.w.begin(), b.w.begin() + b.n) - b.w.begin()], 0);
  Terms<double> d{}, h{};
  for (int64_t i = 0; i < b.n; ++i) d[i] = b.w[i] != 0 ? b.x[i] - K : 0, h[i] = b.w[i] * d[i];
  const double total = sum(b.n, b.w);
  return total > 0 ? block_moments(total, K, sum(b.n, h), sum_of_products(b.n, h, d)) : Moments{};
}

template <class C> Moments moments_of_block(const Problem& p, int64_t c, int64_t r0, int64_t r1) {
  const Block b(p, c, r0, r1);
  return b.is_mask ? counted_moments<C>(b) : weighted_moments(b);
}

template <class C> C z_of(const Problem& p, const Coefficients& k, int64_t c, int64_t r) {
  const double x = get(p, p.x, c, r);
  C z = madd(static_cast<C>(x) - static_cast<C>(k.center), static_cast<C>(k.scale), static_cast<C>(k.shift));
  if (k.wide_z) z = static_cast<C>((x - k.mean) * k.wide_scale + k.wide_shift);
  return p.residual ? z + static_cast<C>(get(p, p.residual, c, r)) : z;
}

template <class C> C grad_z(const Problem& p, const Coefficients& k, int64_t c, int64_t r) {
  if (is_missing(p, get(p, p.x, c, r))) return 0;
  const C g = static_cast<C>(get(p, p.grad_y, c, r));
  if (p.activation == Activation::none) return g;
  return activate_backward(p, p.residual_is_y ? static_cast<C>(get(p, p.residual, c, r)) : z_of<C>(p, k, c, r), g);
}

// Sums of h and of h * (x - center) over n positions, in type A.
template <class A, class C> Sums sums_about(const Problem& p, A center, int64_t n, const Terms<double>& x, const Terms<C>& h) {
  Terms<A> g{}, d{};
  for (int64_t i = 0; i < n; ++i) g[i] = static_cast<A>(h[i]), d[i] = is_missing(p, x[i]) ? A(0) : static_cast<A>(x[i]) - center;
  return {sum(n, g), sum_of_products(n, g, d)};
}

template <class C> Sums sums_of_block(const Problem& p, const Coefficients& k, int64_t c, int64_t r0, int64_t r1) {
  const int64_t n = r1 - r0;
  Terms<double> x{};
  Terms<C> h{};  // the gradient before the activation
  for (int64_t i = 0; i < n; ++i) x[i] = get(p, p.x, c, r0 + i), h[i] = grad_z<C>(p, k, c, r0 + i);
  if (k.wide) return sums_about<double>(p, k.mean, n, x, h);
  const Sums sums = sums_about<C>(p, static_cast<C>(k.center), n, x, h);
  // Sums in float are good: no overflow, no underflow.
  const bool trusted = std::isfinite(sums.g) && std::isfinite(sums.gd) && std::fabs(sums.gd) >= static_cast<double>(n) * 0x1p-90;
  return std::is_same<C, double>::value || trusted ? sums : sums_about<double>(p, k.center, n, x, h);
}

// reduce(first, last) over all blocks, merged by the tree.
template <class P, class F> P over_blocks(const Problem& p, const F& reduce) {
  Tree<P> tree;
  for (int64_t r = 0; r < p.m; r += kBlock) tree.push(reduce(r, r + kBlock < p.m ? r + kBlock : p.m));
  return tree.finish();
}

template <class C> void forward_in(const Problem& p) {
  for (int64_t c = 0; c < p.C; ++c) {
    if (p.compute_moments) {
      const Moments m = over_blocks<Moments>(p, [&](int64_t r0, int64_t r1) { return moments_of_block<C>(p, c, r0, r1); });
      p.moments.count[c] = m.count, p.moments.mean[c] = m.mean, p.moments.mean_low[c] = m.mean_low, p.moments.m2[c] = m.m2;
    }
    if (!p.y) continue;
    const Coefficients k = forward_coefficients<double>(p, c);
    if (p.moments.new_rstd) p.moments.new_rstd[c] = k.rstd;
    for (int64_t r = 0; r < p.m; ++r) set(p, p.y, c, r, activate(p, z_of<C>(p, k, c, r)));
  }
}

template <class C> C grad_x_of(const Problem& p, const Coefficients& k, int64_t c, int64_t r, C g) {
  const double x = get(p, p.x, c, r);
  if (is_missing(p, x)) return 0;
  C inner = g;
  double wide = g;
  const C w = static_cast<C>(weight_at(p, r) * weights_scale(p));
  if (p.training && w > 0) {
    const C through = madd(static_cast<C>(x) - static_cast<C>(k.center), static_cast<C>(k.k1), static_cast<C>(k.k0));
    const double wide_through = (x - k.mean) * k.wide_k1 + k.wide_k0;
    inner = g - through * w;
    wide = wide - wide_through * static_cast<double>(w);
  }
  return k.wide ? static_cast<C>(wide * k.wide_scale) : inner * static_cast<C>(k.scale);
}

template <class C> void backward_in(const Problem& p) {
  for (int64_t c = 0; c < p.C; ++c) {
    Coefficients k = forward_coefficients<double>(p, c);
    if (p.compute_sums)
      put_sums(p, c, over_blocks<Sums>(p, [&](int64_t r0, int64_t r1) { return sums_of_block<C>(p, k, c, r0, r1); }), k);
    if (p.training) add_backward(p, c, k);
    if (!p.grad_x) continue;
    for (int64_t r = 0; r < p.m; ++r) {
      const C g = grad_z<C>(p, k, c, r);
      set(p, p.grad_x, c, r, grad_x_of(p, k, c, r, g));
      if (p.grad_residual) set(p, p.grad_residual, c, r, g);
    }
  }
}

void forward(const Problem& p) { p.dtype == DType::f64 ? forward_in<double>(p) : forward_in<float>(p); }
void backward(const Problem& p) { p.dtype == DType::f64 ? backward_in<double>(p) : backward_in<float>(p); }
void copy(char* to, const char* from, int64_t bytes, int, bool) { std::memcpy(to, from, bytes); }

uint64_t read(const char* from, int64_t bytes, int) {
  uint64_t total = 0;
  for (int64_t i = 0; i < bytes; ++i) total += static_cast<uint64_t>(static_cast<unsigned char>(from[i])) << i % 8 * 8;
  return total;
}

void to_doubles(DType dtype, double* to, const char* from, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] = value_at(dtype, from, i);
}
void from_doubles(DType dtype, char* to, const double* from, int64_t n) {
  for (int64_t i = 0; i < n; ++i) put_value(dtype, to, i, from[i]);
}

}  // namespace

const Kernels kernels = {"reference", forward, backward, copy, read, to_doubles, from_doubles};

}  // namespace reference
}  // namespace batchnorm
