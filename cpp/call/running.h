// How a batch moves running statistics, in memory of any dtype. What is refused, and what is not to propagate, is for the caller to
// say. Off the CPU and in NumPy the arithmetic is `_formulas.py`.
#pragma once

#include "call/channel_views.h"

namespace batchnorm {

// A double for each channel. `count`, where it is kept, is the n for which var * (n - 1) / n is the biased variance, of which var
// is the unbiased one; with a correction of 0 var is biased, and var * n / (n - 1) unbiased.
struct RunningRows {
  double *mean, *var;
  double* count;  // null where it is not kept
  double* gap;    // the unbiased variance less the biased one, after the batch; only with a count
};

struct Running {
  View mean, var, count;  // count: as of RunningRows; none where it is not kept
};

// What a batch, which has weight `a`, makes of them, until it is stored.
class Moved {
 public:
  Moved(const Running& running, const Statistics& batch, int64_t C, double a, int correction);

  // The first channel that would not be finite as it is stored; C where all are.
  int64_t first_not_finite() const;
  void store() const;

  const RunningRows& rows() const { return rows_; }

 private:
  Running running_;
  int64_t C_;
  Scratch<double> values_;
  RunningRows rows_;
};

}  // namespace batchnorm
