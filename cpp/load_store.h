// Sixteen elements of any type from memory and back: whole, by vectors, in part, past the cache.
#pragma once

#include "convert.h"
#include "simd.h"

namespace batchnorm {
namespace BN_ISA {
namespace {

// Arithmetic is in double for float64 data and in float for everything else.
template <class T> using Compute = std::conditional_t<std::is_same<T, double>::value, double, float>;

// Vector by vector: a copy of all sixteen lanes at once would go through the stack.
template <class C> BN_INLINE Lanes<C> load_raw(const C* p) {
  typedef C Unaligned __attribute__((vector_size(kVectorBytes), aligned(sizeof(C)), may_alias));
  Lanes<C> r;
  BN_EACH(C, i) r.v[i] = reinterpret_cast<const Unaligned*>(p)[i];
  return r;
}

template <class C> BN_INLINE void store_raw(C* p, Lanes<C> a) {
  typedef C Unaligned __attribute__((vector_size(kVectorBytes), aligned(sizeof(C)), may_alias));
  BN_EACH(C, i) reinterpret_cast<Unaligned*>(p)[i] = a.v[i];
}

BN_INLINE D16 load(const double* p) { return load_raw(p); }
BN_INLINE F16 load(const float* p) { return load_raw(p); }
// bfloat16 is float's upper half: vectors of 32-bit words, and of the 16-bit words they shrink to.
typedef uint32_t Words __attribute__((vector_size(kVectorBytes)));
typedef uint16_t HalfWords __attribute__((vector_size(kVectorBytes / 2), aligned(2), may_alias));

BN_INLINE F16 load(const BFloat16* p) {
  F16 r;
#if defined(__AVX512F__)
  r.v[0] = (F16::V)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))), 16);
#elif defined(__AVX2__)
  BN_EACH(float, i) {  // GCC 12 makes twice as many instructions of __builtin_convertvector
    const __m128i words = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p) + i);
    r.v[i] = (F16::V)_mm256_slli_epi32(_mm256_cvtepu16_epi32(words), 16);
  }
#else
  BN_EACH(float, i) { r.v[i] = (F16::V)(__builtin_convertvector(reinterpret_cast<const HalfWords*>(p)[i], Words) << 16); }
#endif
  return r;
}
#if !defined(__AVX2__)  // scalar, they are too large to stand at every use
inline __attribute__((noinline)) void to_floats(const Half* from, float* to) {
  for (int i = 0; i < 16; ++i) to[i] = to_float(from[i]);
}
inline __attribute__((noinline)) void to_halves(const float* from, Half* to) {
  for (int i = 0; i < 16; ++i) to[i] = to_half(from[i]);
}
#endif
BN_INLINE F16 load(const Half* p) {
  F16 r;
#if defined(__AVX512F__)
  r.v[0] = (F16::V)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(__AVX2__)
  BN_EACH(float, i) r.v[i] = (F16::V)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p) + i));
#else
  float f[16];
  to_floats(p, f);
  std::memcpy(&r, f, 64);
#endif
  return r;
}

BN_INLINE D16 to_wide(F16 a) { return widen(a); }
BN_INLINE D16 to_wide(D16 a) { return a; }

// Vector k of sixteen values as doubles. Where registers are scarce these are better loaded one by one.
template <class T> BN_INLINE D16::V wide_part(const T* p, int k) { return to_wide(load(p)).v[k]; }
BN_INLINE D16::V wide_part(const float* p, int k) {  // converting loads are cheaper than a load, extractions and conversions
#if defined(__AVX512F__)
  return (D16::V)_mm512_cvtps_pd(_mm256_loadu_ps(p + 8 * k));
#elif defined(__AVX2__)
  return (D16::V)_mm256_cvtps_pd(_mm_loadu_ps(p + 4 * k));
#else
  typedef float Unaligned __attribute__((vector_size(8), aligned(4), may_alias));
  return __builtin_convertvector(reinterpret_cast<const Unaligned*>(p)[k], D16::V);
#endif
}

