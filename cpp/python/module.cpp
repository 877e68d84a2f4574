// The Python module `batchnorm._native`: a list of functions. Everything it receives has been checked by `_inputs.py`.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <string>
#include <vector>

#include "core/groups.h"
#include "kernels/select.h"
#include "libtorch/aten.h"
#include "python/lock.h"
#include "python/memory.h"
#include "python/usual.h"
#include "runtime/parallel.h"

namespace nb = nanobind;
using namespace batchnorm;

namespace {

// A borrowed NumPy buffer, given back when the call ends.
class Buffer {
 public:
  Buffer() = default;
  Buffer(nb::handle object, bool writable) {
    if (object.is_none()) return;
    if (PyObject_GetBuffer(object.ptr(), &view_, PyBUF_STRIDES | (writable ? PyBUF_WRITABLE : 0)) != 0) throw nb::python_error();
    held_ = true;
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() {
    if (held_) PyBuffer_Release(&view_);
  }

  explicit operator bool() const { return held_; }
  // Valid as long as this buffer. Python counts strides in bytes.
  View view(DType dtype) const {
    for (int d = 0; d < view_.ndim; ++d) strides_[d] = view_.strides[d] / view_.itemsize;
    return {static_cast<char*>(view_.buf), dtype, view_.ndim, reinterpret_cast<const int64_t*>(view_.shape), strides_};
  }
  double* doubles() const { return held_ ? static_cast<double*>(view_.buf) : nullptr; }
  int64_t length() const { return view_.shape[0]; }  // of the first axis
  char* bytes() const { return static_cast<char*>(view_.buf); }
  int64_t size() const { return view_.len; }
  int64_t values() const { return held_ ? view_.len / view_.itemsize : 0; }

 private:
  Py_buffer view_{};
  mutable int64_t strides_[kMaxDims];
  bool held_ = false;
};

// Groups of so many samples (0: all); a table with a row for each has one more axis, and so more values.
Groups groups_of(const View& x, uint64_t kept, int64_t samples, const Buffer& stats, const Buffer& weight, const Buffer& bias) {
  Groups groups(x, kept, samples);
  groups.own_stats = stats.values() == 4 * groups.row();
  groups.own_parameters = (weight ? weight : bias).values() == groups.row();
  return groups;
}

// (code, slope)
void set_activation(Problem& p, nb::tuple activation) {
  p.activation = static_cast<Activation>(nb::cast<int>(activation[0]));
  p.slope = nb::cast<double>(activation[1]);
}

void forward(nb::object x_, nb::object y_, int dtype, uint64_t kept, nb::object residual_, nb::object weights_, int weights_dtype,
             nb::object stats_, bool compute_stats, nb::object weight_, nb::object bias_, double eps, nb::tuple activation,
             int64_t group, bool omit) {
  const Buffer x(x_, false), y(y_, true), residual(residual_, false), weights(weights_, false), weight(weight_, false),
      bias(bias_, false), stats(stats_, compute_stats);
  Problem p;
  const auto data = static_cast<DType>(dtype);
  std::vector<Operand> operands{{&Problem::x, x.view(data)}};
  if (y) operands.push_back({&Problem::y, y.view(data)});
  if (residual) operands.push_back({&Problem::residual, residual.view(data)});
  if (weights) operands.push_back({&Problem::weights, weights.view(static_cast<DType>(weights_dtype))});
  const Groups groups = groups_of(operands[0].view, kept, group, stats, weight, bias);
  p.stats = groups.statistics(stats.doubles());
  p.weight = weight.doubles(), p.bias = bias.doubles();
  p.eps = eps;
  set_activation(p, activation);
  p.compute_stats = compute_stats, p.omit = omit;
  p.threads = get_num_threads();
  const WithoutLock released;
  run_groups(groups, p, kept, operands, active_kernels().forward);
}

void backward(nb::object grad_y_, nb::object x_, nb::object grad_x_, int dtype, uint64_t kept, nb::object residual_,
              nb::object grad_residual_, nb::object weights_, int weights_dtype, nb::object stats_, nb::object weight_,
              nb::object bias_, double eps, nb::tuple activation, bool training, nb::object grad_weight_, nb::object grad_bias_,
              int64_t group, bool compute_sums, bool residual_is_y, bool omit) {
  const Buffer grad_y(grad_y_, false), x(x_, false), grad_x(grad_x_, true), residual(residual_, false),
      grad_residual(grad_residual_, true), weights(weights_, false), weight(weight_, false), bias(bias_, false),
      grad_weight(grad_weight_, true), grad_bias(grad_bias_, true), stats(stats_, false);
  Problem p;
  const auto data = static_cast<DType>(dtype);
  std::vector<Operand> operands{{&Problem::x, x.view(data)}, {&Problem::grad_y, grad_y.view(data)}};
  if (grad_x) operands.push_back({&Problem::grad_x, grad_x.view(data)});
  if (residual) operands.push_back({&Problem::residual, residual.view(data)});
  if (grad_residual) operands.push_back({&Problem::grad_residual, grad_residual.view(data)});
  if (weights) operands.push_back({&Problem::weights, weights.view(static_cast<DType>(weights_dtype))});
  const Groups groups = groups_of(operands[0].view, kept, group, stats, weight, bias);
  p.stats = groups.statistics(stats.doubles());
  p.weight = weight.doubles(), p.bias = bias.doubles();
  p.eps = eps;
  set_activation(p, activation);
  p.training = training, p.compute_sums = compute_sums, p.residual_is_y = residual_is_y, p.omit = omit;
  p.grad_weight = grad_weight.doubles(), p.grad_bias = grad_bias.doubles();
  p.threads = get_num_threads();
  const WithoutLock released;
  run_groups(groups, p, kept, operands, active_kernels().backward);
}

// Tables of groups (R, G, C) to (R, C): moments (R = 4) or sums (R = 2), up the canonical tree.
void merge(nb::object table_, nb::object merged_, int64_t groups) {
  const Buffer table(table_, false), merged(merged_, true);
  const bool moments = table.length() == 4;
  (moments ? merge_moments : merge_sums)(table.doubles(), groups, merged.values() / table.length(), merged.doubles());
}

// Of the benchmarks: arrays of as many bytes, each one piece of memory.
void copy(nb::object to_, nb::object from_, bool streaming) {
  const Buffer to(to_, true), from(from_, false);
  const int threads = get_num_threads();
  const WithoutLock released;
  active_kernels().copy(to.bytes(), from.bytes(), from.size(), threads, streaming);
}

// The sum of its words, whatever they mean.
uint64_t read_bytes(nb::object from_) {
  const Buffer from(from_, false);
  const int threads = get_num_threads();
  const WithoutLock released;
  return active_kernels().read(from.bytes(), from.size(), threads);
}

std::vector<std::string> available_isas() {
  const Kernels* all[kMaxKernels];
  const int n = list_kernels(all);
  std::vector<std::string> names;
  for (int i = 0; i < n; ++i) names.emplace_back(all[i]->name);
  return names;
}

void force_isa(const std::string& name) {
  const Kernels* kernels = find_kernels(name.c_str());
  if (kernels == nullptr) {
    std::string known;
    for (const std::string& isa : available_isas()) known += (known.empty() ? "" : ", ") + isa;
    throw nb::value_error(("no kernels named '" + name + "' run on this machine; there are: " + known).c_str());
  }
  activate_kernels(*kernels);
}

}  // namespace

NB_MODULE(_native, m) {
  m.def("forward", &forward, nb::arg("x"), nb::arg("y").none(), nb::arg("dtype"), nb::arg("kept"), nb::arg("residual").none(),
        nb::arg("weights").none(), nb::arg("weights_dtype"), nb::arg("stats"), nb::arg("compute_stats"), nb::arg("weight").none(),
        nb::arg("bias").none(), nb::arg("eps"), nb::arg("activation"), nb::arg("group") = 0, nb::arg("omit") = false);
  m.def("backward", &backward, nb::arg("grad_y"), nb::arg("x"), nb::arg("grad_x").none(), nb::arg("dtype"), nb::arg("kept"),
        nb::arg("residual").none(), nb::arg("grad_residual").none(), nb::arg("weights").none(), nb::arg("weights_dtype"),
        nb::arg("stats"), nb::arg("weight").none(), nb::arg("bias").none(), nb::arg("eps"), nb::arg("activation"),
        nb::arg("training"), nb::arg("grad_weight"), nb::arg("grad_bias"), nb::arg("group") = 0, nb::arg("compute_sums") = true,
        nb::arg("residual_is_y") = false, nb::arg("omit") = false);
  m.def("merge", &merge, nb::arg("table"), nb::arg("merged"), nb::arg("groups"));
  m.def("copy", &copy, nb::arg("to"), nb::arg("source"), nb::arg("streaming"));
  m.def("read", &read_bytes, nb::arg("source"));
  m.def("set_num_threads", &set_num_threads, nb::arg("threads"));
  m.def("get_num_threads", &get_num_threads);
  m.def("activations", [] {  // (name, whether y tells the derivative, its number's name and default), by code
    nb::list all;
    for (const AboutActivation& a : kActivations) all.append(nb::make_tuple(a.name, a.told_by_y, a.parameter, a.slope));
    return all;
  });
  m.def("isa", [] { return std::string(active_kernels().name); });
  m.def("available_isas", &available_isas);
  m.def("force_isa", &force_isa, nb::arg("name"));
  bind_memory(m);
  bind_torch(m);
  bind_usual(m);
}
