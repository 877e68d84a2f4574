// The usual call: NumPy arrays of float64, float32 or float16 with one channel axis, no mask, no residual, no ghosts. On small
// inputs checking it in Python takes several times as long as computing it. Everything here answers false, having changed nothing,
// where a call is not of that kind or breaks a rule; `_inputs.py` then decides, and says why.
#include "python/usual.h"

#include <cmath>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <optional>
#include <vector>

#include "call/running.h"
#include "python/lock.h"
#include "runtime/parallel.h"

namespace nb = nanobind;

namespace batchnorm {
namespace {

constexpr int64_t kMaxExactCount = int64_t(1) << 53;

// An array that is borrowed as long as this lives.
class Borrowed {
 public:
  Borrowed() = default;
  Borrowed(const Borrowed&) = delete;
  Borrowed& operator=(const Borrowed&) = delete;
  ~Borrowed() {
    if (held_) PyBuffer_Release(&view_);
  }

  // Whether it is an array exactly of this type, of one of these formats (struct's letters), with elements where they belong.
  bool take(nb::handle object, PyTypeObject* type, const char* formats, bool writable = false) {
    if (Py_TYPE(object.ptr()) != type) return false;
    const int flags = PyBUF_STRIDES | PyBUF_FORMAT | (writable ? PyBUF_WRITABLE : 0);
    if (PyObject_GetBuffer(object.ptr(), &view_, flags) != 0) {
      PyErr_Clear();
      return false;
    }
    held_ = true;
    if (view_.format == nullptr || view_.format[0] == 0 || view_.format[1] != 0 || !std::strchr(formats, view_.format[0]))
      return false;
    if (view_.ndim > kMaxDims || reinterpret_cast<uintptr_t>(view_.buf) % static_cast<uintptr_t>(view_.itemsize) != 0) return false;
    for (int d = 0; d < view_.ndim; ++d) {
      if (view_.strides[d] % view_.itemsize != 0) return false;
      strides_[d] = view_.strides[d] / view_.itemsize;
    }
    return true;
  }

  explicit operator bool() const { return held_; }
  char format() const { return view_.format[0]; }
  int ndim() const { return view_.ndim; }
  int64_t size(int d) const { return view_.shape[d]; }
  bool contiguous(char order) const { return PyBuffer_IsContiguous(&view_, order) != 0; }
  double* doubles() const { return static_cast<double*>(view_.buf); }
  int64_t* integer() const { return static_cast<int64_t*>(view_.buf); }

  View view() const {
    const DType dtype = format() == 'd' ? DType::f64 : format() == 'f' ? DType::f32 : DType::f16;
    return {static_cast<char*>(view_.buf), dtype, view_.ndim, reinterpret_cast<const int64_t*>(view_.shape), strides_};
  }
  bool is_like(const Borrowed& other) const {
    return view_.ndim == other.view_.ndim && format() == other.format() &&
           std::memcmp(view_.shape, other.view_.shape, static_cast<size_t>(view_.ndim) * sizeof *view_.shape) == 0;
  }
  // One value for each of C channels.
  bool is_row(int64_t C) const { return view_.ndim == 1 && view_.shape[0] == C; }
  bool is_table(int64_t C) const { return view_.ndim == 2 && view_.shape[0] == 4 && view_.shape[1] == C && contiguous('C'); }

  double get(int64_t i) const {
    const char* at = static_cast<char*>(view_.buf) + i * view_.strides[0];
    return format() == 'd' ? *reinterpret_cast<const double*>(at) : *reinterpret_cast<const float*>(at);
  }
  void set(int64_t i, double value) const {
    char* at = static_cast<char*>(view_.buf) + i * view_.strides[0];
    if (format() == 'd') *reinterpret_cast<double*>(at) = value;
    else *reinterpret_cast<float*>(at) = static_cast<float>(value);
  }

  bool apart_from(const Borrowed& other) const {
    const char *first, *end, *other_first, *other_end;
    span(&first, &end), other.span(&other_first, &other_end);
    return end <= other_first || other_end <= first;
  }
  bool same_memory(const Borrowed& other) const {
    return view_.buf == other.view_.buf && is_like(other) &&
           std::memcmp(view_.strides, other.view_.strides, static_cast<size_t>(view_.ndim) * sizeof *view_.strides) == 0;
  }

 private:
  Py_buffer view_{};
  int64_t strides_[kMaxDims];
  bool held_ = false;

  void span(const char** first, const char** end) const {
    *first = static_cast<char*>(view_.buf), *end = *first + view_.itemsize;
    for (int d = 0; d < view_.ndim; ++d) (view_.strides[d] < 0 ? *first : *end) += (view_.shape[d] - 1) * view_.strides[d];
  }
};

// x, its channels, and weight and bias as the kernels take them.
struct Usual {
  Borrowed x, weight, bias;
  uint64_t kept = 0;
  int64_t C = 0, m = 0;
  std::optional<Doubles> weights, biases;

