// A step of our modules under autograd's own node: that of ATen's `_batch_norm_no_update` runs in C++, one that calls
// `batchnorm::backward` would run in Python. A momentum that is not a number says that a call of it is ours. It returns y and, in
// the place of the reserve, the table of `batchnorm::forward`; the node hands that to `batch_norm_backward`, which knows by it
// whose it is. Without running statistics it is a step of training.
#pragma once

#include "call/channel_views.h"
#include "libtorch/operations.h"

namespace batchnorm {

bool is_step(double momentum);
bool is_of_step(const stable::Handle& reserve);

// Given a mean and a var they normalize.
void step_forward(const View& x, const stable::Handle& y, const stable::Handle& moments, const ChannelViews& channels, double eps);

// Whether the node can keep what they are, and the kernels take it.
bool is_served_step(const View& x, const ChannelViews& channels, double eps);

// Undefined results say that our modules have to go another way: operands are refused, or of several dtypes, or a bias stands
// alone.
void give_nothing(stable::Value* results, int count);

// The kernel of `batchnorm::step_backward`, and a call of it through the dispatcher, for whoever listens there.
void step_backward_kernel(stable::Value* stack, uint64_t, uint64_t);
void call_step_backward(stable::Handle grad_y, stable::Handle x, stable::Handle moments, stable::Handle weight, double eps,
                        bool training, const std::array<bool, 3>& wanted, stable::Value* results);

}  // namespace batchnorm
