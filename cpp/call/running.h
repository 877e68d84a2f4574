// Running statistics in memory of any dtype, moved by a batch.
#pragma once

#include "call/channel_views.h"
#include "core/running.h"

namespace batchnorm {

struct Running {
  View mean, var, count;  // count: see core/running.h; none where it is not kept
};

// What a batch makes of them, until it is stored.
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
