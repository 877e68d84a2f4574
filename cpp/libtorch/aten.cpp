// Kernels for PyTorch's dispatcher: boxed arguments to views, the calls of torch_calls.h, results boxed again.
#include "libtorch/aten.h"

#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <array>
#include <atomic>

#include "call/torch_calls.h"
#include "libtorch/errors.h"
#include "libtorch/operations.h"
#include "libtorch/step.h"

namespace nb = nanobind;

namespace batchnorm {
namespace {

using stable::abi;
using stable::Arguments;
using stable::Handle;
using stable::Value;

// --- ATen ---

struct Channels {
  Handle weight, bias, mean, var;

  ChannelViews views(bool moves) const { return {weight.view(), bias.view(), mean.view(moves), var.view(moves)}; }
};

// How an operation of ATen boxes its arguments.
struct Signature {
  const char* name;
  enum { forward, backward } direction;
  enum { no_stats, stats, optional_stats } running;
  enum { given, always, never } training;
  bool has_reserve;
};

constexpr Signature kSignatures[] = {
    {"native_batch_norm", Signature::forward, Signature::optional_stats, Signature::given, false},
    {"_native_batch_norm_legit", Signature::forward, Signature::stats, Signature::given, false},
    {"_native_batch_norm_legit.no_stats", Signature::forward, Signature::no_stats, Signature::given, false},
    {"_batch_norm_with_update", Signature::forward, Signature::stats, Signature::always, true},
    {"_batch_norm_no_update", Signature::forward, Signature::optional_stats, Signature::never, true},
    {"native_batch_norm_backward", Signature::backward, Signature::optional_stats, Signature::given, false},
    {"batch_norm_backward", Signature::backward, Signature::optional_stats, Signature::given, true},
};
constexpr int kNoUpdate = 4, kBackward = 6;  // those of steps, too
constexpr int kAtenCount = sizeof kSignatures / sizeof *kSignatures;

struct Counts {
  std::atomic<int64_t> served{0}, passed{0};
} counts[kAtenCount];

// An argument list for PyTorch's own kernel. Needs Python's lock.
nb::tuple tuple_of(const std::vector<nb::object>& items) { return nb::steal<nb::tuple>(PySequence_Tuple(nb::cast(items).ptr())); }

struct Forward {
  Handle x;
  Channels channels;
  bool training;
  double momentum, eps;

  Forward(const Signature& s, Value* stack) {
    Arguments in(stack);
    x = in.tensor();
    channels.weight = in.optional_tensor(), channels.bias = in.optional_tensor();
    if (s.running != Signature::no_stats) {
      channels.mean = s.running == Signature::stats ? in.tensor() : in.optional_tensor();
      channels.var = s.running == Signature::stats ? in.tensor() : in.optional_tensor();
    }
    training = s.training == Signature::given ? in.boolean() : s.training == Signature::always;
    momentum = in.number(), eps = in.number();
  }

  bool readable() const { return all_readable({&x, &channels.weight, &channels.bias, &channels.mean, &channels.var}); }

  // Whether our modules ask, who hear of what is not served by its absence.
  bool step(Value* stack) const {
    if (!is_step(momentum)) return false;
    const bool reads = readable();
    const ChannelViews known = reads ? channels.views(false) : ChannelViews();
    const View in = reads ? x.view() : View();
    if (!in || !is_served_step(in, known, eps)) {
      give_nothing(stack, 4);
      return true;
    }
    Handle y = stable::empty_like(x, in), moments = stable::empty_table(4, 0, in.sizes[1]);
    step_forward(in, y, moments, known, eps);
    stable::give(stack, {&y});
    give_nothing(stack + 1, 2);
    stable::give(stack + 3, {&moments});
    return true;
  }

