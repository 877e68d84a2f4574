#include "torch_calls.h"

#include <cmath>
#include <cstring>

#include "fused_calls.h"
#include "select.h"

namespace batchnorm {
namespace {

// Rows count, mean, mean_low, m2 and, where the caller knows it, 1/std.
class Table {
 public:
  explicit Table(int64_t C) : C_(static_cast<size_t>(C)), values_(5 * C_) {}
  double* row(int i) { return values_.data() + static_cast<size_t>(i) * C_; }
  Statistics statistics() { return {row(0), row(1), row(2), row(3), nullptr}; }

 private:
  size_t C_;
  std::vector<double> values_;
};

// What stands behind a saved mean: a mark, and the table of the forward.
constexpr double kMark = 0x1.b47c40feedp+77;

char* tail_of(const View& save_mean, int64_t C) {
  const int64_t bytes = C * bytes_of(save_mean.dtype);
  return save_mean.data + (bytes + 7) / 8 * 8;
}

void write_tail(const View& save_mean, const double* table, int64_t C) {
  char* tail = tail_of(save_mean, C);
  std::memcpy(tail, &kMark, sizeof kMark);
  std::memcpy(tail + sizeof kMark, table, static_cast<size_t>(4 * C) * sizeof *table);
}

double rounded_to(DType dtype, double value) {
  switch (dtype) {
    case DType::f64: return value;
    case DType::f16: return to_float(to_half(static_cast<float>(value)));
    case DType::bf16: return to_float(to_bfloat16(static_cast<float>(value)));
    default: return static_cast<float>(value);
  }
}

double rstd_of(const double* table, int64_t C, int64_t c, double eps) { return 1 / std::sqrt(table[3 * C + c] / table[c] + eps); }

// The exact statistics behind what was saved, if they are those that were rounded to it. (A caller may hand over any.)
bool read_tail(const ChannelViews& saved, int64_t m, int64_t C, double eps, double* table) {
  const char* tail = tail_of(saved.mean, C);
  if (std::memcmp(tail, &kMark, sizeof kMark) != 0) return false;
  std::memcpy(table, tail + sizeof kMark, static_cast<size_t>(4 * C) * sizeof *table);
  for (int64_t c = 0; c < C; ++c) {
    const bool same = table[c] == static_cast<double>(m) && rounded_to(saved.mean.dtype, table[C + c]) == channel(saved.mean, c) &&
                      rounded_to(saved.var.dtype, rstd_of(table, C, c, eps)) == channel(saved.var, c);
    if (!same) return false;
  }
  return true;
}

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
  return (values + 7) / 8 * 8 - values + 8 * (1 + 4 * n);
}

void aten_forward_training(const View& x, const View& y, const ChannelViews& channels, double momentum, double eps,
                           const View& save_mean, const View& save_invstd, int threads) {
  const int64_t C = x.sizes[1];
  Table table(C);
  ChannelViews parameters = channels;
  parameters.mean = parameters.var = View();
  fused_forward(x, y, parameters, {}, {eps, 0, threads}, table.row(0), false);
  write_tail(save_mean, table.row(0), C);
  for (int64_t c = 0; c < C; ++c) {
    const double count = table.row(0)[c], mean = table.row(1)[c], m2 = table.row(3)[c];
    set_channel(save_mean, c, mean);
    set_channel(save_invstd, c, rstd_of(table.row(0), C, c, eps));
    if (!channels.mean) continue;
    set_channel(channels.mean, c, momentum * mean + (1 - momentum) * channel(channels.mean, c));
    set_channel(channels.var, c, momentum * (m2 / (count - 1)) + (1 - momentum) * channel(channels.var, c));
  }
}

void aten_forward_evaluation(const View& x, const View& y, const ChannelViews& channels, double eps, int threads) {
  Table table(x.sizes[1]);
  fused_forward(x, y, channels, {}, {eps, 0, threads}, table.row(0), false);
}

void aten_backward(const View& grad_y, const View& x, const ChannelViews& saved, bool has_tail, bool training, double eps,
                   const AtenGradients& grads, int threads) {
  const int64_t C = x.sizes[1];
  int64_t m = 1;
  for (int d = 0; d < x.ndim; ++d) m *= d == 1 ? 1 : x.sizes[d];
  Table table(C);
  Problem p;
  std::vector<Operand> operands{{&Problem::x, x}, {&Problem::grad_y, grad_y}};
  if (grads.x) operands.push_back({&Problem::grad_x, grads.x});
  collapse(p, kChannelsOnAxis1, operands);
  p.stats = table.statistics();
  if (!(training && has_tail && read_tail(saved, m, C, eps, table.row(0)))) {
    set_given(p.stats, saved, C);
    for (int64_t c = 0; training && c < C; ++c) table.row(0)[c] = static_cast<double>(m), table.row(4)[c] = channel(saved.var, c);
    if (training) p.stats.rstd = table.row(4);
  }
  const Doubles weight(saved.weight);
  std::vector<double> sums(static_cast<size_t>(2 * C));
  p.weight = weight.get();
  p.eps = eps;
  p.training = training;
  p.grad_weight = sums.data(), p.grad_bias = sums.data() + C;
  p.threads = threads;
  active_kernels().backward(p);
  for (int64_t c = 0; c < C; ++c) {
    if (grads.weight) set_channel(grads.weight, c, p.grad_weight[c]);
    if (grads.bias) set_channel(grads.bias, c, p.grad_bias[c]);
  }
}

}  // namespace batchnorm
