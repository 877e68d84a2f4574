// What the operations of our modules mean, on views of memory. Knows nothing of tensors. Channels are on axis 1.
//
// Tables of statistics have rows of C doubles, or, of G ghosts of samples, of G x C: count, mean, mean_low, m2. Tables of sums have
// the sum of g * xhat and of g, where g is the gradient before the activation.
#pragma once

#include <initializer_list>
#include <string>

#include "call/running.h"

namespace batchnorm {

struct Extras {
  View weights;   // mask (bool) or weights, broadcast to x, with one channel
  View residual;  // of x's shape
  Activation activation = Activation::none;
  double slope = 0;
  View y;  // backward: what came out of the forward, in place of the residual
};

struct Run {
  double eps = 0;
  int64_t ghost_size = 0;  // samples of a ghost batch; 0: all are one
  int threads = 1;
};

int64_t ghosts_of(const View& x, int64_t ghost_size);  // how many there are

// With a mean and var given they normalize (evaluation), and the table becomes theirs; with `known` the table's do; else x's own.
void fused_forward(const View& x, const View& y, const ChannelViews& channels, const Extras& extras, const Run& run,
                   double* moments, bool known, double* rstd = nullptr);

struct FusedGradients {  // those that are wanted
  View x, residual, weight, bias;
};
void fused_backward(const View& grad_y, const View& x, const double* moments, const ChannelViews& channels, const Extras& extras,
                    const Run& run, bool training, const FusedGradients& grads);

// The backward of a forward with a mean and var given, where nobody asks for the gradients of weight and bias: without x.
void frozen_gradients(const View& grad_y, const double* moments, const ChannelViews& channels, const Extras& extras, const Run& run,
                      const FusedGradients& grads);  // by x and residual

// The parts of these two, for statistics that are merged with others in between.
void gather_moments(const View& x, const View& weights, const Run& run, double* moments);
void gather_sums(const View& grad_y, const View& x, const double* moments, const ChannelViews& channels, const Extras& extras,
                 const Run& run, double* sums);  // with one row of statistics for all ghosts
void input_gradients(const View& grad_y, const View& x, const double* moments, const double* sums, const ChannelViews& channels,
                     const Extras& extras, const Run& run, const FusedGradients& grads);  // by x and residual

// Why operands are refused, or empty: those of x's shape, those with a value a channel (weight and bias may have a row for each
// ghost), a table of statistics or sums (or none) of so many rows.
std::string refused_operands(const View& x, std::initializer_list<View> like_x, const ChannelViews& channels, int64_t ghosts = 0);
std::string refused_table(const View& x, const View& table, int rows, int64_t ghosts);

// Why y does not stand for the residual, or empty: the activation must leave each value on its side of a corner, and so must
// rounding to x's dtype. 16-bit floats round values above 0 to 0, and values below 6 to 6. `rounded`: y will do for ReLU even so,
// as for PyTorch's.
std::string refused_y(const View& x, const Extras& extras, bool rounded);

// Why weights are refused, or empty; and, where at least so many positions of each ghost have to count, why they do not. A negative
// number looks at their shape only: backward does not recheck what forward accepted.
std::string refused_position_weight(const View& x, const View& weights, int64_t ghost_size, int64_t least);

enum class OnNonfinite : int { propagate = 0, skip = 1, raise = 2 };

// Moves running statistics towards a batch's: all of them, or none. Without momentum: the mean over all batches. What is not to
// propagate is what would not be finite *as it is stored*. Returns why it is refused, or empty.
std::string update_running(const View& moments, const Running& running, int64_t* batches, const double* momentum, int correction,
                           OnNonfinite on);

}  // namespace batchnorm