  // False where PyTorch's own kernel has to answer; nothing has changed then.
  bool run(const Signature& s, Value* stack) const {
    if (!readable()) return false;
    const View in = x.view();
    const ChannelViews parameters = channels.views(training);
    if (!serves(in, parameters, training, eps)) return false;
    const int64_t saved = training ? in.sizes[1] : 0;
    const DType saved_as = saved_dtype(in, parameters);
    Handle y = stable::empty_in_suggested_format(in);
    Handle save_mean = stable::empty_vector_with_tail(saved, saved_as, training ? tail_bytes(saved, saved_as) : 0);
    Handle save_invstd = stable::empty_vector(saved, saved_as);
    if (training) {
      aten_forward_training(in, y.view(true), parameters, momentum, eps, save_mean.view(true), save_invstd.view(true),
                            threads_of_torch());
    } else {
      aten_forward_evaluation(in, y.view(true), parameters, eps, threads_of_torch());
    }
    stable::give(stack, {&y, &save_mean, &save_invstd});
    if (s.has_reserve) {
      Handle reserve = stable::empty_bytes();
      stable::give(stack + 3, {&reserve});
    }
    return true;
  }

  nb::tuple to_python(const Signature& s) {
    std::vector<nb::object> all;
    const auto add = [&](Handle& h) { all.push_back(batchnorm::to_python(std::move(h))); };
    add(x), add(channels.weight), add(channels.bias);
    if (s.running != Signature::no_stats) add(channels.mean), add(channels.var);
    if (s.training == Signature::given) all.push_back(nb::bool_(training));
    all.push_back(nb::float_(momentum)), all.push_back(nb::float_(eps));
    return tuple_of(all);
  }
};

struct Backward {
  Handle grad_y, x, weight, mean, var, save_mean, save_invstd, reserve;
  bool training;
  double eps;
  std::array<bool, 3> wanted;

  Backward(const Signature& s, Value* stack) {
    Arguments in(stack);
    grad_y = in.tensor(), x = in.tensor();
    weight = s.has_reserve ? in.defined_tensor() : in.optional_tensor();
    mean = in.optional_tensor(), var = in.optional_tensor(), save_mean = in.optional_tensor(), save_invstd = in.optional_tensor();
    training = in.boolean();
    eps = in.number();
    wanted = in.three_booleans();
    if (s.has_reserve) reserve = in.tensor();
  }

  bool readable() const { return all_readable({&grad_y, &x, &weight, &mean, &var, &save_mean, &save_invstd}); }

  // What the forward saved, or, in evaluation, the running statistics.
  ChannelViews saved() const {
    return {weight.view(), {}, training ? save_mean.view() : mean.view(), training ? save_invstd.view() : var.view()};
  }

  bool step(Value* stack) {
    if (!is_of_step(reserve)) return false;
    call_step_backward(std::move(grad_y), std::move(x), std::move(reserve), std::move(weight), eps, !mean, wanted, stack);
    return true;
  }

  bool run(const Signature&, Value* stack) const {
    if (!readable() || ((wanted[1] || wanted[2]) && !weight)) return false;
    const View in = x.view(), g = grad_y.view();
    const ChannelViews known = saved();
    if (!serves(in, known, false, eps) || g.ndim != in.ndim || g.dtype != in.dtype) return false;
    for (int d = 0; d < in.ndim; ++d)
      if (g.sizes[d] != in.sizes[d]) return false;
    Handle grad_x = wanted[0] ? stable::empty_in_suggested_format(in) : stable::undefined();
    Handle by_weight = wanted[1] ? stable::empty_vector(in.sizes[1], known.weight.dtype) : stable::undefined();
    Handle by_bias = wanted[2] ? stable::empty_vector(in.sizes[1], known.weight.dtype) : stable::undefined();
    const auto to = [&](size_t i, const Handle& h) { return wanted[i] ? h.view(true) : View(); };
    const int64_t C = in.sizes[1], bytes = C * bytes_of(known.mean.dtype) + tail_bytes(C, known.mean.dtype);
    const bool has_tail = training && save_mean.storage_bytes() == bytes && known.mean.strides[0] == 1 && known.var.strides[0] == 1;
    aten_backward(g, in, known, has_tail, training, eps, {to(0, grad_x), to(1, by_weight), to(2, by_bias)}, threads_of_torch());
    stable::give(stack, {&grad_x, &by_weight, &by_bias});
    return true;
  }

