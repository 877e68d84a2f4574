// Words for one double that simd.h has for sixteen, so that a formula of a channel is written once for both.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

namespace batchnorm {

template <class D> struct Numbers;
template <> struct Numbers<double> {
  static double all(double v) { return v; }
  static double at(const double* from) { return *from; }
  static void put(double* to, double v) { *to = v; }
};

namespace {  // one copy for each instruction set, as in simd.h

// A NaN compares false.
inline double if_less(double a, double b, double yes, double no) { return a < b ? yes : no; }
inline double if_at_most(double a, double b, double yes, double no) { return a <= b ? yes : no; }
inline double absolute(double v) { return std::fabs(v); }
inline double root(double v) { return std::sqrt(v); }
inline double through_float(double v) { return static_cast<double>(static_cast<float>(v)); }

template <class D> inline D if_finite(D v, D yes, D no) {
  return if_at_most(absolute(v), Numbers<D>::all(std::numeric_limits<double>::max()), yes, no);
}

}  // namespace
}  // namespace batchnorm
