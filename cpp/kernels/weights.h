// The weights of positions, which all channels share: each block is looked at once, and what its sums need to know of it is kept.
#pragma once

#include "core/problem.h"
#include "runtime/scratch.h"

namespace batchnorm {

// Which positions of a block count: with all of one weight 1, the sums are those without weights.
enum class Counted : uint8_t { all, none, some, weighted };

struct BlockWeights {
  Counted counted = Counted::all;
  double total = 0;
  int64_t heaviest = 0;              // within the block, the first position of the largest weight
  const uint16_t* counts = nullptr;  // some: a bit a position, sixteen a word, whole cells
  const double* values = nullptr;    // weighted: whole cells
};

// The canonical sum: sixteen lanes of eight terms, added in pairs; w goes on with zeros to a whole cell.
double sum_of_weights(const double* w, int64_t cells);

class Weights {
 public:
  // `p` in the dimensions of the weights.
  Weights(const Problem& p, int threads);
  const BlockWeights& block(int64_t b) const { return blocks_[b]; }

 private:
  const Problem& p_;
  Scratch<uint16_t> counts_;
  Scratch<double> values_;  // of all positions, if they are more than a mask
  Scratch<BlockWeights> blocks_;

  BlockWeights look_at(int64_t b) const;
};

// What each position's share in the gradients of mean and variance is multiplied with: its weight in this unit, in the compute
// type, of `size` bytes; for whole blocks.
void read_factors(const Problem& p, double unit, int64_t size, char* to, int threads);

// Reduced dimensions that are one in every data array's memory become one, where only the weights kept them apart. Position numbers
// stay what they are.
void join_positions(Problem& p);

}  // namespace batchnorm