  nb::tuple to_python(const Signature& s) {
    std::vector<nb::object> all;
    for (Handle* h : {&grad_y, &x, &weight, &mean, &var, &save_mean, &save_invstd})
      all.push_back(batchnorm::to_python(std::move(*h)));
    all.push_back(nb::bool_(training)), all.push_back(nb::float_(eps));
    nb::list mask;
    for (const bool w : wanted) mask.append(w);
    all.push_back(mask);
    if (s.has_reserve) all.push_back(batchnorm::to_python(std::move(reserve)));
    return tuple_of(all);
  }
};

stable::Library aten_library = nullptr;  // while ATen's kernels are ours

template <class Call> void run(int operation, Value* stack) {
  const OnHostPool pool(on_pool_of_torch);
  const Signature& s = kSignatures[operation];
  Call call(s, stack);
  if (operation == kNoUpdate || operation == kBackward) {
    if (call.step(stack)) return;
  }
  if (aten_library != nullptr) {
    const bool serves = call.run(s, stack);
    ++(serves ? counts[operation].served : counts[operation].passed);
    if (serves) return;
  }
  nb::gil_scoped_acquire lock;
  answer_with_original(s.name, call.to_python(s), stack);
}

// The dispatcher takes plain functions: one for each operation.
template <int operation> void aten_kernel(Value* stack, uint64_t, uint64_t) {
  if constexpr (kSignatures[operation].direction == Signature::backward) run<Backward>(operation, stack);
  else run<Forward>(operation, stack);
}

constexpr Registered kAten[] = {
    {kSignatures[0].name, aten_kernel<0>}, {kSignatures[1].name, aten_kernel<1>}, {kSignatures[2].name, aten_kernel<2>},
    {kSignatures[3].name, aten_kernel<3>}, {kSignatures[4].name, aten_kernel<4>}, {kSignatures[5].name, aten_kernel<5>},
    {kSignatures[6].name, aten_kernel<6>},
};
static_assert(sizeof kAten / sizeof *kAten == kAtenCount);

// What steps of our modules need, for good. Nobody else calls these operations on the CPU, and what they mean to others stays.
constexpr Registered kOfSteps[] = {kAten[kNoUpdate], kAten[kBackward]};

// Above autograd's own kernel, because its second derivative takes the statistics for constants, so that a third is wrong.
void autograd_kernel(Value* stack, uint64_t, uint64_t) {
  const Signature& s = kSignatures[kBackward];
  Backward call(s, stack);
  const bool ours = is_of_step(call.reserve);
  if (ours && !abi().aoti_torch_grad_mode_is_enabled()) {
    call.step(stack);
    return;
  }
  nb::gil_scoped_acquire lock;
  answer_with_original(ours ? "step" : "autograd", call.to_python(s), stack);
}
constexpr Registered kAboveAutograd[] = {{kSignatures[kBackward].name, autograd_kernel}};

std::string connect(const std::string& libtorch) {
  const std::string missing = stable::connect(libtorch);
  if (!missing.empty()) return missing;
  stable::read_codes();
  return "";
}

}  // namespace

void bind_torch(nb::module_& m) {
  nb::module_ t = m.def_submodule("torch");
  t.def("connect", &connect, nb::arg("libtorch"));
  t.def("use_python", &use_python, nb::arg("fallback"), nb::arg("raiser"), nb::arg("libtorch_python"));
  t.def("add_ours", [] { add("batchnorm", kOperations, kOperationCount); });  // for good
  t.def("add_steps", [] {                                                     // for good
    add("aten", kOfSteps, sizeof kOfSteps / sizeof *kOfSteps);
    add("aten", kAboveAutograd, 1, "AutogradCPU");
  });
  t.def("add_aten", [] { aten_library = add("aten", kAten, kAtenCount); });
  t.def("remove_aten", [] { abi().aoti_torch_delete_library_object(std::exchange(aten_library, nullptr)); });
  t.def("names", [] {
    std::vector<std::string> names;
    for (const Signature& s : kSignatures) names.emplace_back(s.name);
    return names;
  });
  t.def("of_steps", [] {
    std::vector<std::string> names;
    for (const Registered& r : kOfSteps) names.emplace_back(r.name);
    return names;
  });
  t.def("counts", [] {
    nb::dict all;
    for (int i = 0; i < kAtenCount; ++i)
      all[kSignatures[i].name] = nb::make_tuple(counts[i].served.load(), counts[i].passed.load());
    return all;
  });
}

}  // namespace batchnorm
