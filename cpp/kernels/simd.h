// Sixteen elements as one unit, U<float> or U<double>, in vectors of the width this file is compiled for: how they are loaded and
// stored, and the few operations that compilers do not derive from vector types. Every intrinsic stands here.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "core/convert.h"
#include "core/numbers.h"

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define BN_INLINE inline __attribute__((always_inline))
#define BN_INLINE_LAMBDA __attribute__((always_inline))

namespace batchnorm {
namespace {  // one copy for each instruction set: a shared inline function might be linked from the wrong one

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#define BN_VECTOR(name) _mm512_##name  // what both widths have
typedef __m512 Floats;
typedef __m512d Doubles;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#define BN_VECTOR(name) _mm256_##name
typedef __m256 Floats;
typedef __m256d Doubles;
#else
constexpr int kVectorBytes = 16;  // the compiler lowers it to what the target has
#endif

// Stores past the cache, and loops of their own for what stands together and for gradients with missing cells: not in the portable
// code, which is large as it is.
#if defined(__AVX2__)
constexpr bool kStreams = true, kHasTogether = true;
#define BN_INLINE_IF_SHORT BN_INLINE
#else
constexpr bool kStreams = false, kHasTogether = false;
#define BN_INLINE_IF_SHORT __attribute__((noinline))
#endif

// For x86 without AVX2 the code is made small, not fast: a unit is four vectors or eight, and a fused operation thirty
// instructions. One loop asks in each unit for what others have loops for.
#if defined(__AVX2__) || defined(__aarch64__)
constexpr bool kSmall = false;
#else
constexpr bool kSmall = true;
#endif

// Arithmetic is in double for float64 data and in float for everything else.
template <class T> using Compute = std::conditional_t<std::is_same<T, double>::value, double, float>;

template <class C> struct U {
  typedef C V __attribute__((vector_size(kVectorBytes), may_alias));
  typedef std::conditional_t<sizeof(C) == 4, int32_t, int64_t> Word;
  typedef Word Words __attribute__((vector_size(kVectorBytes), may_alias));
  typedef std::make_unsigned_t<Word> Unsigned __attribute__((vector_size(kVectorBytes), may_alias));  // may overflow
  static constexpr int N = kLanes * sizeof(C) / kVectorBytes;
  V v[N];
};
#define BN_EACH(C, i) _Pragma("GCC unroll 16") for (int i = 0; i < U<C>::N; ++i)

// f of so and so, called and not inlined where the code of floats is to be small; doubles are never fused.
template <class C> constexpr bool kCalls = kSmall && sizeof(C) == 4;
template <class F, class... Arguments> __attribute__((noinline)) auto call(const F& f, Arguments... arguments) {
  return f(arguments...);
}
template <bool Calls, class F, class... Arguments> BN_INLINE auto inlined_or_called(const F& f, Arguments... arguments) {
  if constexpr (Calls) return call(f, arguments...);
  else return f(arguments...);
}

template <class C> BN_INLINE U<C> operator+(U<C> a, U<C> b) {
  BN_EACH(C, i) a.v[i] += b.v[i];
  return a;
}
template <class C> BN_INLINE U<C> operator-(U<C> a, U<C> b) {
  BN_EACH(C, i) a.v[i] -= b.v[i];
  return a;
}
template <class C> BN_INLINE U<C> operator*(U<C> a, U<C> b) {
  BN_EACH(C, i) a.v[i] *= b.v[i];
  return a;
}
template <class C> BN_INLINE U<C> operator/(U<C> a, U<C> b) {
  BN_EACH(C, i) a.v[i] /= b.v[i];
  return a;
}
template <class C> BN_INLINE U<C> fill(C value) {
  U<C> r;
  BN_EACH(C, i) r.v[i] = value - typename U<C>::V{};
  return r;
}

// a < b ? yes : no, lane by lane; a NaN compares false.
template <class C> BN_INLINE U<C> if_less(U<C> a, U<C> b, U<C> yes, U<C> no) {
  BN_EACH(C, i) no.v[i] = a.v[i] < b.v[i] ? yes.v[i] : no.v[i];
  return no;
}
template <class C> BN_INLINE U<C> if_at_most(U<C> a, U<C> b, U<C> yes, U<C> no) {
  BN_EACH(C, i) no.v[i] = a.v[i] <= b.v[i] ? yes.v[i] : no.v[i];
  return no;
}

// z < least ? least : z
template <class C> BN_INLINE U<C> at_least(U<C> z, U<C> least) {
#if defined(BN_VECTOR)  // where one is NaN, or both are zero, the second
  BN_EACH(C, i) {
    if constexpr (sizeof(C) == 4) z.v[i] = (typename U<C>::V)BN_VECTOR(max_ps)((Floats)least.v[i], (Floats)z.v[i]);
    else z.v[i] = (typename U<C>::V)BN_VECTOR(max_pd)((Doubles)least.v[i], (Doubles)z.v[i]);
  }
  return z;
#else
  return if_less(z, least, least, z);
#endif
}

// most < z ? most : z
template <class C> BN_INLINE U<C> at_most(U<C> z, U<C> most) {
#if defined(BN_VECTOR)
  BN_EACH(C, i) {
    if constexpr (sizeof(C) == 4) z.v[i] = (typename U<C>::V)BN_VECTOR(min_ps)((Floats)most.v[i], (Floats)z.v[i]);
    else z.v[i] = (typename U<C>::V)BN_VECTOR(min_pd)((Doubles)most.v[i], (Doubles)z.v[i]);
  }
  return z;
#else
  return if_less(most, z, most, z);
#endif
}

// z <= 0 or most <= z ? 0 : g. A `most` that is NaN is no bound.
template <class C> BN_INLINE U<C> where_inside(U<C> z, U<C> most, U<C> g) {
#if defined(__AVX512F__)
  BN_EACH(C, i) {
    if constexpr (sizeof(C) == 4) {
      const __mmask16 m = _mm512_cmp_ps_mask((__m512)z.v[i], _mm512_setzero_ps(), _CMP_NLE_UQ);
      const __mmask16 inside = _mm512_mask_cmp_ps_mask(m, (__m512)z.v[i], (__m512)most.v[i], _CMP_NGE_UQ);
      g.v[i] = (typename U<C>::V)_mm512_maskz_mov_ps(inside, (__m512)g.v[i]);
    } else {
      const __mmask8 m = _mm512_cmp_pd_mask((__m512d)z.v[i], _mm512_setzero_pd(), _CMP_NLE_UQ);
      const __mmask8 inside = _mm512_mask_cmp_pd_mask(m, (__m512d)z.v[i], (__m512d)most.v[i], _CMP_NGE_UQ);
      g.v[i] = (typename U<C>::V)_mm512_maskz_mov_pd(inside, (__m512d)g.v[i]);
    }
  }
  return g;
#elif defined(__AVX2__)
  BN_EACH(C, i) {
    if constexpr (sizeof(C) == 4) {
      const __m256 z_i = (__m256)z.v[i], below = _mm256_cmp_ps(z_i, (__m256)most.v[i], _CMP_NGE_UQ);
      const __m256 inside = _mm256_and_ps(below, _mm256_cmp_ps(z_i, _mm256_setzero_ps(), _CMP_NLE_UQ));
      g.v[i] = (typename U<C>::V)_mm256_and_ps(inside, (__m256)g.v[i]);
    } else {
      const __m256d z_i = (__m256d)z.v[i], below = _mm256_cmp_pd(z_i, (__m256d)most.v[i], _CMP_NGE_UQ);
      const __m256d inside = _mm256_and_pd(below, _mm256_cmp_pd(z_i, _mm256_setzero_pd(), _CMP_NLE_UQ));
      g.v[i] = (typename U<C>::V)_mm256_and_pd(inside, (__m256d)g.v[i]);
    }
  }
  return g;
#else
  return if_at_most(z, fill<C>(0), fill<C>(0), if_at_most(most, z, fill<C>(0), g));
#endif
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

#if !defined(__AVX2__) && !defined(__aarch64__)
inline __attribute__((noinline)) void fused_lanes(const float* a, const float* b, float* c) {  // too large to stand at every use
  for (int i = 0; i < kLanes; ++i) c[i] = fused(a[i], b[i], c[i]);
}
#endif

// Fused in float; never in double, so that sums in double can be checked from NumPy.
BN_INLINE U<float> multiply_add(U<float> a, U<float> b, U<float> c) {
#if defined(BN_VECTOR)
  BN_EACH(float, i) c.v[i] = (U<float>::V)BN_VECTOR(fmadd_ps)((Floats)a.v[i], (Floats)b.v[i], (Floats)c.v[i]);
#elif defined(__aarch64__)
  BN_EACH(float, i) c.v[i] = (U<float>::V)vfmaq_f32((float32x4_t)c.v[i], (float32x4_t)a.v[i], (float32x4_t)b.v[i]);
#else
  float x[kLanes], y[kLanes], z[kLanes];
  std::memcpy(x, &a, sizeof x), std::memcpy(y, &b, sizeof y), std::memcpy(z, &c, sizeof z);
  fused_lanes(x, y, z);
  std::memcpy(&c, z, sizeof z);
#endif
  return c;
}
BN_INLINE U<double> multiply_add(U<double> a, U<double> b, U<double> c) { return a * b + c; }

// Vector by vector: a copy of all sixteen at once would go through the stack.
template <class C> BN_INLINE U<C> load_raw(const C* p) {
  typedef C Unaligned __attribute__((vector_size(kVectorBytes), aligned(sizeof(C)), may_alias));
  U<C> r;
  BN_EACH(C, i) r.v[i] = reinterpret_cast<const Unaligned*>(p)[i];
  return r;
}
template <class C> BN_INLINE void store_raw(C* p, U<C> a) {
  typedef C Unaligned __attribute__((vector_size(kVectorBytes), aligned(sizeof(C)), may_alias));
  BN_EACH(C, i) reinterpret_cast<Unaligned*>(p)[i] = a.v[i];
}

BN_INLINE U<float> load(const float* p) { return load_raw(p); }
BN_INLINE U<double> load(const double* p) { return load_raw(p); }

// What no instruction converts, one by one: too large to stand at every use.
template <class T> __attribute__((noinline)) void to_floats(float* to, const T* from) {
  for (int i = 0; i < kLanes; ++i) to[i] = to_float(from[i]);
}
inline __attribute__((noinline)) void from_floats(Half* to, const float* from) {
  for (int i = 0; i < kLanes; ++i) to[i] = to_half(from[i]);
}
inline __attribute__((noinline)) void from_floats(BFloat16* to, const float* from) {
  for (int i = 0; i < kLanes; ++i) to[i] = to_bfloat16(from[i]);
}

// bfloat16 is float's upper half.
BN_INLINE U<float> load(const BFloat16* p) {
  U<float> r;
#if defined(__AVX512F__)
  r.v[0] = (U<float>::V)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))), 16);