  bool take(nb::handle x_, nb::handle weight_, nb::handle bias_, int64_t axis, double eps) {
    PyTypeObject* type = Py_TYPE(x_.ptr());
    if (!x.take(x_, type, "dfe") || axis < -x.ndim() || axis >= x.ndim() || !(eps > 0 && std::isfinite(eps))) return false;
    if (axis < 0) axis += x.ndim();
    kept = uint64_t(1) << axis;
    C = x.size(static_cast<int>(axis)), m = 1;
    for (int d = 0; d < x.ndim(); ++d) m *= d == axis ? 1 : x.size(d);
    if (C == 0 || m == 0 || m > kMaxExactCount) return false;
    for (const auto& [row, object] : {std::pair<Borrowed*, nb::handle>{&weight, weight_}, {&bias, bias_}})
      if (!object.is_none() && !(row->take(object, type, "df") && row->is_row(C))) return false;
    return true;
  }

  void give_parameters(Problem& p) {
    if (weight) p.weight = weights.emplace(weight.view()).get();
    if (bias) p.bias = biases.emplace(bias.view()).get();
  }

  // Whether an output that the caller gave has memory of its own, or is exactly one of these inputs.
  bool may_write(const Borrowed& out, std::initializer_list<const Borrowed*> inputs) const {
    if (!out.contiguous('A')) return false;
    for (const Borrowed* input : inputs)
      if (*input && !(out.apart_from(*input) || out.same_memory(*input))) return false;
    return (!weight || out.apart_from(weight)) && (!bias || out.apart_from(bias));
  }
};

// Rows of C values.
Statistics rows_of(double* table, int64_t C) { return {table, table + C, table + 2 * C, table + 3 * C}; }

bool all_counted(const Borrowed& table, int64_t C) {
  for (int64_t c = 0; c < C; ++c)
    if (!(table.doubles()[c] > 0)) return false;
  return true;
}

void set_common(Problem& p, double eps, int activation, double slope) {
  p.eps = eps;
  p.activation = static_cast<Activation>(activation), p.slope = slope;
  p.threads = get_num_threads();
}

// Without y only the moments are gathered.
bool forward(nb::handle x, nb::handle y_, bool given, nb::handle residual_, nb::handle table_, bool gathers, nb::handle weight,
             nb::handle bias, int64_t axis, double eps, int activation, double slope) {
  Usual u;
  Borrowed y, residual, table;
  PyTypeObject* type = Py_TYPE(x.ptr());
  if (!u.take(x, weight, bias, axis, eps)) return false;
  if (!y_.is_none() && !(y.take(y_, type, "dfe", true) && y.is_like(u.x))) return false;
  if (!residual_.is_none() && !(residual.take(residual_, type, "dfe") && residual.is_like(u.x))) return false;
  if (given && !u.may_write(y, {&u.x, &residual})) return false;
  if (!table.take(table_, type, "d", gathers) || !table.is_table(u.C)) return false;
  if (gathers ? y && u.m < 2 : !all_counted(table, u.C)) return false;
  Problem p;
  std::vector<Operand> operands{{&Problem::x, u.x.view()}};
  if (y) operands.push_back({&Problem::y, y.view()});
  if (residual) operands.push_back({&Problem::residual, residual.view()});
  collapse(p, u.kept, operands);
  p.stats = rows_of(table.doubles(), u.C);
  p.compute_stats = gathers;
  u.give_parameters(p);
  set_common(p, eps, activation, slope);
  const WithoutLock released;
  active_kernels().forward(p);
  return true;
}

// Gradients of weight and bias are written in their dtypes; with a residual there is grad_residual, too.
bool backward(nb::handle grad_y_, nb::handle x, nb::handle grad_x_, bool given, nb::handle residual_, nb::handle grad_residual_,
              nb::handle table_, nb::handle weight, nb::handle bias, nb::handle grad_weight_, nb::handle grad_bias_, int64_t axis,
              double eps, int activation, double slope, bool training) {
  Usual u;
  Borrowed grad_y, grad_x, residual, grad_residual, table, grad_weight, grad_bias;
  PyTypeObject* type = Py_TYPE(x.ptr());
  if (!u.take(x, weight, bias, axis, eps) || (training && u.m < 2)) return false;
  if (!grad_y.take(grad_y_, type, "dfe") || !grad_y.is_like(u.x)) return false;
  if (!grad_x.take(grad_x_, type, "dfe", true) || !grad_x.is_like(u.x)) return false;
  if (!residual_.is_none()) {
    if (!residual.take(residual_, type, "dfe") || !residual.is_like(u.x)) return false;
    if (!grad_residual.take(grad_residual_, type, "dfe", true) || !grad_residual.is_like(u.x)) return false;
  }
  if (given && !u.may_write(grad_x, {&u.x, &grad_y, &residual})) return false;
  if (!table.take(table_, type, "d") || !table.is_table(u.C) || !all_counted(table, u.C)) return false;
  if (u.weight && !grad_weight.take(grad_weight_, type, "df", true)) return false;
  if (u.bias && !grad_bias.take(grad_bias_, type, "df", true)) return false;
  const Scratch<double> sums(2 * u.C);
  Problem p;
  std::vector<Operand> operands{{&Problem::x, u.x.view()}, {&Problem::grad_y, grad_y.view()}, {&Problem::grad_x, grad_x.view()}};
  if (residual) operands.push_back({&Problem::residual, residual.view()});
  if (residual) operands.push_back({&Problem::grad_residual, grad_residual.view()});
  collapse(p, u.kept, operands);
  p.stats = rows_of(table.doubles(), u.C);
  p.training = training;
  p.grad_weight = sums, p.grad_bias = sums + u.C;
  u.give_parameters(p);
  set_common(p, eps, activation, slope);
  const WithoutLock released;
  active_kernels().backward(p);
  if (u.weight) write_channels(grad_weight.view(), p.grad_weight);
  if (u.bias) write_channels(grad_bias.view(), p.grad_bias);
  return true;
}

// Running statistics, moved by the moments of a batch. `momentum` below 0: all batches so far weigh the same.
bool move_running(nb::handle mean_, nb::handle var_, nb::handle batches_, nb::handle table_, double momentum, int correction) {
  Borrowed mean, var, batches, table;
  PyTypeObject* type = Py_TYPE(table_.ptr());
  if (!mean.take(mean_, type, "df", true) || mean.ndim() != 1) return false;
  const int64_t C = mean.size(0);
  if (!var.take(var_, type, "df", true) || !var.is_row(C) || !table.take(table_, type, "d") || !table.is_table(C)) return false;
  if (!batches.take(batches_, type, sizeof(long) == 8 ? "lq" : "q", true) || batches.ndim() != 0) return false;
  const Statistics rows = rows_of(table.doubles(), C);
  for (int64_t c = 0; c < C; ++c)
    if (!(rows.count[c] > correction)) return false;
  const int64_t before = *batches.integer();
  if (before == std::numeric_limits<int64_t>::max() || (momentum < 0 && before < 0)) return false;
  const double a = momentum < 0 ? 1 / static_cast<double>(before + 1) : momentum;
  ++*batches.integer();
  Moved({mean.view(), var.view(), {}}, rows, C, a, correction).store();
  return true;
}

// Running statistics as a table of moments, of one value each.
bool table_of_running(nb::handle mean_, nb::handle var_, nb::handle table_) {
  Borrowed mean, var, table;
  PyTypeObject* type = Py_TYPE(table_.ptr());
  if (!mean.take(mean_, type, "df") || mean.ndim() != 1) return false;
  const int64_t C = mean.size(0);
  if (!var.take(var_, type, "df") || !var.is_row(C) || !table.take(table_, type, "d", true) || !table.is_table(C)) return false;
  for (int64_t c = 0; c < C; ++c)
    if (var.get(c) < 0) return false;
  const Statistics rows = rows_of(table.doubles(), C);
  for (int64_t c = 0; c < C; ++c) rows.count[c] = 1, rows.mean[c] = mean.get(c), rows.mean_low[c] = 0, rows.m2[c] = var.get(c);
  return true;
}

}  // namespace

void bind_usual(nb::module_& m) {
  nb::module_ usual = m.def_submodule("usual");
  usual.def("forward", &forward, nb::arg("x"), nb::arg("y").none(), nb::arg("given"), nb::arg("residual").none(), nb::arg("table"),
            nb::arg("gathers"), nb::arg("weight").none(), nb::arg("bias").none(), nb::arg("axis"), nb::arg("eps"),
            nb::arg("activation"), nb::arg("slope"));
  usual.def("backward", &backward, nb::arg("grad_y").none(), nb::arg("x"), nb::arg("grad_x"), nb::arg("given"),
            nb::arg("residual").none(), nb::arg("grad_residual").none(), nb::arg("table"), nb::arg("weight").none(),
            nb::arg("bias").none(), nb::arg("grad_weight").none(), nb::arg("grad_bias").none(), nb::arg("axis"), nb::arg("eps"),
            nb::arg("activation"), nb::arg("slope"), nb::arg("training"));
  usual.def("move_running", &move_running, nb::arg("mean"), nb::arg("var"), nb::arg("batches"), nb::arg("table"),
            nb::arg("momentum"), nb::arg("correction"));
  usual.def("table_of_running", &table_of_running, nb::arg("mean"), nb::arg("var"), nb::arg("table"));
}

}  // namespace batchnorm
