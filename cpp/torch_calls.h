// What PyTorch's batch-norm functions mean, on views of memory: which inputs are served, statistics saved and running statistics
// moved as PyTorch does it. Knows nothing of tensors. Channels are on axis 1.
#pragma once

#include <initializer_list>
#include <string>
#include <vector>

#include "collapse.h"

namespace batchnorm {

// Values of a channel each: weight, bias, running or saved statistics.
struct ChannelViews {
  View weight, bias, mean, var;
};

struct Extras {
  View weights;   // mask (bool) or weights, broadcast to x, with one channel
  View residual;  // of x's shape
  Activation activation = Activation::none;
  double slope = 0;
};

// Whether our kernels take this forward of ATen: what they do not take goes to PyTorch's own.
bool serves(const View& x, const ChannelViews& channels, bool training, double eps);

// The dtype of statistics that ATen saves: the parameters', where there are any, else x's.
DType saved_dtype(const View& x, const ChannelViews& channels);

// ATen saves a mean and 1/std rounded to the parameters' dtype. The exact statistics travel behind the saved mean, in the same
// storage: of n channels, this many bytes more.
int64_t tail_bytes(int64_t n, DType dtype);

// In training: y, what ATen saves for the backward (mean and 1/std), and the running statistics moved by `momentum`.
void aten_forward_training(const View& x, const View& y, const ChannelViews& channels, double momentum, double eps,
                           const View& save_mean, const View& save_invstd, int threads);
void aten_forward_evaluation(const View& x, const View& y, const ChannelViews& channels, double eps, int threads);

struct AtenGradients {
  View x, weight, bias;  // those that are wanted
};

// `saved.mean` and `saved.var` hold what the forward saved: mean and 1/std; in evaluation the running statistics. `has_tail`: the
// saved mean's storage has the size that a forward of ours gives it.
void aten_backward(const View& grad_y, const View& x, const ChannelViews& saved, bool has_tail, bool training, double eps,
                   const AtenGradients& grads, int threads);

// The fused operations of our modules. `stats` is a table of four rows of C doubles: count, mean, mean_low, m2. With a mean and var
// given they normalise (evaluation), and the table becomes theirs; else the batch's do.
void fused_forward(const View& x, const View& y, const ChannelViews& channels, const Extras& extras, double eps, double* stats,
                   int threads);

struct FusedGradients {
  View x, residual, weight, bias;
};
void fused_backward(const View& grad_y, const View& x, const double* stats, const ChannelViews& channels, const Extras& extras,
                    double eps, bool training, const FusedGradients& grads, int threads);

// Why operands are refused, or empty: those of x's shape, those with a value a channel, and the table of statistics (or none).
std::string refused_operands(const View& x, std::initializer_list<View> like_x, const ChannelViews& channels, const View& stats);

// Why weights are refused, or empty.
std::string refused_weights(const View& x, const View& weights);

enum class OnNonfinite : int { propagate = 0, skip = 1, raise = 2 };

struct Running {
  View mean, var;
  int64_t* batches;
};

// Moves running statistics towards a batch's: all of them, or none. Without momentum: the mean over all batches. Returns why it is
// refused, or empty.
std::string update_running(const View& stats, const Running& running, const double* momentum, int correction, OnNonfinite on);

}  // namespace batchnorm