#elif defined(__AVX2__)
  BN_EACH(float, i) {
    const __m128i words = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p) + i);
    r.v[i] = (U<float>::V)_mm256_slli_epi32(_mm256_cvtepu16_epi32(words), 16);
  }
#else
  float f[kLanes];
  to_floats(f, p);
  std::memcpy(&r, f, sizeof f);
#endif
  return r;
}
BN_INLINE U<float> load(const Half* p) {
  U<float> r;
#if defined(__AVX512F__)
  r.v[0] = (U<float>::V)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(__AVX2__)
  BN_EACH(float, i) r.v[i] = (U<float>::V)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p) + i));
#elif defined(__aarch64__)
  BN_EACH(float, i) r.v[i] = (U<float>::V)vcvt_f32_f16(vld1_f16(reinterpret_cast<const __fp16*>(p) + 4 * i));
#else
  float f[kLanes];
  to_floats(f, p);
  std::memcpy(&r, f, sizeof f);
#endif
  return r;
}

// Past: non-temporal stores, which go past the cache and save the read for ownership; p is then aligned to a unit. Where there are
// none they are ordinary ones.
template <bool Past> BN_INLINE void put(float* p, U<float> a) {
#if defined(BN_VECTOR)
  BN_EACH(float, i) if (Past) BN_VECTOR(stream_ps)(p + kVectorBytes / 4 * i, (Floats)a.v[i]);
  if (Past) return;
#endif
  store_raw(p, a);
}
template <bool Past> BN_INLINE void put(double* p, U<double> a) {
#if defined(BN_VECTOR)
  BN_EACH(double, i) if (Past) BN_VECTOR(stream_pd)(p + kVectorBytes / 8 * i, (Doubles)a.v[i]);
  if (Past) return;
#endif
  store_raw(p, a);
}
#if defined(__AVX2__)
template <bool Past> BN_INLINE void put(void* p, __m256i words) {
  if (Past) _mm256_stream_si256(static_cast<__m256i*>(p), words);
  else _mm256_storeu_si256(static_cast<__m256i*>(p), words);
}
#endif
template <bool Past> BN_INLINE void put(Half* p, U<float> a) {
#if defined(__AVX512F__)
  put<Past>(static_cast<void*>(p), _mm512_cvtps_ph((__m512)a.v[0], _MM_FROUND_TO_NEAREST_INT));
#elif defined(__AVX2__)
  const __m128i low = _mm256_cvtps_ph((__m256)a.v[0], _MM_FROUND_TO_NEAREST_INT);
  put<Past>(static_cast<void*>(p), _mm256_set_m128i(_mm256_cvtps_ph((__m256)a.v[1], _MM_FROUND_TO_NEAREST_INT), low));
#elif defined(__aarch64__)
  BN_EACH(float, i) vst1_f16(reinterpret_cast<__fp16*>(p) + 4 * i, vcvt_f16_f32((float32x4_t)a.v[i]));
#else
  float f[kLanes];
  std::memcpy(f, &a, sizeof f);
  from_floats(p, f);
#endif
}
// to_bfloat16 of convert.h, on vectors. NaNs are rare: where there is one they lose their lower half, so that rounding keeps the
// upper.
template <bool Past> BN_INLINE void put(BFloat16* p, U<float> a) {
#if defined(__AVX512BF16__)
  // The instruction takes numbers below 2^-126 for 0: where there is one, the long way.
  if (__builtin_expect(_mm512_fpclass_ps_mask((__m512)a.v[0], 0x20) == 0, 1))
    return put<Past>(static_cast<void*>(p), (__m256i)_mm512_cvtneps_pbh((__m512)a.v[0]));
#endif
#if defined(__AVX512F__)
  const __m512i u = (__m512i)a.v[0], one = _mm512_set1_epi32(1);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), one);
  const __m512i up = _mm512_add_epi32(_mm512_add_epi32(u, _mm512_set1_epi32(0x7fff)), odd);
  const __mmask16 nan = _mm512_cmp_ps_mask((__m512)a.v[0], (__m512)a.v[0], _CMP_UNORD_Q);
  const __m512i rounded = _mm512_mask_or_epi32(up, nan, u, _mm512_set1_epi32(0x400000));
  put<Past>(static_cast<void*>(p), _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16)));
