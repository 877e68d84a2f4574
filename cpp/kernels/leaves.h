// The leaf functions: loops over memory that stands together, for one data type in one instruction set. A table of pointers to
// them for each; everything else is compiled once, for any processor. Bits follow reference.cpp.
#pragma once

#include <cstdint>

#include "core/problem.h"

namespace batchnorm {

constexpr int64_t kCell = 128;  // positions whose sums stay in the compute type: sixteen lanes, runs of eight

// Values of the compute type, one for each channel (planes) or column (rows).
struct Coefs {
  const char *center, *scale, *shift, *k1, *k0;
};

// Where positions of a channel stand in runs of `inner` >= 16: how many are left of the first, and how far the next run is from an
// end. inner == 0: all stand together.
struct Joints {
  int64_t inner = 0, left = 0, x_jump = 0, g_jump = 0;
};

// Which positions are there: those whose bit is 1 (null: all), and, where `omits`, whose x is not NaN.
struct There {
  const uint16_t* bits = nullptr;
  bool omits = false;

  bool selects() const { return bits != nullptr || omits; }
};

// `count` runs of `length` elements, each `step` elements behind the one before. What is not there is null.
struct Runs {
  char* out;
  const char *x, *g, *residual;
  int64_t count, length, out_step, x_step, g_step, residual_step;
  bool past_cache;                // whole lines of `out` are written past it; it is then none of the others
  double slope = 0;               // the number that goes with the activation
  const char* weights = nullptr;  // of gradients: of planes one a position, the same for all runs; of rows one a run
  bool omits = false;             // of gradients: 0 where x is NaN
};

// Whether an activation only keeps values within bounds. These are usual, and inside of the loops; the others pass over tiles.
inline bool is_clip(Activation act) { return act == Activation::none || act == Activation::relu || act == Activation::relu6; }

// `act` is a clip where sums and gradients are taken.
struct Leaves {
  int64_t size, compute;  // bytes of an element, of the compute type
  bool omits;             // whether sums and runs of gradients leave out what is missing; else that goes through tiles

  // Sums of `cells` cells of one channel: of d = x - K and d * d; of h = g after the activation's derivative and h * (x - center).
  // acc[8]: s, then q, of lanes mod 4; and, of moments of some, acc[8]: how many are there.
  void (*moments)(const char* x, int64_t cells, Joints joints, const char* K, There there, double* acc);
  // The same in double, of d = x - K where a position's weight is not 0, and of weight * d and weight * d * d.
  void (*moments_weighted)(const char* x, const double* weights, int64_t cells, Joints joints, double K, double* acc);
  void (*sums)(const char* x, const char* g, int64_t cells, Joints joints, Coefs k, Activation act, bool omits, double* acc);
  // The sum of the first sixteen elements at these offsets that are there, folded as lanes are; and how many they were.
  double (*sum_of)(const char* x, const int64_t* offsets, int64_t n, bool omits, int64_t* found);

  // Of a cell of rows of `width` >= 16 channels side by side, to eleven rows of the compute type, `stride` values apart. Added to
  // acc[8][W] these are s and q of lanes mod 4, W being width in whole units, the last of which is columns width - 16 … width - 1;
  // and, of moments of some, acc[8][W]: how many are there.
  void (*moments_rows)(const char* x, int64_t step, There there, int64_t width, const char* K, char* to, int64_t stride);
  void (*sums_rows)(const char* x, int64_t x_step, const char* g, int64_t g_step, There there, int64_t width, Coefs k,
                    Activation act, char* to, int64_t stride);
  // Its sums, in float64, to those of other cells; or, where they begin, in place of what is there.
  void (*add_cell)(const char* cell, int64_t stride, int64_t whole, bool counts, bool begins, double* acc);
  void (*moments_weighted_rows)(const char* x, int64_t step, const double* weights, int64_t width, const double* K, double* acc);
  // Of cells of rows of fewer than 16 channels one behind another, taken sixteen rows at a time: coefficients are repeated so
  // often. acc[8][channels], and acc[8] as above. scratch: 160 values a channel.
  void (*moments_narrow)(const char* x, int64_t cells, int64_t channels, const char* K, bool omits, char* scratch, double* acc);
  void (*sums_narrow)(const char* x, const char* g, int64_t cells, int64_t channels, Coefs k, Activation act, bool omits,
                      char* scratch, double* acc);
  // The sum of up to sixteen rows, folded as lanes are.
  void (*fold_rows)(const char* const* rows, int64_t n, int64_t width, double* sum);

