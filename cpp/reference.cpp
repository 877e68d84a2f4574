// The scalar specification of the kernels: one position at a time, any strides, the canonical order written as plainly as it can
// be. Vector kernels must equal it bit for bit (tests/test_bits.py). Shared with them: the tree, the coefficients, 16-bit
// conversion.
#include <cmath>
#include <cstring>

#include "coefficients.h"
#include "convert.h"

namespace batchnorm {
namespace reference {
namespace {

int64_t offset_of(const Problem& p, const Array& a, int64_t c, int64_t r) {
  int64_t offset = 0;
  for (int d = p.channel_dims - 1; d >= 0; --d) offset += c % p.channel[d] * a.channel[d], c /= p.channel[d];
  for (int d = p.reduced_dims - 1; d >= 0; --d) offset += r % p.reduced[d] * a.reduced[d], r /= p.reduced[d];
  return offset;
}

double get(const Problem& p, const Array& a, int64_t c, int64_t r) {
  const int64_t i = offset_of(p, a, c, r);
  switch (a.dtype) {
    case DType::f64: return reinterpret_cast<const double*>(a.data)[i];
    case DType::f32: return reinterpret_cast<const float*>(a.data)[i];
    case DType::f16: return to_float(reinterpret_cast<const Half*>(a.data)[i]);
    case DType::bf16: return to_float(reinterpret_cast<const BFloat16*>(a.data)[i]);
    case DType::boolean: return reinterpret_cast<const uint8_t*>(a.data)[i] != 0;
  }
  return NAN;
}

void set(const Problem& p, const Array& a, int64_t c, int64_t r, double value) {
  const int64_t i = offset_of(p, a, c, r);
  switch (a.dtype) {
    case DType::f64: reinterpret_cast<double*>(a.data)[i] = value; break;
    case DType::f16: reinterpret_cast<Half*>(a.data)[i] = to_half(static_cast<float>(value)); break;
    case DType::bf16: reinterpret_cast<BFloat16*>(a.data)[i] = to_bfloat16(static_cast<float>(value)); break;
    default: reinterpret_cast<float*>(a.data)[i] = static_cast<float>(value);
  }
}

double fold(double* lanes) {
  for (int half = 8; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  }
  return lanes[0];
}

float madd(float a, float b, float c) { return std::fmaf(a, b, c); }
double madd(double a, double b, double c) { return a * b + c; }

template <class C> C sigmoid(C z) {
  constexpr bool single = sizeof(C) == 4;
  C t = z < 0 ? z : 0 - z;
  const C lowest = single ? C(-87.0f) : C(-708.0);
  const bool vanishes = t < lowest;
  if (vanishes) t = lowest;
  const C magic = single ? C(0x1.8p23f) : C(0x1.8p52), n = (t * static_cast<C>(1.4426950408889634) + magic) - magic;
  C r = madd(n, single ? C(-0.693359375f) : C(-6.93147180369123816490e-01), t);
  r = madd(n, single ? C(2.12194440e-4f) : C(-1.90821492927058770002e-10), r);
  const int degree = single ? 7 : 13;
  double factorial = 1;
  for (int k = 2; k <= degree; ++k) factorial *= k;
  C e = static_cast<C>(1 / factorial);
  for (int k = degree; k > 0; --k) factorial /= k, e = madd(e, r, static_cast<C>(1 / factorial));
  if (n == n) e = e * static_cast<C>(std::ldexp(1.0, static_cast<int>(n)));
  if (vanishes) e = 0;
  return (z < 0 ? e : C(1)) / (C(1) + e);
}

template <class C> C activate(const Problem& p, C z) {
  switch (p.activation) {
    case Activation::none: return z;
    case Activation::relu: return z < 0 ? 0 : z;
    case Activation::relu6: return z > 6 ? 6 : z < 0 ? 0 : z;
    case Activation::leaky_relu: return z < 0 ? z * static_cast<C>(p.slope) : z;
    case Activation::silu: return z * sigmoid(z);
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
  }
  return g;
}

double weight_at(const Problem& p, int64_t r) { return p.weights ? get(p, p.weights, 0, r) : 1.0; }

Moments moments_of_block(const Problem& p, int64_t c, int64_t r0, int64_t r1) {
  int64_t heaviest = r0;
  for (int64_t r = r0; r < r1; ++r) {
    if (weight_at(p, r) > weight_at(p, heaviest)) heaviest = r;
  }
  const double first = get(p, p.x, c, heaviest), K = std::isfinite(first) ? first : 0.0;
  double s1[kLanes] = {}, s2[kLanes] = {}, sw[kLanes] = {};
  for (int64_t r = r0; r < r1; ++r) {
    const double w = weight_at(p, r), x = get(p, p.x, c, r);
    if (!(w > 0)) continue;
    const double d = x - K, wd = w * d;
    s1[r % kLanes] += wd;
    s2[r % kLanes] += wd * d;
    sw[r % kLanes] += w;
  }
  const double count = fold(sw), sum = fold(s1);
  return block_moments(count, K, sum, fold(s2));
}

template <class C> C z_of(const Problem& p, const Coefficients& k, int64_t c, int64_t r) {
  const double x = get(p, p.x, c, r);
  C z = madd(static_cast<C>(x) - static_cast<C>(k.center), static_cast<C>(k.scale), static_cast<C>(k.shift));
  if (k.wide) z = static_cast<C>((x - k.mean) * k.wide_scale + k.wide_shift);
  return p.residual ? z + static_cast<C>(get(p, p.residual, c, r)) : z;
}

template <class C> C grad_z(const Problem& p, const Coefficients& k, int64_t c, int64_t r) {
  const C g = static_cast<C>(get(p, p.grad_y, c, r));
  if (p.activation == Activation::none) return g;
  return activate_backward(p, p.residual_is_y ? static_cast<C>(get(p, p.residual, c, r)) : z_of<C>(p, k, c, r), g);
}

template <class C> Sums sums_of_block(const Problem& p, const Coefficients& k, int64_t c, int64_t r0, int64_t r1) {
  double sg[kLanes] = {}, sgd[kLanes] = {};
  for (int64_t r = r0; r < r1; ++r) {
    const double g = grad_z<C>(p, k, c, r);
    sg[r % kLanes] += g;
    sgd[r % kLanes] += g * (get(p, p.x, c, r) - sums_center(k));
  }
  const double sum = fold(sg);
  return {sum, fold(sgd)};
}

// reduce(first, last) over all blocks, merged by the tree.
template <class P, class F> P over_blocks(const Problem& p, const F& reduce) {
  Tree<P> tree;
  for (int64_t r = 0; r < p.m; r += kBlock) tree.push(reduce(r, r + kBlock < p.m ? r + kBlock : p.m));
  return tree.finish();
}

template <class C> void forward_in(const Problem& p) {
  for (int64_t c = 0; c < p.C; ++c) {
    if (p.compute_stats) {
      const Moments m = over_blocks<Moments>(p, [&](int64_t r0, int64_t r1) { return moments_of_block(p, c, r0, r1); });
      p.stats.count[c] = m.count, p.stats.mean[c] = m.mean, p.stats.mean_low[c] = m.mean_low, p.stats.m2[c] = m.m2;
    }
    if (!p.y) continue;
    Coefficients k;
    forward_coefficients(p, c, k);
    for (int64_t r = 0; r < p.m; ++r) set(p, p.y, c, r, activate(p, z_of<C>(p, k, c, r)));
  }
}

template <class C> C grad_x_of(const Problem& p, const Coefficients& k, int64_t c, int64_t r, C g) {
  const double x = get(p, p.x, c, r);
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
    Coefficients k;
    forward_coefficients(p, c, k);
    Sums s{};
    if (p.compute_sums) s = over_blocks<Sums>(p, [&](int64_t r0, int64_t r1) { return sums_of_block<C>(p, k, c, r0, r1); });
    backward_coefficients(p, c, s, k);
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

}  // namespace

const Kernels kernels = {"reference", forward, backward, copy, read};

}  // namespace reference
}  // namespace batchnorm
