#include "core/running.h"

#include <limits>

namespace batchnorm {
namespace {

double averaged(double a, double batch, double running) { return a * batch + (1 - a) * running; }

}  // namespace

void move_rows(const RunningRows& rows, const Statistics& batch, int64_t C, double a, int correction) {
  const int rest = 1 - correction;
  for (int64_t c = 0; c < C; ++c) {
    const double n = batch.count[c], m2 = batch.m2[c], before = rows.var[c];
    rows.mean[c] = averaged(a, batch.mean[c], rows.mean[c]);
    rows.var[c] = averaged(a, m2 / (n - correction), before);
    if (rows.count == nullptr) continue;
    // Both variances are averages with the same weights, so the gap between them is one, too.
    rows.gap[c] = averaged(a, m2 / (n * (n - 1)), before / (rows.count[c] - rest));
    rows.count[c] = rows.gap[c] == 0 ? std::numeric_limits<double>::infinity() : rows.var[c] / rows.gap[c] + rest;
  }
}

}  // namespace batchnorm
