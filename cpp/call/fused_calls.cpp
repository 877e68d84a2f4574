#include "call/fused_calls.h"

#include <cmath>
#include <cstdio>
#include <limits>

#include "core/ghosts.h"
#include "kernels/select.h"

namespace batchnorm {
namespace {

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

// What all calls have in common; the views and parameters have to outlive it.
class Call {
 public:
  Call(const View& x, const ChannelViews& channels, const Extras& extras, const Run& run)
      : ghosts(x, kChannelsOnAxis1, run.ghost_size), weights_(extras.weights, x), weight_(channels.weight), bias_(channels.bias) {
    operands_.reserve(6);
    add(&Problem::x, x);
    add(&Problem::residual, extras.y ? extras.y : extras.residual);
    ghosts.own_parameters = (channels.weight ? channels.weight : channels.bias).ndim == 2;
    p.weight = weight_.get(), p.bias = bias_.get();
    p.eps = run.eps;
    p.activation = extras.activation, p.slope = extras.slope;
    p.residual_is_y = static_cast<bool>(extras.y);
    p.threads = run.threads;
  }

  void add(Array Problem::* array, const View& view) {
    if (view) operands_.push_back({array, view});
  }
  void add_weights() { add(&Problem::weights, weights_.view()); }
  void forward() { run_ghosts(ghosts, p, kChannelsOnAxis1, operands_, active_kernels().forward); }
  void backward() { run_ghosts(ghosts, p, kChannelsOnAxis1, operands_, active_kernels().backward); }

  Ghosts ghosts;
  Problem p;

