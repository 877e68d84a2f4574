#include "torch_calls.h"

#include <cmath>
#include <cstring>

#include "convert.h"
#include "select.h"

namespace batchnorm {
namespace {

constexpr uint64_t kChannelsOnAxis1 = 2;

bool is_floating(DType dtype) { return dtype != DType::boolean; }
bool is_16_bit(DType dtype) { return dtype == DType::f16 || dtype == DType::bf16; }

double read(const View& v, int64_t i) {
  switch (v.dtype) {
    case DType::f64: return reinterpret_cast<const double*>(v.data)[i];
    case DType::f32: return reinterpret_cast<const float*>(v.data)[i];
    case DType::f16: return to_float(reinterpret_cast<const Half*>(v.data)[i]);
    case DType::bf16: return to_float(reinterpret_cast<const BFloat16*>(v.data)[i]);
    default: return reinterpret_cast<const uint8_t*>(v.data)[i];
  }
}

void write(const View& v, int64_t i, double value) {
  switch (v.dtype) {
    case DType::f64: reinterpret_cast<double*>(v.data)[i] = value; return;
    case DType::f16: reinterpret_cast<Half*>(v.data)[i] = to_half(static_cast<float>(value)); return;
    case DType::bf16: reinterpret_cast<BFloat16*>(v.data)[i] = to_bfloat16(static_cast<float>(value)); return;
    default: reinterpret_cast<float*>(v.data)[i] = static_cast<float>(value);
  }
}

double channel(const View& v, int64_t c) { return read(v, c * v.strides[0]); }
void set_channel(const View& v, int64_t c, double value) { write(v, c * v.strides[0], value); }

// Broadcast to x: where it has one element along an axis, it is met again and again.
class Expanded {
 public:
  Expanded(const View& v, const View& x) : view_(v) {
    for (int d = 0; v && d < x.ndim; ++d) strides_[d] = v.sizes[d] == 1 ? 0 : v.strides[d];
    view_.sizes = x.sizes, view_.strides = strides_;
  }
  Expanded(const Expanded&) = delete;
  Expanded& operator=(const Expanded&) = delete;
  const View& view() const { return view_; }

 private:
  View view_;
  int64_t strides_[kMaxDims];
};

// A channel's values as doubles, or null where there are none.
class Doubles {
 public:
  Doubles(const View& v, int64_t C) {
    if (!v) return;
    values_.resize(static_cast<size_t>(C));
    for (int64_t c = 0; c < C; ++c) values_[static_cast<size_t>(c)] = channel(v, c);
  }
  const double* get() const { return values_.empty() ? nullptr : values_.data(); }

