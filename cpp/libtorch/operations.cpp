// Boxed arguments to views, the calls of fused_calls.h, results boxed again.
#include "libtorch/operations.h"

#include <cstring>

#include "call/fused_calls.h"
#include "core/ghosts.h"
#include "libtorch/errors.h"
#include "libtorch/step.h"

namespace batchnorm {

using stable::abi;
using stable::Arguments;
using stable::Handle;
using stable::Value;

void on_pool_of_torch(int64_t tasks, void (*work)(int64_t, int64_t, void*), void* context) {
  abi().torch_parallel_for(0, tasks, 1, work, context);
}

int threads_of_torch() {
  uint32_t threads = 1;
  abi().torch_get_num_threads(&threads);
  return static_cast<int>(threads);
}

bool all_readable(std::initializer_list<const Handle*> tensors) {
  for (const Handle* t : tensors)
    if (*t && !t->readable()) return false;
  return true;
}

void require_readable(std::initializer_list<const Handle*> tensors) {
  if (!all_readable(tensors)) refuse("tensors must be strided, on the CPU, and float64, float32, float16, bfloat16 or bool");
}

stable::Library add(const char* ns, const Registered* kernels, int count, const char* key) {
  stable::Library library;
  stable::check(abi().aoti_torch_library_init_impl(ns, key, "batchnorm", 0, &library), "a library");
  for (const Registered* r = kernels; r < kernels + count; ++r)
    stable::check(abi().torch_library_impl(library, r->name, r->kernel, stable::kVersion), r->name);
  return library;
}

namespace {

void refuse_if(const std::string& why) {
  if (!why.empty()) refuse(why);
}

double* table_of(const Handle& h) { return reinterpret_cast<double*>(h.view(true).data); }
const double* values_of(const Handle& h) { return reinterpret_cast<const double*>(h.view().data); }

// Operands, parameters and options, as most of our operations have them. With a size of ghosts, tables have an axis for them.
struct Given {
  Handle x, grad_y, moments, sums, weight, bias, mean, var, position_weight, residual, y;
  double eps = 0, slope = 0;
  Activation activation = Activation::none;
  int64_t ghost_size = 0;

  void read_options(Arguments& in) {
    eps = in.number();
    const int64_t code = in.integer();
    slope = in.number();
    if (code < 0 || code >= kActivationCount)
      refuse("activation must be a code from 0 to " + std::to_string(kActivationCount - 1) + "; got " + std::to_string(code));
    activation = static_cast<Activation>(code);
  }

  ChannelViews channels() const { return {weight.view(), bias.view(), mean.view(), var.view()}; }
  Extras extras() const { return {position_weight.view(), residual.view(), activation, slope, y.view()}; }
  Run run() const { return {eps, ghost_size, threads_of_torch()}; }
  int64_t ghosts() const { return ghost_size > 0 ? ghosts_of(x.view(), ghost_size) : 0; }
  int64_t C() const { return x.view().sizes[1]; }
  bool has_residual() const { return residual || y; }

