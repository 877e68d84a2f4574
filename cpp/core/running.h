// How a batch moves running statistics: the arithmetic, and nothing else. What is refused, and what is not to propagate, is for the
// caller to say. Off the CPU and in NumPy it is `_formulas.py`.
#pragma once

#include "core/problem.h"

namespace batchnorm {

// A double for each channel. `count`, where it is kept, is the n for which var * (n - 1) / n is the biased variance, of which var
// is the unbiased one; with a correction of 0 var is biased, and var * n / (n - 1) unbiased.
struct RunningRows {
  double *mean, *var;
  double* count;  // null where it is not kept
  double* gap;    // the unbiased variance less the biased one, after the batch; only with a count
};

// Moves them towards a batch, which has weight `a`.
void move_rows(const RunningRows& rows, const Statistics& batch, int64_t C, double a, int correction);

}  // namespace batchnorm
