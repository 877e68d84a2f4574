#include "libtorch/step.h"

#include <algorithm>
#include <cmath>

#include "call/fused_calls.h"
#include "call/torch_calls.h"
#include "libtorch/errors.h"

namespace batchnorm {

using stable::Arguments;
using stable::Handle;
using stable::Value;

bool is_step(double momentum) { return std::isnan(momentum); }

bool is_of_step(const Handle& reserve) {
  if (!reserve || !reserve.defined()) return false;
  const View v = reserve.shape();
  return v.dtype == DType::f64 && v.ndim == 2;
}

void give_nothing(Value* results, int count) {
  for (int i = 0; i < count; ++i) {
    Handle nothing = stable::undefined();
    stable::give(results + i, {&nothing});
  }
}

bool is_served_step(const View& x, const ChannelViews& channels, double eps) {
  return serves(x, channels, !channels.mean, eps) && (channels.weight || !channels.bias);
}

void step_forward(const View& x, const Handle& y, const Handle& moments, const ChannelViews& channels, double eps) {
  auto* const table = reinterpret_cast<double*>(moments.view(true).data);
  fused_forward(x, y.view(true), channels, {}, {eps, 0, threads_of_torch()}, table, false);
}

void step_backward_kernel(Value* stack, uint64_t, uint64_t) {
  const OnHostPool pool(on_pool_of_torch);
  Arguments in(stack);
  const Handle grad_y = in.tensor(), x = in.tensor(), moments = in.tensor(), weight = in.defined_tensor();
  const double eps = in.number();
  const bool training = in.boolean();
  const int64_t wanted = in.integer();
  require_readable({&grad_y, &x, &moments, &weight});
  const View from = x.view(), g = grad_y.view(), table = moments.view();
  const ChannelViews channels{weight.view(), {}, {}, {}};
  for (const std::string& why : {refused_operands(from, {g}, channels), refused_table(from, table, 4, 0)})
    if (!why.empty()) refuse(why);
  const auto vector = [&](int bit) {
    return (wanted >> bit & 1) != 0 ? stable::empty_vector(from.sizes[1], weight ? channels.weight.dtype : DType::f64)
                                    : stable::undefined();
  };
  const auto view = [&](int bit, const Handle& h) { return (wanted >> bit & 1) != 0 ? h.view(true) : View(); };
  Handle by_x = (wanted & 1) != 0 ? stable::empty_like(x, from) : stable::undefined(), by_weight = vector(1), by_bias = vector(2);
  fused_backward(g, from, reinterpret_cast<const double*>(table.data), channels, {}, {eps, 0, threads_of_torch()}, training,
                 {view(0, by_x), {}, view(1, by_weight), view(2, by_bias)});
  stable::give(stack, {&by_x, &by_weight, &by_bias});
}

void call_step_backward(Handle grad_y, Handle x, Handle moments, Handle weight, double eps, bool training,
                        const std::array<bool, 3>& wanted, Value* results) {
  if (!weight) weight = stable::undefined();
  Value stack[7];
  stable::give(stack, {&grad_y, &x, &moments, &weight});
  std::memcpy(stack + 4, &eps, sizeof eps);
  stack[5] = training, stack[6] = 0;
  for (size_t i = 0; i < wanted.size(); ++i) stack[6] |= static_cast<Value>(wanted[i]) << i;
  stable::check(stable::abi().torch_call_dispatcher("batchnorm::step_backward", "", stack, stable::kVersion), "a step's backward");
  std::copy_n(stack, 3, results);
}

}  // namespace batchnorm