  void require_operands(bool rounded = false) const {
    require_readable({&x, &grad_y, &moments, &sums, &weight, &bias, &mean, &var, &position_weight, &residual, &y});
    if (ghost_size < 0) refuse("ghost_size is a number of samples, at least 1, or 0 for all; got " + std::to_string(ghost_size));
    refuse_if(refused_operands(x.view(), {grad_y.view(), residual.view(), y.view()}, channels(), ghosts()));
    refuse_if(refused_y(x.view(), extras(), rounded));
  }
  void require_weights(int64_t least) const {
    if (position_weight) refuse_if(refused_position_weight(x.view(), position_weight.view(), ghost_size, least));
  }
};

// As x is, or nothing.
Handle like(const Given& a, bool wanted) {
  return wanted ? stable::empty_like(a.x, a.x.view()) : stable::empty_vector(0, a.x.view().dtype);
}
View output(const Handle& h, bool wanted) { return wanted ? h.view(true) : View(); }

void forward_kernel(Value* stack, uint64_t, uint64_t) {
  const OnHostPool pool(on_pool_of_torch);
  Arguments in(stack);
  Given a;
  a.x = in.tensor();
  a.weight = in.optional_tensor(), a.bias = in.optional_tensor();
  a.mean = in.optional_tensor(), a.var = in.optional_tensor();
  a.position_weight = in.optional_tensor(), a.residual = in.optional_tensor();
  a.read_options(in);
  a.moments = in.optional_tensor();
  a.ghost_size = in.integer();
  a.require_operands();
  a.require_weights(2);
  if (a.mean && (a.moments || a.ghost_size > 0))
    refuse("running statistics normalize the whole batch: give no moments and no ghost_size with them");
  if (a.moments) refuse_if(refused_table(a.x.view(), a.moments.view(), 4, a.ghosts()));
  Handle y = like(a, true), moments = stable::empty_table(4, a.ghosts(), a.C());
  const int64_t rows = a.ghosts() > 0 ? a.ghosts() : 1;
  if (a.moments) std::memcpy(table_of(moments), values_of(a.moments), static_cast<size_t>(4 * rows * a.C()) * sizeof(double));
  fused_forward(a.x.view(), y.view(true), a.channels(), a.extras(), a.run(), table_of(moments), static_cast<bool>(a.moments));
  stable::give(stack, {&y, &moments});
}

void backward_kernel(Value* stack, uint64_t, uint64_t) {
  const OnHostPool pool(on_pool_of_torch);
  Arguments in(stack);
  Given a;
  a.grad_y = in.tensor(), a.x = in.tensor(), a.moments = in.tensor();
  a.weight = in.optional_tensor(), a.bias = in.optional_tensor();
  a.position_weight = in.optional_tensor(), a.residual = in.optional_tensor();
  a.read_options(in);
  const bool training = in.boolean();
  a.ghost_size = in.integer();
  a.y = in.optional_tensor();
  a.require_operands();
  refuse_if(refused_table(a.x.view(), a.moments.view(), 4, a.ghosts()));
  a.require_weights(-1);
  const auto parameter = [&](const Handle& given) {
    const View v = given.view();
    return given && v.ndim == 2 ? stable::empty_matrix(v.sizes[0], v.sizes[1], v.dtype)
                                : stable::empty_vector(a.C(), given ? v.dtype : DType::f64);
  };
  Handle grad_x = like(a, true), grad_weight = parameter(a.weight), grad_bias = parameter(a.bias);
  Handle grad_residual = like(a, a.has_residual());
  fused_backward(a.grad_y.view(), a.x.view(), values_of(a.moments), a.channels(), a.extras(), a.run(), training,
                 {grad_x.view(true), output(grad_residual, a.has_residual()), grad_weight.view(true), grad_bias.view(true)});
  stable::give(stack, {&grad_x, &grad_weight, &grad_bias, &grad_residual});
}

void frozen_gradients_kernel(Value* stack, uint64_t, uint64_t) {
  const OnHostPool pool(on_pool_of_torch);
  Arguments in(stack);
  Given a;
  a.x = in.tensor(), a.moments = in.tensor();  // grad_y is all there is of x's shape
  a.weight = in.optional_tensor();
  a.read_options(in);
  a.y = in.optional_tensor();
  const bool has_residual = in.boolean();
  a.require_operands(true);
  refuse_if(refused_table(a.x.view(), a.moments.view(), 4, 0));
  if (a.activation != Activation::none && !a.y) refuse("without x an activation's derivative is told by y; pass y");
  Handle grad_x = like(a, true), grad_residual = like(a, has_residual);
  frozen_gradients(a.x.view(), values_of(a.moments), a.channels(), a.extras(), a.run(),
                   {grad_x.view(true), output(grad_residual, has_residual), {}, {}});
  stable::give(stack, {&grad_x, &grad_residual});
}

void moments_kernel(Value* stack, uint64_t, uint64_t) {
  const OnHostPool pool(on_pool_of_torch);
  Arguments in(stack);
  Given a;
  a.x = in.tensor(), a.position_weight = in.optional_tensor();
  a.ghost_size = in.integer();
  a.require_operands();
  a.require_weights(0);
  Handle moments = stable::empty_table(4, a.ghosts(), a.C());
  gather_moments(a.x.view(), a.position_weight.view(), a.run(), table_of(moments));
  stable::give(stack, {&moments});
}

void sums_kernel(Value* stack, uint64_t, uint64_t) {
  const OnHostPool pool(on_pool_of_torch);
  Arguments in(stack);
  Given a;
  a.grad_y = in.tensor(), a.x = in.tensor(), a.moments = in.tensor();
  a.weight = in.optional_tensor(), a.bias = in.optional_tensor();
  a.residual = in.optional_tensor();
  a.read_options(in);
  a.ghost_size = in.integer();
  a.y = in.optional_tensor();
  a.require_operands();
  refuse_if(refused_table(a.x.view(), a.moments.view(), 4, 0));
  Handle sums = stable::empty_table(2, a.ghosts(), a.C());
  gather_sums(a.grad_y.view(), a.x.view(), values_of(a.moments), a.channels(), a.extras(), a.run(), table_of(sums));
  stable::give(stack, {&sums});
}

void input_gradients_kernel(Value* stack, uint64_t, uint64_t) {
  const OnHostPool pool(on_pool_of_torch);
  Arguments in(stack);
  Given a;
  a.grad_y = in.tensor(), a.x = in.tensor(), a.moments = in.tensor(), a.sums = in.tensor();
  a.weight = in.optional_tensor(), a.bias = in.optional_tensor();
  a.position_weight = in.optional_tensor(), a.residual = in.optional_tensor();
  a.read_options(in);
  a.y = in.optional_tensor();
  a.require_operands();
  refuse_if(refused_table(a.x.view(), a.moments.view(), 4, 0));
  refuse_if(refused_table(a.x.view(), a.sums.view(), 2, 0));
  a.require_weights(-1);
  Handle grad_x = like(a, true), grad_residual = like(a, a.has_residual());
  input_gradients(a.grad_y.view(), a.x.view(), values_of(a.moments), values_of(a.sums), a.channels(), a.extras(), a.run(),
                  {grad_x.view(true), output(grad_residual, a.has_residual()), {}, {}});
  stable::give(stack, {&grad_x, &grad_residual});
}

void merge_kernel(Value* stack, uint64_t, uint64_t) {
  Arguments in(stack);
  Handle parts = in.tensor();
  require_readable({&parts});
  const View v = parts.view();
  const bool table = v.dtype == DType::f64 && v.ndim == 3 && (v.sizes[0] == 4 || v.sizes[0] == 2);
  if (!table || v.strides[2] != 1 || v.strides[1] != v.sizes[2] || v.strides[0] != v.sizes[1] * v.sizes[2])
    refuse("parts must be a table of moments (4, G, C) or sums (2, G, C), contiguous, float64");
  Handle merged = stable::empty_table(v.sizes[0], 0, v.sizes[2]);
  (v.sizes[0] == 4 ? merge_moments : merge_sums)(values_of(parts), v.sizes[1], v.sizes[2], table_of(merged));
  stable::give(stack, {&merged});
}

void update_kernel(Value* stack, uint64_t, uint64_t) {
  Arguments in(stack);
  Handle mean = in.tensor(), var = in.tensor(), batches = in.tensor(), moments = in.tensor();
  double momentum = 0;
  const bool given = in.optional_number(&momentum);
  const auto correction = static_cast<int>(in.integer());
  const auto on = static_cast<OnNonfinite>(in.integer());
  const Handle count = in.optional_tensor();
  require_readable({&mean, &var, &moments, &count});
  const View table = moments.view();
  const Running running{mean.view(true), var.view(true), count.view(true)};
  refuse_if(update_running(table, running, batches.int64(), given ? &momentum : nullptr, correction, on));
}

}  // namespace

const Registered kOperations[] = {
    {"forward", forward_kernel},  // a line each
    {"backward", backward_kernel}, {"step_backward", step_backward_kernel},       {"moments", moments_kernel},
    {"sums", sums_kernel},         {"input_gradients", input_gradients_kernel},   {"merge", merge_kernel},
    {"update_", update_kernel},    {"frozen_gradients", frozen_gradients_kernel},
};
const int kOperationCount = sizeof kOperations / sizeof *kOperations;

}  // namespace batchnorm