#if defined(__AVX512F__)
BN_INLINE D16::V wide_part(const BFloat16* p, int k) {
  const __m256i words = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p) + k));
  return (D16::V)_mm512_cvtps_pd((__m256)_mm256_slli_epi32(words, 16));
}
BN_INLINE D16::V wide_part(const Half* p, int k) {
  return (D16::V)_mm512_cvtps_pd(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p) + k)));
}
#elif defined(__AVX2__)
BN_INLINE D16::V wide_part(const BFloat16* p, int k) {
  const __m128i words = _mm_cvtepu16_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p + 4 * k)));
  return (D16::V)_mm256_cvtps_pd((__m128)_mm_slli_epi32(words, 16));
}
BN_INLINE D16::V wide_part(const Half* p, int k) {
  return (D16::V)_mm256_cvtps_pd(_mm_cvtph_ps(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p + 4 * k))));
}
#endif

template <class T> BN_INLINE D16 load_wide(const T* p) {
  D16 r;
  BN_EACH(double, k) r.v[k] = wide_part(p, k);
  return r;
}

BN_INLINE void store_part(double* p, int k, D16::V a) {
  typedef double Unaligned __attribute__((vector_size(kVectorBytes), aligned(8), may_alias));
  reinterpret_cast<Unaligned*>(p)[k] = a;
}
BN_INLINE void store(double* p, D16 a) { store_raw(p, a); }
BN_INLINE void store(float* p, F16 a) { store_raw(p, a); }
// to_bfloat16 of convert.h, on vectors. NaNs are rare: where there is one they lose their lower half, so that rounding keeps the
// upper.
BN_INLINE void store(BFloat16* p, F16 a) {
#if defined(__AVX512F__)
  const __m512i u = (__m512i)a.v[0], one = _mm512_set1_epi32(1);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), one);
  const __m512i up = _mm512_add_epi32(_mm512_add_epi32(u, _mm512_set1_epi32(0x7fff)), odd);
  const __m512i quiet = _mm512_or_si512(u, _mm512_set1_epi32(0x400000));
  const __mmask16 is_nan = _mm512_cmp_ps_mask((__m512)a.v[0], (__m512)a.v[0], _CMP_UNORD_Q);
  const __m512i upper = _mm512_srli_epi32(_mm512_mask_mov_epi32(up, is_nan, quiet), 16);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(upper));
#elif defined(__AVX2__)
  Words low = (Words)a.v[0], high = (Words)a.v[1];
  if (__builtin_expect(_mm256_movemask_ps(_mm256_cmp_ps((__m256)low, (__m256)high, _CMP_UNORD_Q)) != 0, 0)) {
    for (Words* u : {&low, &high}) *u = (*u & 0x7fffffffu) > 0x7f800000u ? (*u & 0xffff0000u) | 0x400000u : *u;
  }
  low = (low + 0x7fffu + (low >> 16 & 1u)) >> 16, high = (high + 0x7fffu + (high >> 16 & 1u)) >> 16;
  const __m256i mixed = _mm256_packus_epi32((__m256i)low, (__m256i)high);  // half a vector of each by turns
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permute4x64_epi64(mixed, 0xd8));
#else
  BN_EACH(float, i) {
    const Words u = (Words)a.v[i], magnitude = u & 0x7fffffffu;
    const Words rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16, nan = (u >> 16) | 0x40u;
    reinterpret_cast<HalfWords*>(p)[i] = __builtin_convertvector(magnitude > 0x7f800000u ? nan : rounded, HalfWords);
  }
#endif
}
BN_INLINE void store(Half* p, F16 a) {
#if defined(__AVX512F__)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph((__m512)a.v[0], _MM_FROUND_TO_NEAREST_INT));
#elif defined(__AVX2__)
  BN_EACH(float, i) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p) + i, _mm256_cvtps_ph((__m256)a.v[i], _MM_FROUND_TO_NEAREST_INT));
  }
#else
  float f[16];
  std::memcpy(f, &a, 64);
  to_halves(f, p);
#endif
}

// Non-temporal stores go past the cache and save the read for ownership; p is aligned to 64 bytes. 16-bit results are half a line
// and are stored as usual.
template <class T> BN_INLINE void stream(T* p, Lanes<Compute<T>> a) {
#if defined(__AVX2__)
  if constexpr (std::is_same<T, Compute<T>>::value) {
    float* to = reinterpret_cast<float*>(p);
    BN_EACH(T, i) {
#if defined(__AVX512F__)
      _mm512_stream_ps(to + 16 * i, (__m512)a.v[i]);
#else
      _mm256_stream_ps(to + 8 * i, (__m256)a.v[i]);
#endif
    }
    return;
  }
#endif
  store(p, a);
}