 private:
  std::vector<double> values_;
};

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

Statistics rows_of(double* stats, int64_t C) { return {stats, stats + C, stats + 2 * C, stats + 3 * C, nullptr}; }

// Statistics that were given stand for one position: m2 is the variance.
void set_given(const Statistics& to, const ChannelViews& channels, int64_t C) {
  for (int64_t c = 0; c < C; ++c)
    to.count[c] = 1, to.mean[c] = channel(channels.mean, c), to.mean_low[c] = 0, to.m2[c] = channel(channels.var, c);
}

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
  fused_forward(x, y, parameters, {}, eps, table.row(0), threads);
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
  fused_forward(x, y, channels, {}, eps, table.row(0), threads);
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
  const Doubles weight(saved.weight, C);
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

void fused_forward(const View& x, const View& y, const ChannelViews& channels, const Extras& extras, double eps, double* stats,
                   int threads) {
  Problem p;
  std::vector<Operand> operands{{&Problem::x, x}, {&Problem::y, y}};
  if (extras.residual) operands.push_back({&Problem::residual, extras.residual});
  const Expanded weights(extras.weights, x);
  if (extras.weights) operands.push_back({&Problem::weights, weights.view()});
  collapse(p, kChannelsOnAxis1, operands);
  const int64_t C = x.sizes[1];
  p.stats = rows_of(stats, C);
  p.compute_stats = !channels.mean;
  if (channels.mean) set_given(p.stats, channels, C);
  const Doubles weight(channels.weight, C), bias(channels.bias, C);
  p.weight = weight.get(), p.bias = bias.get();
  p.eps = eps;
  p.activation = extras.activation, p.slope = extras.slope;
  p.threads = threads;
  active_kernels().forward(p);
}

void fused_backward(const View& grad_y, const View& x, const double* stats, const ChannelViews& channels, const Extras& extras,
                    double eps, bool training, const FusedGradients& grads, int threads) {
  Problem p;
  std::vector<Operand> operands{{&Problem::x, x}, {&Problem::grad_y, grad_y}, {&Problem::grad_x, grads.x}};
  if (extras.residual) operands.push_back({&Problem::residual, extras.residual});
  if (grads.residual) operands.push_back({&Problem::grad_residual, grads.residual});
  const Expanded weights(extras.weights, x);
  if (extras.weights && training) operands.push_back({&Problem::weights, weights.view()});
  collapse(p, kChannelsOnAxis1, operands);
  const int64_t C = x.sizes[1];
  p.stats = rows_of(const_cast<double*>(stats), C);  // only read in a backward
  const Doubles weight(channels.weight, C), bias(channels.bias, C);
  std::vector<double> sums(static_cast<size_t>(2 * C));
  p.weight = weight.get(), p.bias = bias.get();
  p.eps = eps;
  p.activation = extras.activation, p.slope = extras.slope;
  p.training = training;
  p.grad_weight = sums.data(), p.grad_bias = sums.data() + C;
  p.threads = threads;
  active_kernels().backward(p);
  for (int64_t c = 0; c < C; ++c) set_channel(grads.weight, c, p.grad_weight[c]), set_channel(grads.bias, c, p.grad_bias[c]);
}

std::string refused_operands(const View& x, std::initializer_list<View> like_x, const ChannelViews& channels, const View& stats) {
  if (x.ndim < 2 || x.ndim > kMaxDims || !is_floating(x.dtype)) return "x must be floating point and have channels on axis 1";
  for (int d = 0; d < x.ndim; ++d)
    if (x.sizes[d] == 0) return "x must not be empty";
  for (const View& v : like_x) {
    bool same = !v || (v.ndim == x.ndim && v.dtype == x.dtype);
    for (int d = 0; same && v && d < x.ndim; ++d) same = v.sizes[d] == x.sizes[d];
    if (!same) return "residual and grad_y must have x's shape and dtype";
  }
  for (const View* v : {&channels.weight, &channels.bias, &channels.mean, &channels.var})
    if (*v && (v->ndim != 1 || v->sizes[0] != x.sizes[1] || !is_floating(v->dtype)))
      return "x has " + std::to_string(x.sizes[1]) + " channels; weight, bias and running statistics must have a value for each";
  if (static_cast<bool>(channels.mean) != static_cast<bool>(channels.var)) return "running_mean and running_var go together";
  if (stats && (stats.dtype != DType::f64 || stats.ndim != 2 || stats.sizes[0] != 4 || stats.sizes[1] != x.sizes[1] ||
                stats.strides[1] != 1 || stats.strides[0] != x.sizes[1]))
    return "stats must be the table that forward returned";
  return "";
}

std::string refused_weights(const View& x, const View& weights) {
  bool fits = weights.ndim == x.ndim && weights.sizes[1] == 1 && !is_16_bit(weights.dtype);
  int64_t elements = 1, repeats = 1;  // how often x meets each of them
  for (int d = 0; fits && d < x.ndim; ++d) {
    fits = weights.sizes[d] == 1 || weights.sizes[d] == x.sizes[d];
    elements *= weights.sizes[d];
    if (d != 1) repeats *= x.sizes[d] / weights.sizes[d];
  }
  if (!fits) return "weights must be bool, float32 or float64 and broadcast to x, with one channel";
  int64_t positions = 0;
  for (int64_t i = 0; i < elements; ++i) {
    int64_t offset = 0;
    for (int64_t d = x.ndim - 1, rest = i; d >= 0; rest /= weights.sizes[d--])
      offset += rest % weights.sizes[d] * weights.strides[d];
    const double w = read(weights, offset);
    if (!(w >= 0) || std::isinf(w)) return "weights must be finite and non-negative; got " + std::to_string(w);
    if (w > 0) positions += repeats;
  }
  if (positions >= 2) return "";
  return positions == 0 ? "mask and weights select nothing: no position of any channel counts"
                        : "one counted value per channel in training, so its variance is 0";
}

// A number in a message; std::to_string prints the sign of a NaN, which says nothing.
std::string said(double value) { return std::isnan(value) ? "nan" : std::to_string(value); }

std::string update_running(const View& stats, const Running& running, const double* momentum, int correction, OnNonfinite on) {
  const bool table = stats.dtype == DType::f64 && stats.ndim == 2 && stats.sizes[0] == 4 && stats.strides[1] == 1;
  const int64_t C = table ? stats.sizes[1] : 0;
  const auto fits = [&](const View& v) { return v.ndim == 1 && v.sizes[0] == C && is_floating(v.dtype); };
  if (!table || stats.strides[0] != C || !fits(running.mean) || !fits(running.var) || running.batches == nullptr)
    return "running statistics must have a value for each channel of the table, and num_batches_tracked be one int64";
  const auto* count = reinterpret_cast<const double*>(stats.data);
  const double *mean = count + C, *m2 = count + 3 * C;
  for (int64_t c = 0; c < C; ++c) {
    if (on != OnNonfinite::propagate && !(std::isfinite(mean[c]) && std::isfinite(m2[c]))) {
      if (on == OnNonfinite::skip) return "";
      return "channel " + std::to_string(c) + " of the batch has mean " + said(mean[c]) + " and variance " +
             said(m2[c] / count[c]) + "; running statistics are left as they were (on_nonfinite='raise')";
    }
    if (!(count[c] > correction))
      return "running_var is M2 / (count - " + std::to_string(correction) +
             "), which needs weights that sum to more; got a sum of " + std::to_string(count[c]) +
             ". Scale the weights (only their ratios matter for the output), or use running_correction=0";
  }
  ++*running.batches;
  const double a = momentum ? *momentum : 1 / static_cast<double>(*running.batches);
  for (int64_t c = 0; c < C; ++c) {
    set_channel(running.mean, c, a * mean[c] + (1 - a) * channel(running.mean, c));
    set_channel(running.var, c, a * (m2[c] / (count[c] - correction)) + (1 - a) * channel(running.var, c));
  }
  return "";
}

}  // namespace batchnorm