#elif defined(__AVX2__)
  typedef uint32_t Words __attribute__((vector_size(32)));
  Words low = (Words)a.v[0], high = (Words)a.v[1];
  if (__builtin_expect(_mm256_movemask_ps(_mm256_cmp_ps((__m256)low, (__m256)high, _CMP_UNORD_Q)) != 0, 0)) {
    low = (low & 0x7fffffffu) > 0x7f800000u ? (low & 0xffff0000u) | 0x400000u : low;
    high = (high & 0x7fffffffu) > 0x7f800000u ? (high & 0xffff0000u) | 0x400000u : high;
  }
  low = (low + 0x7fffu + (low >> 16 & 1u)) >> 16, high = (high + 0x7fffu + (high >> 16 & 1u)) >> 16;
  const __m256i mixed = _mm256_packus_epi32((__m256i)low, (__m256i)high);  // half a vector of each by turns
  put<Past>(static_cast<void*>(p), _mm256_permute4x64_epi64(mixed, 0xd8));
#else
  float f[kLanes];
  std::memcpy(f, &a, sizeof f);
  from_floats(p, f);
#endif
}
template <class T> BN_INLINE void store(T* p, U<Compute<T>> a) { put<false>(p, a); }

// After the last non-temporal store of a leaf, before others may read.
BN_INLINE void fence() {
#if defined(__AVX2__)
  _mm_sfence();
#endif
}

