#include "call/running.h"

#include <cmath>
#include <limits>

namespace batchnorm {
namespace {

double averaged(double a, double batch, double running) { return a * batch + (1 - a) * running; }

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

}  // namespace

Moved::Moved(const Running& running, const Statistics& batch, int64_t C, double a, int correction)
    : running_(running), C_(C), values_(running.count ? 4 * C : 2 * C), rows_{values_, values_ + C, nullptr, nullptr} {
  read_channels(running.mean, rows_.mean), read_channels(running.var, rows_.var);
  if (running.count) {
    rows_.count = rows_.var + C, rows_.gap = rows_.count + C;
    read_channels(running.count, rows_.count);
  }
  move_rows(rows_, batch, C, a, correction);
}

int64_t Moved::first_not_finite() const {
  const auto finite = [&](int64_t c) {
    return std::isfinite(stored(running_.mean, rows_.mean[c])) && std::isfinite(stored(running_.var, rows_.var[c])) &&
           (rows_.gap == nullptr || std::isfinite(rows_.gap[c]));
  };
  int64_t c = 0;
  while (c < C_ && finite(c)) ++c;
  return c;
}

void Moved::store() const {
  write_channels(running_.mean, rows_.mean), write_channels(running_.var, rows_.var);
  if (running_.count) write_channels(running_.count, rows_.count);
}

}  // namespace batchnorm
