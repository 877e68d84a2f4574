// One batch-normalization problem as the kernels see it: sizes, strides and pointers; no NumPy, no PyTorch.
#pragma once

#include <cstdint>

#include "core/activations.h"

namespace batchnorm {

enum class DType : int { f64 = 0, f32 = 1, f16 = 2, bf16 = 3, boolean = 4 };

// Storage types of 16-bit floats; arithmetic happens in float.
struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

constexpr int kMaxDims = 64;    // NumPy's limit
constexpr int64_t kLanes = 16;  // the canonical order of summation: see docs/architecture.md
constexpr int64_t kBlock = 2048;
constexpr int64_t kScattered = 128;  // positions of a block at which its shift is looked for

// Strides count elements, one for each collapsed reduced dimension and each collapsed channel dimension.
struct Array {
  char* data = nullptr;
  DType dtype = DType::f32;
  int64_t reduced[kMaxDims];  // only those of the problem's dimensions have values
  int64_t channel[kMaxDims];
  const char* end = nullptr;  // one past the highest byte that belongs to the array

  explicit operator bool() const { return data != nullptr; }
};

// Per-channel values, one float64 for each of C channels. Null where absent.
struct Statistics {
  double* count = nullptr;
  double* mean = nullptr;
  double* mean_low = nullptr;  // mean + mean_low is the mean to about 106 bits
  double* m2 = nullptr;
  const double* rstd = nullptr;  // 1 / sqrt(var + eps) where it is known already; else it comes from m2 and count
  double* new_rstd = nullptr;    // forward with y: where it is written
};

struct Problem {
  // Collapsed logical sizes. Positions of a channel are numbered row-major over `reduced`, channels over `channel`.
  int reduced_dims = 0, channel_dims = 0;
  int64_t reduced[kMaxDims], channel[kMaxDims];
  int64_t m = 1, C = 1;

  DType dtype = DType::f32;
  Array x, y, residual, weights;        // forward; weights are bool, float32 or float64 with channel strides 0
  Array grad_y, grad_x, grad_residual;  // backward; without grad_x only the sums

  Statistics moments;              // written where compute_moments, else read
  const double* weight = nullptr;  // gamma
  const double* bias = nullptr;    // beta
  double eps = 0;
  Activation activation = Activation::none;
  double slope = 0;               // the number that goes with the activation
  bool compute_moments = true;    // forward: gather the moments first
  bool omit = false;              // a cell whose x is NaN is missing: it is in no sum and no count, and its gradients are 0
  bool training = true;           // backward: the moments depend on x
  bool compute_sums = true;       // backward: gather the sums first; else they are given, as those of a larger batch are
  bool only_activation = false;   // backward: grad_x is the gradient before the activation, and nothing else is asked for
  bool residual_is_y = false;     // backward: `residual` holds y, which tells the activation's derivative as z would; without omit
  double* grad_weight = nullptr;  // backward: sum of g * xhat and sum of g, always C values each
  double* grad_bias = nullptr;
  int threads = 1;
};

// Every implementation of the operations, in one table each; `select.cpp` lists them.
struct Kernels {
  const char* name;
  void (*forward)(const Problem&);  // moments and / or normalize
  void (*backward)(const Problem&);
  void (*copy)(char* to, const char* from, int64_t bytes, int threads, bool streaming);  // the yardsticks of benchmarks
  uint64_t (*read)(const char* from, int64_t bytes, int threads);
  void (*to_doubles)(DType dtype, double* to, const char* from, int64_t n);  // values of channels
  void (*from_doubles)(DType dtype, char* to, const double* from, int64_t n);
};

namespace reference {
extern const Kernels kernels;
}

}  // namespace batchnorm