 private:
  const Expanded weights_;
  const Doubles weight_, bias_;
  std::vector<Operand> operands_;
};

// Sums to the gradients of parameters, a row for each ghost where they have that, else all ghosts in one.
void set_parameters(const Ghosts& ghosts, const double* sums, const FusedGradients& grads) {
  const int64_t C = ghosts.channels;
  const Scratch<double> merged(ghosts.count > 1 ? 2 * C : 0);
  if (ghosts.count > 1) merge_sums(sums, ghosts.count, C, merged);
  const View* const to[] = {&grads.weight, &grads.bias};
  for (int i = 0; i < 2; ++i) {
    if (!*to[i]) continue;
    const bool each = to[i]->ndim == 2 || ghosts.count == 1;
    active_kernels().from_doubles(to[i]->dtype, to[i]->data, each ? sums + i * ghosts.row() : merged + i * C,
                                  each ? ghosts.row() : C);
  }
}

int64_t elements_of(const View& v) {
  int64_t n = 1;
  for (int d = 0; d < v.ndim; ++d) n *= v.sizes[d];
  return n;
}

// How many of n weights count, and how many are no weights.
template <class W> void count_run(const W* w, int64_t n, int64_t step, int64_t* positive, int64_t* refused) {
  constexpr W largest = std::numeric_limits<W>::max();
  int64_t counts = 0, others = 0;
  if (step == 1) {  // apart, to be vectorized
    for (int64_t i = 0; i < n; ++i) counts += w[i] > 0, others += !(w[i] >= 0 && w[i] <= largest);
  } else {
    for (int64_t i = 0; i < n; ++i) counts += w[i * step] > 0, others += !(w[i * step] >= 0 && w[i * step] <= largest);
  }
  *positive += counts, *refused += others;
}

void count_run(const View& w, int64_t offset, int64_t n, int64_t step, int64_t* positive, int64_t* refused) {
  switch (w.dtype) {
    case DType::f64: return count_run(reinterpret_cast<const double*>(w.data) + offset, n, step, positive, refused);
    case DType::f32: return count_run(reinterpret_cast<const float*>(w.data) + offset, n, step, positive, refused);
    default: return count_run(reinterpret_cast<const uint8_t*>(w.data) + offset, n, step, positive, refused);
  }
}

// How many weights are positive; or one that is no weight.
struct Counted {
  int64_t positive = 0;
  bool valid = true;
  double bad = 0;
};

// Of samples first … first + samples - 1; along what is one axis in memory.
Counted count(const View& weights, int64_t first, int64_t samples) {
  int64_t sizes[kMaxDims];
  for (int d = 0; d < weights.ndim; ++d) sizes[d] = d == 0 ? samples : weights.sizes[d];
  View part = weights;
  part.data += first * weights.strides[0] * bytes_of(weights.dtype), part.sizes = sizes;
  Problem p;
  collapse(p, 0, {{&Problem::weights, part}});
  Counted all;
  const int last = p.reduced_dims - 1;
  const int64_t n = p.reduced[last], step = p.weights.reduced[last];
  for (int64_t run = 0; run < p.m / n; ++run) {
    int64_t offset = 0, others = 0;
    for (int64_t d = last - 1, rest = run; d >= 0; rest /= p.reduced[d--]) offset += rest % p.reduced[d] * p.weights.reduced[d];
    count_run(part, offset, n, step, &all.positive, &others);
    for (int64_t i = 0; others > 0 && all.valid; ++i) {
      all.bad = value_at(part.dtype, part.data, offset + i * step);
      all.valid = all.bad >= 0 && !std::isinf(all.bad);
    }
    if (!all.valid) return all;
  }
  return all;
}

// A refusal that `_refusals.py` says: a rule's name and its numbers.
std::string by_rule(const char* rule, std::initializer_list<double> numbers) {
  std::string refused = std::string("#") + rule;
  for (const double n : numbers) {
    char text[32];
    std::snprintf(text, sizeof text, " %.17g", n);
    refused += text;
  }
  return refused;
}

std::string too_few(int64_t positions, int64_t g, int64_t ghosts, int64_t ghost_size) {
  const auto number = [](int64_t n) { return static_cast<double>(n); };
  return by_rule("too_few", {number(positions), number(g), number(ghosts), number(ghost_size)});
}

const char* name_of(DType dtype) {
  switch (dtype) {
    case DType::f64: return "float64";
    case DType::f32: return "float32";
    case DType::f16: return "float16";
    default: return "bfloat16";
  }
}

}  // namespace

int64_t ghosts_of(const View& x, int64_t ghost_size) { return Ghosts(x, kChannelsOnAxis1, ghost_size).count; }

void fused_forward(const View& x, const View& y, const ChannelViews& channels, const Extras& extras, const Run& run,
                   double* moments, bool known, double* rstd) {
  Call call(x, channels, extras, run);
  call.add(&Problem::y, y);
  call.p.moments = call.ghosts.statistics(moments);
  call.p.moments.new_rstd = rstd;
  call.p.compute_moments = !channels.mean && !known;
  if (call.p.compute_moments) call.add_weights();
  if (channels.mean) set_given(call.p.moments, channels, x.sizes[1]);
  call.forward();
}

void fused_backward(const View& grad_y, const View& x, const double* moments, const ChannelViews& channels, const Extras& extras,
                    const Run& run, bool training, const FusedGradients& grads) {
  Call call(x, channels, extras, run);
  call.add(&Problem::grad_y, grad_y), call.add(&Problem::grad_x, grads.x), call.add(&Problem::grad_residual, grads.residual);
  if (training) call.add_weights();
  call.p.moments = call.ghosts.statistics(const_cast<double*>(moments));  // only read in a backward
  call.p.training = training;
  const Scratch<double> sums(2 * call.ghosts.row());
  call.p.grad_weight = sums, call.p.grad_bias = sums + call.ghosts.row();
  call.backward();
  set_parameters(call.ghosts, sums, grads);
}

// Each gradient is one before the activation times its channel's scale; x stands in the problem for its shape alone.
void frozen_gradients(const View& grad_y, const double* moments, const ChannelViews& channels, const Extras& extras, const Run& run,
                      const FusedGradients& grads) {
  Call call(grad_y, channels, extras, run);
  call.add(&Problem::grad_y, grad_y), call.add(&Problem::grad_x, grads.x), call.add(&Problem::grad_residual, grads.residual);
  call.p.moments = call.ghosts.statistics(const_cast<double*>(moments));
  call.p.training = call.p.compute_sums = false;
  call.backward();
}

void gather_moments(const View& x, const View& weights, const Run& run, double* moments) {
  Extras extras;
  extras.weights = weights;
  Call call(x, {}, extras, run);
  call.add_weights();
  call.p.moments = call.ghosts.statistics(moments);
  call.forward();
}

void gather_sums(const View& grad_y, const View& x, const double* moments, const ChannelViews& channels, const Extras& extras,
                 const Run& run, double* sums) {
  Call call(x, channels, extras, run);
  call.add(&Problem::grad_y, grad_y);
  call.ghosts.own_moments = false;
  call.p.moments = call.ghosts.statistics(const_cast<double*>(moments));
  call.p.training = false;  // nothing is done with the sums
  call.p.grad_weight = sums, call.p.grad_bias = sums + call.ghosts.row();
  call.backward();
}

void input_gradients(const View& grad_y, const View& x, const double* moments, const double* sums, const ChannelViews& channels,
                     const Extras& extras, const Run& run, const FusedGradients& grads) {
  Call call(x, channels, extras, run);
  call.add(&Problem::grad_y, grad_y), call.add(&Problem::grad_x, grads.x), call.add(&Problem::grad_residual, grads.residual);
  call.add_weights();
  call.p.moments = call.ghosts.statistics(const_cast<double*>(moments));
  call.p.compute_sums = false;
  call.p.grad_weight = const_cast<double*>(sums), call.p.grad_bias = const_cast<double*>(sums) + call.ghosts.row();
  call.backward();
}

std::string refused_operands(const View& x, std::initializer_list<View> like_x, const ChannelViews& channels, int64_t ghosts) {
  if (x.ndim < 2 || x.ndim > kMaxDims || !is_floating(x.dtype)) return "x must be floating point and have channels on axis 1";
  if (elements_of(x) == 0) return "x must not be empty";
  for (const View& v : like_x) {
    bool same = !v || (v.ndim == x.ndim && v.dtype == x.dtype);
    for (int d = 0; same && v && d < x.ndim; ++d) same = v.sizes[d] == x.sizes[d];
    if (!same) return "residual, y and grad_y must have x's shape and dtype";
  }
  const auto fits = [&](const View& v, int64_t rows) {
    const bool shape = rows > 0 ? v.ndim == 2 && v.sizes[0] == rows : v.ndim == 1;
    return shape && v.sizes[v.ndim - 1] == x.sizes[1] && is_floating(v.dtype);
  };
  for (const View* v : {&channels.weight, &channels.bias, &channels.mean, &channels.var})
    if (*v && !fits(*v, 0) && (ghosts == 0 || v == &channels.mean || v == &channels.var || !fits(*v, ghosts)))
      return "x has " + std::to_string(x.sizes[1]) + " channels; weight, bias and running statistics must have a value for each";
  if (channels.weight && channels.bias && channels.weight.ndim != channels.bias.ndim) return "weight and bias go together";
  if (static_cast<bool>(channels.mean) != static_cast<bool>(channels.var)) return "running_mean and running_var go together";
  return "";
}

std::string refused_y(const View& x, const Extras& extras, bool rounded) {
  if (!extras.y) return "";
  if (extras.residual) return "pass y or residual, not both";
  const AboutActivation& about = kActivations[static_cast<int>(extras.activation)];
  const bool positive = (x.dtype == DType::f32 ? static_cast<float>(extras.slope) : extras.slope) > 0;  // by 0, -inf becomes a NaN
  const bool by_slope = about.told_by_y && *about.parameter != 0;
  const bool whole = !is_16_bit(x.dtype) || (rounded && extras.activation == Activation::relu);
  if (about.told_by_y && (!by_slope || positive) && whole) return "";
  return std::string("y does not tell the derivative of ") + about.name + (by_slope ? " of this slope" : "") + " in " +
         name_of(x.dtype) + "; pass the residual";
}

std::string refused_table(const View& x, const View& table, int rows, int64_t ghosts) {
  const int64_t C = x.sizes[1];
  bool fits = table.dtype == DType::f64 && table.ndim == (ghosts > 0 ? 3 : 2) && table.sizes[0] == rows &&
              table.sizes[table.ndim - 1] == C && table.strides[table.ndim - 1] == 1;
  if (fits && ghosts > 0) fits = table.sizes[1] == ghosts && (table.strides[1] == C || ghosts == 1);
  if (fits) fits = table.strides[0] == (ghosts > 0 ? ghosts : 1) * C || rows == 1;
  if (fits) return "";
  return rows == 4 ? "moments must be the table that forward returned" : "the sums must be a table of two rows, as sums returns it";
}

std::string refused_position_weight(const View& x, const View& weights, int64_t ghost_size, int64_t least) {
  bool fits = weights.ndim == x.ndim && weights.sizes[1] == 1 && !is_16_bit(weights.dtype);
  int64_t repeats = 1;  // how often x meets each of them in a sample
  for (int d = 0; fits && d < x.ndim; ++d) {
    fits = weights.sizes[d] == 1 || weights.sizes[d] == x.sizes[d];
    if (d > 1) repeats *= x.sizes[d] / weights.sizes[d];
  }
  if (!fits) return "sample_weight must be bool, float32 or float64 and broadcast to x, with one channel";
  if (least < 0) return "";
  const int64_t N = x.sizes[0], size = ghost_size > 0 && ghost_size < N ? ghost_size : N;
  const bool alike = weights.sizes[0] == 1;  // all samples
  const int64_t ghosts = (N + size - 1) / size;
  for (int64_t g = 0; g < ghosts; ++g) {
    const int64_t first = g * size, samples = N - first < size ? N - first : size;
    const Counted found = alike ? count(weights, 0, 1) : count(weights, first, samples);
    if (!found.valid) return by_rule("weight_value", {found.bad});
    const int64_t positions = found.positive * repeats * (alike ? samples : 1);
    if (positions < least) return too_few(positions, g, ghosts, ghost_size);
  }
  return "";
}

namespace {

std::string refused_running(const View& moments, const Running& running, const int64_t* batches, bool cumulative, int correction) {
  const bool table = moments.dtype == DType::f64 && moments.ndim == 2 && moments.sizes[0] == 4 && moments.strides[1] == 1;
  const int64_t C = table ? moments.sizes[1] : 0;
  const auto fits = [&](const View& v) { return v.ndim == 1 && v.sizes[0] == C && is_floating(v.dtype); };
  if (!table || moments.strides[0] != C || !fits(running.mean) || !fits(running.var) || batches == nullptr)
    return "running_mean and running_var must have a value for each channel of the moments, and num_batches_tracked be one int64";
  if (running.count && !(fits(running.count) && running.count.dtype == DType::f64)) return by_rule("running_count", {});
  if (*batches == std::numeric_limits<int64_t>::max() || (cumulative && *batches < 0))
    return by_rule("batches", {}) + " " + std::to_string(*batches);
  const int least = running.count ? 1 : correction;
  const auto* count = reinterpret_cast<const double*>(moments.data);
  for (int64_t c = 0; c < C; ++c)
    if (!(count[c] > least))
      return by_rule("sum_of_weights",
                     {count[c], static_cast<double>(least), static_cast<double>(static_cast<bool>(running.count))});
  return "";
}

std::string not_finite(const Statistics& batch, int64_t c, const Running& running, const RunningRows& to) {
  return by_rule("not_finite",
                 {static_cast<double>(c), batch.mean[c], batch.m2[c] / batch.count[c], static_cast<double>(running.var.dtype),
                  stored(running.mean, to.mean[c]), stored(running.var, to.var[c])});
}

}  // namespace

std::string update_running(const View& moments, const Running& running, int64_t* batches, const double* momentum, int correction,
                           OnNonfinite on) {
  const std::string refused = refused_running(moments, running, batches, momentum == nullptr, correction);
  if (!refused.empty()) return refused;
  const int64_t C = moments.sizes[1];
  auto* table = reinterpret_cast<double*>(moments.data);
  const Statistics batch{table, table + C, table + 2 * C, table + 3 * C};
  const Moved to(running, batch, C, momentum ? *momentum : 1 / static_cast<double>(*batches + 1), correction);
  if (on != OnNonfinite::propagate) {
    const int64_t c = to.first_not_finite();
    if (c < C) return on == OnNonfinite::skip ? "" : not_finite(batch, c, running, to.rows());
  }
  ++*batches;
  to.store();
  return "";
}

}  // namespace batchnorm
