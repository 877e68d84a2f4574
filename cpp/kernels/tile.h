// Whatever is rare, through tiles in L1: general strides, activations, residuals, weights, channels outside float's range, and what
// is summed again in double. A tile is gathered, brought to the compute type, and goes through leaves one after another.
#pragma once

#include "kernels/call.h"

namespace batchnorm {

class Tile {
 public:
  static constexpr int64_t kElements = 2048, kWidth = 256;

  explicit Tile(const Call& call) : call_(call), p_(call.p), size_(call.data.compute) {}

  // Which channels: positions of one, sixteen at a time; or rows of some side by side.
  void channel(int64_t c) { take(c, 1, false); }
  void rows(int64_t c, int64_t width) { take(c, width, true); }

  // How many positions a tile holds.
  int64_t most() const { return side_by_side_ ? kElements / whole_ : kElements / 2; }

  // Sums of up to a block, those of moments in double, added to acc[8][1 or 16]: rows are then of up to sixteen channels. `counts`:
  // as leaves take them.
  void add_moments(int64_t r, int64_t n, const uint16_t* counts, const double* K, double* acc);
  void add_sums(int64_t r, int64_t n, bool in_double, double* acc);

  // Elements: y, or grad_x and grad_residual. Up to most() positions.
  void apply(int64_t r, int64_t n);

 private:
  const Call& call_;
  const Problem& p_;
  const int64_t size_;  // of the compute type
  int64_t c_ = 0, width_ = 1, whole_ = kLanes, r_ = 0, n_ = 0;
  bool side_by_side_ = false, has_coefs_ = false, any_wide_ = false, any_wide_z_ = false;
  // In the compute type, but for raw_; wide_x_ and wide_h_ in double.
  alignas(64) char raw_[kElements * 8 + 64], x_[kElements * 8], h_[kElements * 8], z_[kElements * 8], r_tile_[kElements * 8];
  alignas(64) double wide_x_[kElements], wide_h_[kElements];
  // A value for each column of the tile: coefficients, zeros, negative zeros, and which columns are wide.
  enum Row { center, scale, shift, k1, k0, zero, minus_zero, is_wide, is_wide_z, row_count };
  alignas(64) char coefs_[row_count][kWidth * 8];
  alignas(64) double wide_coefs_[row_count][kWidth];

  void take(int64_t c, int64_t width, bool side_by_side);
  void at(int64_t r, int64_t n) { r_ = r, n_ = n; }
  int64_t elements() const { return side_by_side_ ? n_ * whole_ : (n_ + kLanes - 1) / kLanes * kLanes; }
  void make_coefs(bool with_sums);
  char* row_of(bool wide, Row row) { return wide ? reinterpret_cast<char*>(wide_coefs_[row]) : coefs_[row]; }
  Coefs coefs(bool wide, Row a = center, Row b = scale, Row c = shift) {
    return {row_of(wide, a), row_of(wide, b), row_of(wide, c), row_of(wide, k1), row_of(wide, k0)};
  }
  void load(const Array& a, char* to);
  void store(const Array& a, const char* from);
  void forward();
  void backward();
  void apply(bool wide, char* to, const char* from, const char* residual, Coefs k);
  void normalize();
  void gradients(bool with_sums);
  void reduce(bool as_moments, bool in_double, char* d, char* h, const uint16_t* counts, double* acc);
};

}  // namespace batchnorm
