// 16-bit floats to float and back, scalar: exact one way, rounded to nearest even the other.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/problem.h"

namespace batchnorm {
namespace {

inline uint32_t bits_of(float f) {
  uint32_t u;
  std::memcpy(&u, &f, 4);
  return u;
}
inline float float_of(uint32_t u) {
  float f;
  std::memcpy(&f, &u, 4);
  return f;
}

inline float to_float(BFloat16 b) { return float_of(static_cast<uint32_t>(b.bits) << 16); }

inline BFloat16 to_bfloat16(float f) {
  const uint32_t u = bits_of(f);
  const uint32_t nan = (u >> 16) | 0x40u;  // keep it a NaN: quiet
  const uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  return {static_cast<uint16_t>((u & 0x7fffffffu) > 0x7f800000u ? nan : rounded)};
}

inline float to_float(Half h) {
  const uint32_t sign = static_cast<uint32_t>(h.bits & 0x8000u) << 16;
  const uint32_t rest = h.bits & 0x7fffu;
  if (rest >= 0x7c00u) {  // infinity, NaN (quiet, as the hardware makes it)
    return float_of(sign | 0x7f800000u | ((rest & 0x3ffu) << 13) | (rest > 0x7c00u ? 0x400000u : 0u));
  }
  // The exponents of both formats differ by 112; multiplying by 2^112 also makes subnormals right.
  return float_of(sign | bits_of(float_of(rest << 13) * 0x1p112f));
}

inline Half to_half(float f) {
  const uint32_t u = bits_of(f), sign = (u >> 16) & 0x8000u, rest = u & 0x7fffffffu;
  if (rest > 0x7f800000u) return {static_cast<uint16_t>(sign | 0x7e00u | ((rest >> 13) & 0x3ffu))};
  if (rest >= 0x477ff000u) return {static_cast<uint16_t>(sign | 0x7c00u)};  // 65520 and above round to infinity
  if (rest < 0x38800000u) {                                                 // below 2^-14: subnormal
    // Adding 0.5 puts the unit of half's subnormals, 2^-24, into the last place of float: the addition rounds.
    return {static_cast<uint16_t>(sign | (bits_of(float_of(rest) + 0.5f) - 0x3f000000u))};
  }
  const uint32_t odd = (rest >> 13) & 1u;
  return {static_cast<uint16_t>(sign | ((rest - 0x38000000u + 0xfffu + odd) >> 13))};
}

inline float to_float(float f) { return f; }

// One value of any type, as a double.
inline double value_at(DType dtype, const char* from, int64_t i) {
  switch (dtype) {
    case DType::f64: return reinterpret_cast<const double*>(from)[i];
    case DType::f32: return reinterpret_cast<const float*>(from)[i];
    case DType::f16: return to_float(reinterpret_cast<const Half*>(from)[i]);
    case DType::bf16: return to_float(reinterpret_cast<const BFloat16*>(from)[i]);
    default: return reinterpret_cast<const uint8_t*>(from)[i] != 0;
  }
}
inline void put_value(DType dtype, char* to, int64_t i, double value) {
  switch (dtype) {
    case DType::f64: reinterpret_cast<double*>(to)[i] = value; break;
    case DType::f16: reinterpret_cast<Half*>(to)[i] = to_half(static_cast<float>(value)); break;
    case DType::bf16: reinterpret_cast<BFloat16*>(to)[i] = to_bfloat16(static_cast<float>(value)); break;
    default: reinterpret_cast<float*>(to)[i] = static_cast<float>(value);
  }
}

}  // namespace
}  // namespace batchnorm