BN_INLINE U<double> widen(U<double> a) { return a; }
BN_INLINE U<double> widen(U<float> a) {
  U<double> r;
#if defined(__AVX512F__)
  r.v[0] = (U<double>::V)_mm512_cvtps_pd(_mm512_castps512_ps256((__m512)a.v[0]));
  r.v[1] = (U<double>::V)_mm512_cvtps_pd(_mm512_extractf32x8_ps((__m512)a.v[0], 1));
#elif defined(__AVX2__)
  BN_EACH(float, i) {
    r.v[2 * i] = (U<double>::V)_mm256_cvtps_pd(_mm256_castps256_ps128((__m256)a.v[i]));
    r.v[2 * i + 1] = (U<double>::V)_mm256_cvtps_pd(_mm256_extractf128_ps((__m256)a.v[i], 1));
  }
#else
  typedef float Two __attribute__((vector_size(8)));
  Two twos[8];
  std::memcpy(twos, &a, sizeof twos);
  BN_EACH(double, i) r.v[i] = __builtin_convertvector(twos[i], U<double>::V);
#endif
  return r;
}
BN_INLINE U<float> narrow(U<double> a) {
#if defined(__AVX512F__)
  const __m512 low = _mm512_castps256_ps512(_mm512_cvtpd_ps((__m512d)a.v[0]));
  return {{(U<float>::V)_mm512_insertf32x8(low, _mm512_cvtpd_ps((__m512d)a.v[1]), 1)}};
#elif defined(__AVX2__)
  U<float> r;
  BN_EACH(float, i) {
    const __m128 low = _mm256_cvtpd_ps((__m256d)a.v[2 * i]), high = _mm256_cvtpd_ps((__m256d)a.v[2 * i + 1]);
    r.v[i] = (U<float>::V)_mm256_set_m128(high, low);
  }
  return r;
#else
  double d[kLanes];
  float f[kLanes];
  std::memcpy(d, &a, sizeof d);
  for (int i = 0; i < kLanes; ++i) f[i] = static_cast<float>(d[i]);
  return load_raw(f);
#endif
}