  // Elements: y = fma(x - center, scale, shift) + residual; out = g after the derivative at y; and dx = (h - fma(x - center, k1,
  // k0))
  // * scale, or, without k1, h * scale. With a period, rows: columns 0, 1, …, and from it on the same again; coefficients go on for
  // 16 more. Without, planes: a channel each.
  void (*apply)(const Runs& runs, Coefs k, int64_t period, Activation act);
  void (*inner)(const Runs& runs, Coefs k, int64_t period, Activation act);
  void (*grad)(const Runs& runs, Coefs k, int64_t period, Activation act);

  // Tiles, n elements in whole units. From the data's type, less sixteen values that repeat (or null); and back.
  void (*to_compute)(char* to, const char* from, int64_t n, const char* less);
  void (*to_double)(double* to, const char* from, int64_t n, const double* less);
  void (*from_compute)(char* to, const char* from, int64_t n);

  // Of the compute type, in place.
  void (*activate)(Activation kind, double slope, char* z, int64_t n);
  void (*activate_backward)(Activation kind, double slope, char* g, const char* z, int64_t n);
  void (*add)(char* z, const char* r, int64_t n);
  // h -= w t, where w is not 0; a weight for each element, or, with a period, for as many of them.
  void (*subtract_weighted)(char* h, const char* t, const char* w, int64_t period, int64_t n);
  void (*keep_numbers)(char* h, const char* x, int64_t n);                                      // 0 where x is NaN
  void (*choose)(char* z, const double* wide, const char* is_wide, int64_t period, int64_t n);  // columns that are wide
};

// Rows of coefficients in the compute type, of `size` bytes, `stride` bytes apart; a value for each channel. `wide` is not 0 where
// they leave float's range.
struct CoefficientRows {
  enum { center, scale, shift, k1, k0, wide, count };
  char* memory;
  int64_t stride, size;
};

// Values of channels, in double. Rows of moments are count, mean, mean_low and m2, those of sums Σg and Σg(x - center).
struct PerChannel {
  // Of channels c … c + n - 1, before their sums are known, and after.
  void (*put_forward)(const Problem& p, int64_t c, int64_t n, CoefficientRows to);
  void (*put_backward)(const Problem& p, int64_t c, int64_t n, const double* const* sums, CoefficientRows to);

  // Sixteen channels of a block, or sixteen blocks: sums of so many values become shifts, there and in the compute type, if all are
  // finite; acc[8][step], sums of lanes mod 4, become moments or sums. True where all are good.
  bool (*end_shifts)(double* sums, const double* counts, int64_t size, char* to);
  bool (*end_moments)(const double* acc, int64_t step, const double* counts, const double* K, double* const* to);
  bool (*end_sums)(const double* acc, int64_t step, const double* counts, double* const* to);

  // a = a and b, of n channels.
  void (*merge_moments)(double* const* a, double* const* b, int64_t n);
  void (*merge_sums)(double* const* a, double* const* b, int64_t n);

  // Parameters, whatever type they have.
  void (*to_doubles)(DType dtype, double* to, const char* from, int64_t n);
  void (*from_doubles)(DType dtype, char* to, const double* from, int64_t n);
};

struct Isa {
  const Leaves* leaves[4];  // by DType
  const PerChannel* channels;
  // Pieces of so many bytes, `step` bytes apart, one behind another; by whole lines where the array, which ends at `end`, goes on
  // that far: `to` has room for one more.
  void (*copy_runs)(char* to, const char* from, int64_t bytes, int64_t step, int64_t count, const char* end);
  void (*stream)(char* to, const char* from, int64_t bytes);  // past the cache
  uint64_t (*add_words)(const char* from, int64_t bytes);     // little-endian
};

// The leaves of bfloat16 that store, of an instruction set that rounds to it and is another for all else.
struct Stores {
  void (*apply)(const Runs& runs, Coefs k, int64_t period, Activation act);
  void (*inner)(const Runs& runs, Coefs k, int64_t period, Activation act);
  void (*grad)(const Runs& runs, Coefs k, int64_t period, Activation act);
  void (*from_compute)(char* to, const char* from, int64_t n);
};

namespace portable {
extern const Isa isa;
}
namespace avx2 {
extern const Isa isa;
}
namespace avx512 {
extern const Isa isa;
}
namespace avx512bf16 {
extern const Stores stores;  // beside avx512
extern const Isa isa;
}  // namespace avx512bf16

}  // namespace batchnorm
