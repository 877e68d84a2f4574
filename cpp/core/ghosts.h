// Ghost batches: the batch axis cut into consecutive ghosts, each a problem of its own with rows of its own; and what makes one
// row of all of them.
#pragma once

#include <vector>

#include "core/collapse.h"

namespace batchnorm {

// A table of R values a channel is (R, C), or, with ghosts, (R, G, C).
struct Ghosts {
  int axis = 0;             // of the samples: the first reduced one
  int64_t size = 1;         // samples of a ghost; the last one may have fewer
  int64_t count = 1;        // G
  int64_t channels = 1;     // C
  bool own_moments = true;  // each ghost has its own row of statistics; else all read one
  bool own_parameters = false;

  // Of so many samples each; 0: all are one ghost.
  Ghosts(const View& x, uint64_t channel_axes, int64_t samples);

  int64_t row() const { return count * channels; }  // values of a row of one value a ghost and channel
  Statistics statistics(double* table) const;       // rows count, mean, mean_low, m2
};

// Runs `kernel` on each ghost. `p` has what they share, and pointers to the first ghost's values; its arrays are filled here.
void run_ghosts(const Ghosts& ghosts, Problem& p, uint64_t channel_axes, const std::vector<Operand>& operands,
                void (*kernel)(const Problem&));

// Up the canonical tree: moments (4, G, C) to (4, C), sums (2, G, C) to (2, C).
void merge_moments(const double* table, int64_t ghosts, int64_t channels, double* merged);
void merge_sums(const double* table, int64_t ghosts, int64_t channels, double* merged);

}  // namespace batchnorm