// After the last non-temporal store of a task, before others may read.
BN_INLINE void fence() {
#if defined(__AVX2__)
  _mm_sfence();
#endif
}

// Ones for the lanes first … end - 1 of sixteen.
template <class Word> struct LaneMask {
  alignas(64) Word table[48];
  constexpr LaneMask() : table() {
    for (int i = 16; i < 32; ++i) table[i] = -1;
  }
};
template <class Word> constexpr LaneMask<Word> kLaneMask;

// The lanes first … end - 1 of the sixteen elements at p; the others are zero, and their memory is not touched.
template <class T> BN_INLINE Lanes<Compute<T>> load_some(const T* p, int64_t first, int64_t end) {
#if defined(__AVX2__)
  if constexpr (std::is_same<T, float>::value) {
    F16 r;
#if defined(__AVX512F__)
    r.v[0] = (F16::V)_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << end) - (1u << first)), p);
#else
    const int32_t *from = kLaneMask<int32_t>.table + 16 - first, *to = kLaneMask<int32_t>.table + 32 - end;
    BN_EACH(float, i) {
      const __m256i after = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + 8 * i));
      const __m256i before = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(to + 8 * i));
      r.v[i] = (F16::V)_mm256_maskload_ps(p + 8 * i, _mm256_and_si256(after, before));
    }
#endif
    return r;
  }
#endif
  Compute<T> c[16] = {};
  for (int64_t i = first; i < end; ++i) {
    if constexpr (std::is_same<T, double>::value) c[i] = p[i];
    else c[i] = to_float(p[i]);
  }
  return load_raw(c);
}

// The first `split` lanes of a, the others of b.
template <class C> BN_INLINE Lanes<C> join(Lanes<C> a, Lanes<C> b, int64_t split) {
  using Word = std::conditional_t<std::is_same<C, double>::value, int64_t, int32_t>;
  typedef Word Unaligned __attribute__((vector_size(kVectorBytes), aligned(sizeof(Word)), may_alias));
  const Word* first = kLaneMask<Word>.table + 32 - split;
  BN_EACH(C, i) a.v[i] = reinterpret_cast<const Unaligned*>(first)[i] < 0 ? a.v[i] : b.v[i];
  return a;
}

// Zero outside of those lanes; of all sixteen, a is vector k.
BN_INLINE D16::V keep(D16::V a, int k, int64_t first, int64_t end) {
  typedef int64_t V __attribute__((vector_size(kVectorBytes)));
  typedef int64_t Unaligned __attribute__((vector_size(kVectorBytes), aligned(8), may_alias));
  const int64_t *from = kLaneMask<int64_t>.table + 16 - first, *to = kLaneMask<int64_t>.table + 32 - end;
  return (D16::V)((V)a & reinterpret_cast<const Unaligned*>(from)[k] & reinterpret_cast<const Unaligned*>(to)[k]);
}

// Zero where the mask is 0; elsewhere it is -1.
BN_INLINE D16 keep(D16 a, const int8_t* mask) {
  typedef int64_t V __attribute__((vector_size(kVectorBytes)));
  constexpr int n = kVectorBytes / 8;
  BN_EACH(double, i) {
#if defined(__AVX512F__)
    const V kept = (V)_mm512_cvtepi8_epi64(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(mask + n * i)));
#elif defined(__AVX2__)
    const V kept = (V)_mm256_cvtepi8_epi64(_mm_loadu_si32(mask + n * i));
#else
    const V kept = {mask[n * i], mask[n * i + 1]};
#endif
    a.v[i] = (D16::V)((V)a.v[i] & kept);
  }
  return a;
}

// n lanes, the first of them `lane`.
template <class T> BN_INLINE void store_some(T* p, int64_t n, Lanes<Compute<T>> a, int64_t lane = 0) {
  T t[16];
  store(t, a);
  for (int64_t i = 0; i < n; ++i) p[i] = t[lane + i];
}

// Asks for memory that will be read soon: the hardware's prefetch starts anew in each page, and runs are often one page or less.
template <class T> BN_INLINE void prefetch(const T* p, int64_t bytes) {
  const char* from = reinterpret_cast<const char*>(p);
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(from + i);
}

}  // namespace
}  // namespace BN_ISA
}  // namespace batchnorm