// ---- the words of numbers.h -----------------------------------------------------------------------------------------------------

BN_INLINE U<double> absolute(U<double> a) {
  BN_EACH(double, i) a.v[i] = (U<double>::V)((U<double>::Words)a.v[i] & INT64_MAX);
  return a;
}
BN_INLINE U<double> root(U<double> a) {
#if defined(BN_VECTOR)
  BN_EACH(double, i) a.v[i] = (U<double>::V)BN_VECTOR(sqrt_pd)((Doubles)a.v[i]);
#else
  BN_EACH(double, i) for (int j = 0; j < kVectorBytes / 8; ++j) a.v[i][j] = __builtin_sqrt(a.v[i][j]);
#endif
  return a;
}
BN_INLINE U<double> through_float(U<double> a) { return widen(narrow(a)); }

// Whether one of them is 0.
BN_INLINE bool any_zero(U<double> a) {
  double d[kLanes];
  std::memcpy(d, &a, sizeof d);
  bool any = false;
  for (int i = 0; i < kLanes; ++i) any |= d[i] == 0;
  return any;
}

// Sixteen lanes to four: f[j] = ((lane j + lane j+4) + lane j+8) + lane j+12, in the compute type; then widened.
typedef double Four __attribute__((vector_size(32), may_alias));
BN_INLINE Four fold(U<float> a) {
#if defined(__AVX512F__)
  const __m512 v = (__m512)a.v[0];
  const __m128 f =
      _mm_add_ps(_mm_add_ps(_mm_add_ps(_mm512_castps512_ps128(v), _mm512_extractf32x4_ps(v, 1)), _mm512_extractf32x4_ps(v, 2)),
                 _mm512_extractf32x4_ps(v, 3));
  return (Four)_mm256_cvtps_pd(f);
#elif defined(__AVX2__)
  const __m256 u = (__m256)a.v[0], w = (__m256)a.v[1];
  const __m128 f =
      _mm_add_ps(_mm_add_ps(_mm_add_ps(_mm256_castps256_ps128(u), _mm256_extractf128_ps(u, 1)), _mm256_castps256_ps128(w)),
                 _mm256_extractf128_ps(w, 1));
  return (Four)_mm256_cvtps_pd(f);
#else
  return __builtin_convertvector(((a.v[0] + a.v[1]) + a.v[2]) + a.v[3], Four);
#endif
}
BN_INLINE Four fold(U<double> a) {
#if defined(__AVX512F__)
  const __m512d u = (__m512d)a.v[0], w = (__m512d)a.v[1];
  return (Four)_mm256_add_pd(
      _mm256_add_pd(_mm256_add_pd(_mm512_castpd512_pd256(u), _mm512_extractf64x4_pd(u, 1)), _mm512_castpd512_pd256(w)),
      _mm512_extractf64x4_pd(w, 1));
#elif defined(__AVX2__)
  return (Four)(((a.v[0] + a.v[1]) + a.v[2]) + a.v[3]);
#else
  const auto low = ((a.v[0] + a.v[2]) + a.v[4]) + a.v[6], high = ((a.v[1] + a.v[3]) + a.v[5]) + a.v[7];
  return Four{low[0], low[1], high[0], high[1]};
#endif
}

