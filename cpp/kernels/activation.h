// Activations and their derivatives on sixteen lanes. A NaN goes through each of them.
#pragma once

#include <limits>

#include "kernels/simd.h"

namespace batchnorm {
namespace {

// e^t = 2^n * e^r with |r| <= ln(2)/2, for t <= 0; the same basic operations in every instruction set, so the same bits.
template <class C> struct ExpConstants;
template <> struct ExpConstants<float> {
  static constexpr float lowest = -87.0f, magic = 0x1.8p23f, ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;
  static constexpr int degree = 7, bias = 127, mantissa = 23;
};
template <> struct ExpConstants<double> {
  static constexpr double lowest = -708.0, magic = 0x1.8p52, ln2_high = 6.93147180369123816490e-01,
                          ln2_low = 1.90821492927058770002e-10;
  static constexpr int degree = 13, bias = 1023, mantissa = 52;
};

constexpr double factorial(int k) { return k < 2 ? 1.0 : k * factorial(k - 1); }

template <class C> struct Parts {
  U<C> r, power;  // power is 2^n; 0 where t is below `lowest`
};
template <class C> BN_INLINE Parts<C> parts_of(U<C> t) {
  using K = ExpConstants<C>;
  const U<C> lowest = fill<C>(K::lowest), given = t;
  t = if_less(t, lowest, lowest, t);
  const U<C> shifted = t * fill<C>(static_cast<C>(1.4426950408889634)) + fill<C>(K::magic);
  const U<C> n = shifted - fill<C>(K::magic);
  U<C> r = multiply_add(n, fill<C>(-K::ln2_high), t);
  r = multiply_add(n, fill<C>(-K::ln2_low), r);
  // n stands in the low bits of `shifted`; moved to the exponent it is 2^n.
  using Words = typename U<C>::Unsigned;
  U<C> power;
  BN_EACH(C, i) power.v[i] = (typename U<C>::V)(((Words)shifted.v[i] + K::bias) << K::mantissa);
  return {r, if_less(given, lowest, fill<C>(0), power)};
}
// (e^r - 1) / r by Taylor's polynomial.
template <class C> BN_INLINE U<C> slope_of_exp(U<C> r) {
  constexpr int degree = ExpConstants<C>::degree;
  U<C> p = fill<C>(static_cast<C>(1 / factorial(degree)));
#pragma GCC unroll 16
  for (int k = degree - 1; k > 0; --k) p = multiply_add(p, r, fill<C>(static_cast<C>(1 / factorial(k))));
  return p;
}
template <class C> BN_INLINE U<C> exp_of(Parts<C> of) { return multiply_add(slope_of_exp<C>(of.r), of.r, fill<C>(1)) * of.power; }

// Called, not inlined: it is long, it has many users, and the time of a call is nothing to it.
template <class C> __attribute__((noinline)) U<C> sigmoid(U<C> z) {
  const U<C> zero = fill<C>(0), one = fill<C>(1);
  const U<C> e = exp_of(parts_of(if_less(z, zero, z, zero - z)));
  return if_less(z, zero, e, one) / (one + e);
}

// e^t - 1 for t <= 0, of which little is left near 0.
template <class C> __attribute__((noinline)) U<C> exp_minus_1(U<C> t) {
  const Parts<C> parts = parts_of(t);
  return multiply_add(slope_of_exp<C>(parts.r) * parts.r, parts.power, parts.power - fill<C>(1));
}

// The normal distribution at z: Z's density there, and how likely it is below.
template <class C> struct Normal {
  U<C> at, below, density;  // at: z, but no farther than where the tail vanishes, so that infinity times 0 is no NaN
};
template <class C> __attribute__((noinline)) Normal<C> normal(U<C> z) {
  constexpr auto& coefficients = NormalTail<C>::kCoefficients;
  constexpr int degree = sizeof coefficients / sizeof(C) - 1;
  const U<C> zero = fill<C>(0), one = fill<C>(1), five = fill<C>(5), half = fill<C>(C(0.5));
  const U<C> a = at_most(if_less(z, zero, zero - z, z), fill<C>(40));
  const U<C> shrink = one / (a + five), u = (a - five) * shrink;
  U<C> p = fill<C>(coefficients[degree]);
#pragma GCC unroll 32
  for (int k = degree - 1; k >= 0; --k) p = multiply_add(p, u, fill<C>(coefficients[k]));
  // a = high + low: high^2 has no rounding error, which e^ would multiply by a^2. What is left of a^2 is small.
  const U<C> split = a * fill<C>(sizeof(C) == 4 ? C(0x1p12 + 1) : C(0x1p27 + 1)), high = split - (split - a), low = a - high;
  Parts<C> parts = parts_of(zero - half * (high * high));
  parts.r = parts.r - half * (low * (a + high));
  const U<C> e = exp_of(parts), tail = p * shrink * e;
  return {if_less(z, zero, zero - a, a), if_less(z, zero, tail, one - tail), e * fill<C>(static_cast<C>(kNormalPeak))};
}

// GELU with tanh is z * sigmoid(w), w = kTanh1 z + kTanh3 z^3, as (1 + tanh(t)) / 2 is sigmoid(2 t).
template <class C> struct Cubic {
  U<C> at, w, slope;  // at: z, but no farther than where sigmoid(w) is 0 or 1
};
template <class C> BN_INLINE Cubic<C> cubic(U<C> z) {
  const U<C> at = at_most(at_least(z, fill<C>(-32)), fill<C>(32)), square = at * at;
  const U<C> first = fill<C>(static_cast<C>(kTanh1)), third = fill<C>(static_cast<C>(kTanh3));
  return {at, at * multiply_add(square, third, first), multiply_add(square, third * fill<C>(3), first)};
}

// A clip keeps values from `least` to `most`; gradients go through inside of them.
template <class C> struct Bounds {
  U<C> least, most;
  explicit Bounds(Activation act)
      : least(fill<C>(act == Activation::none ? -std::numeric_limits<C>::infinity() : 0)),
        most(fill<C>(act == Activation::relu6 ? 6 : std::numeric_limits<C>::infinity())) {}
  BN_INLINE U<C> clip(U<C> z) const { return at_most(at_least(z, least), most); }
};
// The bound above of gradients: infinity is inside of ReLU.
template <class C> BN_INLINE U<C> gradient_bound(Activation act) {
  return fill<C>(act == Activation::relu6 ? 6 : std::numeric_limits<C>::quiet_NaN());
}

template <class C> BN_INLINE U<C> activate(Activation kind, C slope, U<C> z) {
  const U<C> zero = fill<C>(0);
  switch (kind) {
    case Activation::none:
    case Activation::relu:
    case Activation::relu6: return Bounds<C>(kind).clip(z);
    case Activation::leaky_relu: return if_less(z, zero, z * fill<C>(slope), z);
    case Activation::silu: return z * sigmoid(z);
    case Activation::gelu: return z * normal(z).below;
    case Activation::gelu_tanh: return z * sigmoid(cubic(z).w);
    case Activation::hardswish: return z * (at_most(at_least(z + fill<C>(3), zero), fill<C>(6)) / fill<C>(6));
    case Activation::elu: return if_less(z, zero, fill<C>(slope) * exp_minus_1(at_most(z, zero)), z);
  }
  return z;
}

// g * activation'(z); at the corners PyTorch's choice: the derivative is that of the flat side (leaky: of the negative side).
template <class C> BN_INLINE U<C> activate_backward(Activation kind, C slope, U<C> z, U<C> g) {
  const U<C> zero = fill<C>(0), one = fill<C>(1);
  switch (kind) {
    case Activation::none: return g;
    case Activation::relu:
    case Activation::relu6: return where_inside(z, gradient_bound<C>(kind), g);
    case Activation::leaky_relu: return if_at_most(z, zero, g * fill<C>(slope), g);
    case Activation::silu: {
      const U<C> s = sigmoid(z);
      return g * (s * multiply_add(z, one - s, one));
    }
    case Activation::gelu: {
      const Normal<C> n = normal(z);
      return g * multiply_add(n.at, n.density, n.below);
    }
    case Activation::gelu_tanh: {
      const Cubic<C> c = cubic(z);
      const U<C> s = sigmoid(c.w), rest = sigmoid(zero - c.w);  // 1 - s would lose digits that z * c.slope makes seen
      return g * (s * multiply_add(c.at * c.slope, rest, one));
    }
    case Activation::hardswish: {
      const U<C> rising = if_less(z, fill<C>(3), g * multiply_add(z, one / fill<C>(3), fill<C>(C(0.5))), g);
      return if_at_most(z, fill<C>(-3), zero, rising);
    }
    case Activation::elu: return if_at_most(z, zero, g * (fill<C>(slope) * exp_of(parts_of(at_most(z, zero)))), g);
  }
  return g;
}

// The same, called and not inlined: in loops of what is rare.
template <class C> __attribute__((noinline)) U<C> activate_any(Activation kind, C slope, U<C> z) {
  return activate(kind, slope, z);
}
template <class C> __attribute__((noinline)) U<C> activate_any_backward(Activation kind, C slope, U<C> z, U<C> g) {
  return activate_backward(kind, slope, z, g);
}

}  // namespace
}  // namespace batchnorm
