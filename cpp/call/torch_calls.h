// What PyTorch's batch-norm functions mean, on views of memory: which inputs are served, statistics saved and running statistics
// moved as PyTorch does it. Knows nothing of tensors. Channels are on axis 1.
#pragma once

#include "call/channel_views.h"

namespace batchnorm {

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

}  // namespace batchnorm