// The first `split` lanes of a, the others of b.
template <class C> BN_INLINE U<C> join(U<C> a, U<C> b, int64_t split) {
  using Word = typename U<C>::Word;
  typedef Word Unaligned __attribute__((vector_size(kVectorBytes), aligned(sizeof(Word)), may_alias));
  alignas(64) static constexpr Word kFirst[2 * kLanes] = {-1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1};
  BN_EACH(C, i) {
    const auto first = reinterpret_cast<const Unaligned*>(kFirst + kLanes - split)[i];
    a.v[i] = first < 0 ? a.v[i] : b.v[i];
  }
  return a;
}

// Some of sixteen lanes: those whose bit is 1; those that are not NaN; and how often each was among them.
#if defined(__AVX512F__)
template <class C> struct Lanes {
  typedef std::conditional_t<sizeof(C) == 4, __mmask16, __mmask8> Mask;
  Mask v[U<C>::N];
};
template <class C> BN_INLINE Lanes<C> lanes_of(uint16_t bits) {
  Lanes<C> r;
  BN_EACH(C, i) r.v[i] = static_cast<typename Lanes<C>::Mask>(bits >> 8 * i);
  return r;
}
BN_INLINE Lanes<float> numbers(U<float> x) { return {_mm512_cmp_ps_mask((__m512)x.v[0], (__m512)x.v[0], _CMP_ORD_Q)}; }
BN_INLINE Lanes<double> numbers(U<double> x) {
  Lanes<double> r;
  BN_EACH(double, i) r.v[i] = _mm512_cmp_pd_mask((__m512d)x.v[i], (__m512d)x.v[i], _CMP_ORD_Q);
  return r;
}
BN_INLINE U<float> keep(U<float> a, Lanes<float> lanes) {
  a.v[0] = (U<float>::V)_mm512_maskz_mov_ps(lanes.v[0], (__m512)a.v[0]);
  return a;
}
BN_INLINE U<double> keep(U<double> a, Lanes<double> lanes) {
  BN_EACH(double, i) a.v[i] = (U<double>::V)_mm512_maskz_mov_pd(lanes.v[i], (__m512d)a.v[i]);
  return a;
}
template <class C> BN_INLINE Lanes<C> operator&(Lanes<C> a, Lanes<C> b) {
  BN_EACH(C, i) a.v[i] = sizeof(C) == 4 ? _kand_mask16(a.v[i], b.v[i]) : _kand_mask8(a.v[i], b.v[i]);
  return a;
}
template <class C> BN_INLINE Lanes<C> operator|(Lanes<C> a, Lanes<C> b) {
  BN_EACH(C, i) a.v[i] = sizeof(C) == 4 ? _kor_mask16(a.v[i], b.v[i]) : _kor_mask8(a.v[i], b.v[i]);
  return a;
}
template <class C> struct Counter {
  __m512i n[U<C>::N] = {};
  BN_INLINE void add(Lanes<C> lanes) {
    BN_EACH(C, i) {
      if constexpr (sizeof(C) == 4) n[i] = _mm512_mask_add_epi32(n[i], lanes.v[i], n[i], _mm512_set1_epi32(1));
      else n[i] = _mm512_mask_add_epi64(n[i], lanes.v[i], n[i], _mm512_set1_epi64(1));
    }
  }
};
#else
template <class C> struct Lanes {
  typename U<C>::Words v[U<C>::N];
};
template <class C> BN_INLINE_IF_SHORT Lanes<C> lanes_of(uint16_t bits) {
  using Word = typename U<C>::Word;
  using Words = typename U<C>::Words;
  alignas(64) static constexpr Word kBit[kLanes] = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768};
  Lanes<C> r;
  BN_EACH(C, i) r.v[i] = (Words)(((static_cast<Word>(bits) - Words{}) & reinterpret_cast<const Words*>(kBit)[i]) != 0);
  return r;
}
template <class C> BN_INLINE Lanes<C> numbers(U<C> x) {
  Lanes<C> r;
  BN_EACH(C, i) r.v[i] = (typename U<C>::Words)(x.v[i] == x.v[i]);
  return r;
}
template <class C> BN_INLINE U<C> keep(U<C> a, Lanes<C> lanes) {
  BN_EACH(C, i) a.v[i] = (typename U<C>::V)((typename U<C>::Words)a.v[i] & lanes.v[i]);
  return a;
}
template <class C> BN_INLINE Lanes<C> operator&(Lanes<C> a, Lanes<C> b) {
  BN_EACH(C, i) a.v[i] &= b.v[i];
  return a;
}
template <class C> BN_INLINE Lanes<C> operator|(Lanes<C> a, Lanes<C> b) {
  BN_EACH(C, i) a.v[i] |= b.v[i];
  return a;
}
template <class C> struct Counter {
  typename U<C>::Words n[U<C>::N] = {};
  BN_INLINE void add(Lanes<C> lanes) { BN_EACH(C, i) n[i] -= lanes.v[i]; }
};
#endif
template <class C> BN_INLINE U<C> values_of(const Counter<C>& counter) {
  U<C> r;
  BN_EACH(C, i) r.v[i] = __builtin_convertvector((typename U<C>::Words)counter.n[i], typename U<C>::V);
  return r;
}

// a, and 0 where x is NaN.
template <class C> BN_INLINE_IF_SHORT U<C> where_number(U<C> x, U<C> a) { return keep(a, numbers(x)); }

// Elements that are not NaN.
BN_INLINE bool is_number(double x) { return x == x; }
BN_INLINE bool is_number(float x) { return x == x; }
BN_INLINE bool is_number(Half x) { return (x.bits & 0x7fff) <= 0x7c00; }
BN_INLINE bool is_number(BFloat16 x) { return (x.bits & 0x7fff) <= 0x7f80; }

}  // namespace

template <> struct Numbers<U<double>> {
  static BN_INLINE U<double> all(double v) { return fill(v); }
  static BN_INLINE U<double> at(const double* from) { return load_raw(from); }
  static BN_INLINE void put(double* to, U<double> v) { store_raw(to, v); }
};

}  // namespace batchnorm
