#include "call/torch_calls.h"

#include <cmath>
#include <cstring>

#include "call/fused_calls.h"
#include "call/running.h"
#include "kernels/select.h"

namespace batchnorm {
namespace {

// Rows count, mean, mean_low, m2 and, where the caller knows it, 1/std.
class MomentsRows {
 public:
  explicit MomentsRows(int64_t C) : C_(C), values_(5 * C) {}
  double* row(int i) { return values_ + i * C_; }
  Statistics statistics() { return {row(0), row(1), row(2), row(3)}; }

 private:
  int64_t C_;
  Scratch<double> values_;
};

// What stands behind a saved mean: a mark, the eps and the table of the forward, and what was saved, to be known again.
constexpr double kMark = 0x1.b47c40feedp+77;

class Tail {
 public:
  Tail(const View& save_mean, const View& save_invstd, int64_t C)
      : mean_(save_mean.data), invstd_(save_invstd.data), bytes_(C * bytes_of(save_mean.dtype)), table_(4 * C * 8) {
    start_ = save_mean.data + (bytes_ + 7) / 8 * 8;
  }

  void write(double eps, const double* table) {
    const double head[] = {kMark, eps};
    copy(start_, head, sizeof head), copy(start_ + 16, table, table_);
    copy(start_ + 16 + table_, mean_, bytes_), copy(start_ + 16 + table_ + bytes_, invstd_, bytes_);
  }

  // The exact statistics of m positions behind what was saved, if they are those that were rounded to it. (A caller may hand over
  // any.)
  bool read(int64_t m, double eps, double* table) const {
    const double head[] = {kMark, eps};
    if (!same(start_, head, sizeof head) || !same(start_ + 16 + table_, mean_, bytes_) ||
        !same(start_ + 16 + table_ + bytes_, invstd_, bytes_))
      return false;
    copy(table, start_ + 16, table_);
    return table[0] == static_cast<double>(m);
  }

 private:
  char* start_;
  const char *mean_, *invstd_;
  int64_t bytes_, table_;

  static void copy(void* to, const void* from, int64_t n) { std::memcpy(to, from, static_cast<size_t>(n)); }
  static bool same(const void* a, const void* b, int64_t n) { return std::memcmp(a, b, static_cast<size_t>(n)) == 0; }
};

}  // namespace

bool serves(const View& x, const ChannelViews& channels, bool training, double eps) {
  if (x.ndim < 2 || x.ndim > kMaxDims || !is_floating(x.dtype) || !(eps > 0)) return false;
  for (int d = 0; d < x.ndim; ++d)
    if (x.sizes[d] == 0) return false;
  if (static_cast<bool>(channels.mean) != static_cast<bool>(channels.var) || (!training && !channels.mean)) return false;
  const DType parameters = saved_dtype(x, channels);
  if (parameters != x.dtype && !(is_16_bit(x.dtype) && parameters == DType::f32)) return false;
  for (const View* v : {&channels.weight, &channels.bias, &channels.mean, &channels.var})
    if (*v && (v->dtype != parameters || v->ndim != 1 || v->sizes[0] != x.sizes[1])) return false;
  return true;
}

DType saved_dtype(const View& x, const ChannelViews& channels) {
  for (const View* v : {&channels.weight, &channels.bias, &channels.mean, &channels.var})
    if (*v) return v->dtype;
  return x.dtype;
}

int64_t tail_bytes(int64_t n, DType dtype) {
  const int64_t values = n * bytes_of(dtype);
  return (values + 7) / 8 * 8 - values + 8 * (2 + 4 * n) + 2 * values;
}

void aten_forward_training(const View& x, const View& y, const ChannelViews& channels, double momentum, double eps,
                           const View& save_mean, const View& save_invstd, int threads) {
  const int64_t C = x.sizes[1];
  MomentsRows table(C);
  ChannelViews parameters = channels;
  parameters.mean = parameters.var = View();
  fused_forward(x, y, parameters, {}, {eps, 0, threads}, table.row(0), false, table.row(4));
  write_channels(save_mean, table.row(1)), write_channels(save_invstd, table.row(4));
  Tail(save_mean, save_invstd, C).write(eps, table.row(0));
  if (channels.mean) Moved({channels.mean, channels.var, {}}, table.statistics(), C, momentum, 1).store();
}

void aten_forward_evaluation(const View& x, const View& y, const ChannelViews& channels, double eps, int threads) {
  MomentsRows table(x.sizes[1]);
  fused_forward(x, y, channels, {}, {eps, 0, threads}, table.row(0), false);
}

void aten_backward(const View& grad_y, const View& x, const ChannelViews& saved, bool has_tail, bool training, double eps,
                   const AtenGradients& grads, int threads) {
  const int64_t C = x.sizes[1];
  int64_t m = 1;
  for (int d = 0; d < x.ndim; ++d) m *= d == 1 ? 1 : x.sizes[d];
  MomentsRows table(C);
  Problem p;
  std::vector<Operand> operands;
  operands.reserve(3);
  operands.push_back({&Problem::x, x}), operands.push_back({&Problem::grad_y, grad_y});
  if (grads.x) operands.push_back({&Problem::grad_x, grads.x});
  collapse(p, kChannelsOnAxis1, operands);
  p.moments = table.statistics();
  if (!(training && has_tail && Tail(saved.mean, saved.var, C).read(m, eps, table.row(0)))) {
    set_given(p.moments, saved, C);
    if (training) std::fill_n(table.row(0), C, static_cast<double>(m)), p.moments.rstd = p.moments.m2;
  }
  const Doubles weight(saved.weight);
  const Scratch<double> sums(2 * C);
  p.weight = weight.get();
  p.eps = eps;
  p.training = training;
  p.grad_weight = sums, p.grad_bias = sums + C;
  p.threads = threads;
  active_kernels().backward(p);
  if (grads.weight) write_channels(grads.weight, p.grad_weight);
  if (grads.bias) write_channels(grads.bias, p.grad_bias);
}

}  // namespace batchnorm
