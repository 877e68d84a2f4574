// Sixteen lanes of float or double, in vectors of the width this file is compiled for. The kernels are written with these
// and know no instruction set. Sixteen is also the number of lanes of the canonical order of summation.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "problem.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#define BN_INLINE inline __attribute__((always_inline))
#define BN_INLINE_LAMBDA __attribute__((always_inline))
// Loops that are used from several places stand in functions of their own: inlined into each, they doubled the code and the time
// to compile it, and gained nothing.
#define BN_OUTLINED __attribute__((noinline))

namespace batchnorm {
namespace BN_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;  // a generic vector: the compiler lowers it to what the target has
#endif

template <class C> struct Lanes {
  typedef C V __attribute__((vector_size(kVectorBytes)));
  static constexpr int kCount = kLanes * sizeof(C) / kVectorBytes;
  V v[kCount];
};

using F16 = Lanes<float>;
using D16 = Lanes<double>;

#define BN_EACH(C, i) _Pragma("GCC unroll 16") for (int i = 0; i < Lanes<C>::kCount; ++i)

template <class C> BN_INLINE Lanes<C> operator+(Lanes<C> a, Lanes<C> b) {
  BN_EACH(C, i) a.v[i] = a.v[i] + b.v[i];
  return a;
}
template <class C> BN_INLINE Lanes<C> operator-(Lanes<C> a, Lanes<C> b) {
  BN_EACH(C, i) a.v[i] = a.v[i] - b.v[i];
  return a;
}
template <class C> BN_INLINE Lanes<C> operator*(Lanes<C> a, Lanes<C> b) {
  BN_EACH(C, i) a.v[i] = a.v[i] * b.v[i];
  return a;
}
template <class C> BN_INLINE Lanes<C> operator/(Lanes<C> a, Lanes<C> b) {
  BN_EACH(C, i) a.v[i] = a.v[i] / b.v[i];
  return a;
}

template <class C> BN_INLINE Lanes<C> fill(C value) {
  Lanes<C> r;
  BN_EACH(C, i) r.v[i] = value - typename Lanes<C>::V{};
  return r;
}

// a < b ? yes : no, lane by lane; a NaN compares false.
template <class C> BN_INLINE Lanes<C> if_less(Lanes<C> a, Lanes<C> b, Lanes<C> yes, Lanes<C> no) {
  BN_EACH(C, i) no.v[i] = a.v[i] < b.v[i] ? yes.v[i] : no.v[i];
  return no;
}

template <class C> BN_INLINE Lanes<C> if_at_most(Lanes<C> a, Lanes<C> b, Lanes<C> yes, Lanes<C> no) {
  BN_EACH(C, i) no.v[i] = a.v[i] <= b.v[i] ? yes.v[i] : no.v[i];
  return no;
}

// Correctly rounded a * b + c without FMA hardware: the product is exact in double; the sum is rounded to odd, so that rounding it
// again to float is innocuous (Boldo and Melquiond 2008).
BN_INLINE float fused(float a, float b, float c) {
#ifdef FP_FAST_FMAF
  return __builtin_fmaf(a, b, c);
#else
  const double p = static_cast<double>(a) * b, q = c, s = p + q, bb = s - p;
  const double e = (p - (s - bb)) + (q - bb);
  int64_t bits;
  std::memcpy(&bits, &s, 8);
  const int64_t away = (e > 0) == (s > 0) ? 1 : -1;
  bits += ((e > 0) | (e < 0)) & ~bits & 1 ? away : 0;
  double odd;
  std::memcpy(&odd, &bits, 8);
  return static_cast<float>(odd);
#endif
}

#ifndef FP_FAST_FMAF
__attribute__((noinline))  // emulated, it is too large to stand at every use
#endif
inline void fused_lanes(const float* a, const float* b, float* c) {
  for (int i = 0; i < 16; ++i) c[i] = fused(a[i], b[i], c[i]);
}

// Fused in float, where it buys accuracy; never in double: the canonical order needs no FMA.
BN_INLINE F16 multiply_add(F16 a, F16 b, F16 c) {
#if defined(__AVX512F__)
  BN_EACH(float, i) c.v[i] = (F16::V)_mm512_fmadd_ps((__m512)a.v[i], (__m512)b.v[i], (__m512)c.v[i]);
#elif defined(__AVX2__)
  BN_EACH(float, i) c.v[i] = (F16::V)_mm256_fmadd_ps((__m256)a.v[i], (__m256)b.v[i], (__m256)c.v[i]);
#else
  float x[16], y[16], z[16];
  std::memcpy(x, &a, 64), std::memcpy(y, &b, 64), std::memcpy(z, &c, 64);
  fused_lanes(x, y, z);
  std::memcpy(&c, z, 64);
#endif
  return c;
}
BN_INLINE D16 multiply_add(D16 a, D16 b, D16 c) { return a * b + c; }

// a + b and a - b, computed where products are (a product by one is exact): where one half of the floating-point units adds and
// converts, and the other multiplies, sums of products use both.
BN_INLINE D16::V plus(D16::V a, D16::V b) {
#if defined(__AVX512F__)
  return (D16::V)_mm512_fmadd_pd((__m512d)a, _mm512_set1_pd(1), (__m512d)b);
#elif defined(__AVX2__)
  return (D16::V)_mm256_fmadd_pd((__m256d)a, _mm256_set1_pd(1), (__m256d)b);
#else
  return a + b;
#endif
}
BN_INLINE D16::V minus(D16::V a, D16::V b) {
#if defined(__AVX512F__)
  return (D16::V)_mm512_fmsub_pd((__m512d)a, _mm512_set1_pd(1), (__m512d)b);
#elif defined(__AVX2__)
  return (D16::V)_mm256_fmsub_pd((__m256d)a, _mm256_set1_pd(1), (__m256d)b);
#else
  return a - b;
#endif
}
BN_INLINE D16 minus(D16 a, D16 b) {
  BN_EACH(double, i) a.v[i] = minus(a.v[i], b.v[i]);
  return a;
}

BN_INLINE D16 widen(F16 a) {
  D16 r;
#if defined(__AVX512F__)
  r.v[0] = (D16::V)_mm512_cvtps_pd(_mm512_castps512_ps256((__m512)a.v[0]));
  r.v[1] = (D16::V)_mm512_cvtps_pd(_mm512_extractf32x8_ps((__m512)a.v[0], 1));
#elif defined(__AVX2__)
  BN_EACH(float, i) {
    r.v[2 * i] = (D16::V)_mm256_cvtps_pd(_mm256_castps256_ps128((__m256)a.v[i]));
    r.v[2 * i + 1] = (D16::V)_mm256_cvtps_pd(_mm256_extractf128_ps((__m256)a.v[i], 1));
  }
#else
  typedef float Half __attribute__((vector_size(8)));
  Half halves[8];
  std::memcpy(halves, &a, 64);
  BN_EACH(double, i) r.v[i] = __builtin_convertvector(halves[i], D16::V);
#endif
  return r;
}

BN_INLINE F16 narrow(D16 a) {
  F16 r;
#if defined(__AVX512F__)
  r.v[0] =
      (F16::V)_mm512_insertf32x8(_mm512_castps256_ps512(_mm512_cvtpd_ps((__m512d)a.v[0])), _mm512_cvtpd_ps((__m512d)a.v[1]), 1);
#elif defined(__AVX2__)
  BN_EACH(float, i) {
    r.v[i] = (F16::V)_mm256_insertf128_ps(_mm256_castps128_ps256(_mm256_cvtpd_ps((__m256d)a.v[2 * i])),
                                          _mm256_cvtpd_ps((__m256d)a.v[2 * i + 1]), 1);
  }
#else
  typedef float Half __attribute__((vector_size(8)));
  Half halves[8];
  BN_EACH(double, i) halves[i] = __builtin_convertvector(a.v[i], Half);
  std::memcpy(&r, halves, 64);
#endif
  return r;
}

}  // namespace
}  // namespace BN_ISA
}  // namespace batchnorm
