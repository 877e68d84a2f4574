// The one door from NumPy: arrays and options as they come, checked for what the kernels rely on. A function answers false, having
// changed nothing, where a call is not of a kind that it takes; `_call.py` then has it refused, or made into one.
#include <cmath>
#include <initializer_list>
#include <new>
#include <optional>
#include <vector>

#include "call/channel_views.h"
#include "core/ghosts.h"
#include "python/bind.h"
#include "python/borrowed.h"
#include "python/lock.h"
#include "runtime/parallel.h"

namespace nb = nanobind;

namespace batchnorm {
namespace {

constexpr int64_t kMaxExactCount = int64_t(1) << 53;

// Positional arguments, as a common call's time is counted in microseconds; nothing is converted.
class Arguments {
 public:
  explicit Arguments(PyObject* const* first) : next_(first) {}
  nb::handle object() { return *next_++; }
  bool flag() { return *next_++ == Py_True; }
  double number() { return PyFloat_AsDouble(*next_++); }
  int64_t integer() { return PyLong_AsLongLong(*next_++); }

 private:
  PyObject* const* next_;
};

// What a forward and a backward have in common.
class Call {
 public:
  Borrowed x;
  Problem p;
  std::optional<Ghosts> ghosts;

  // `axes`: an int, or a tuple. Where ghosts have so many samples (0: all are one), moments have an axis for them in front of the
  // channels', and so may weight and bias.
  bool take(nb::handle x_, nb::handle axes, nb::handle residual, nb::handle position_weight, nb::handle moments, bool gathers,
            nb::handle weight, nb::handle bias, double eps, int64_t ghost_size) {
    type_ = Py_TYPE(x_.ptr());
    if (!x.take(x_, type_, kOfData) || !take_axes(axes) || !(eps > 0 && std::isfinite(eps)) || ghost_size < 0) return false;
    for (int d = 0; d < x.ndim(); ++d) {
      if ((channel_axes_mask_ >> d & 1) == 0) m_ *= x.size(d);
      else channels_[channel_axes_++] = x.size(d);
    }
    ghosts.emplace(x.view(), channel_axes_mask_, ghost_size);
    of_ghosts_ = ghost_size > 0;
    if (ghosts->channels == 0 || m_ == 0 || m_ > kMaxExactCount) return false;
    operands_.reserve(6);
    operands_.push_back({&Problem::x, x.view()});
    if (!add(&Problem::residual, residual_, residual)) return false;
    if (!position_weight.is_none()) {
      if (!position_weight_.take(position_weight, type_, "?fd") || !position_weight_.has_shape_of(x)) return false;
      operands_.push_back({&Problem::weights, position_weight_.view()});
    }
    if (!take_moments(moments, gathers) || !take_parameters(weight, bias)) return false;
    p.eps = eps;
    p.threads = get_num_threads();
    return true;
  }

  // An array like x, or none.
  bool add(Array Problem::* array, Borrowed& to, nb::handle object, bool writable = false) {
    if (object.is_none()) return true;
    if (!to.take(object, type_, kOfData, writable) || !to.is_like(x)) return false;
    operands_.push_back({array, to.view()});
    return true;
  }

  // Whether an output that the caller gave has memory of its own, or is exactly one of these inputs.
  bool may_write(const Borrowed& out, const Borrowed* grad_y = nullptr) const {
    if (!out.contiguous('A')) return false;
    for (const Borrowed* input : {&x, &residual_, grad_y})
      if (input && *input && !(out.apart_from(*input) || out.same_memory(*input))) return false;
    return (!weight_ || out.apart_from(weight_)) && (!bias_ || out.apart_from(bias_));
  }

  // Values of channels that are written, or none.
  bool take_row(Borrowed& to, nb::handle object) const {
    return object.is_none() || (to.take(object, type_, kOfParameters, true) && to.contiguous('C') && fits(to, false, of_ghosts_));
  }

  bool has_variance() const { return m_ > 1; }
  void set_activation(Arguments& in) { p.activation = static_cast<Activation>(in.integer()), p.slope = in.number(); }
  void run(void (*kernel)(const Problem&)) { run_ghosts(*ghosts, p, channel_axes_mask_, operands_, kernel); }

 private:
  PyTypeObject* type_ = nullptr;
  Borrowed residual_, position_weight_, moments_, weight_, bias_;
  uint64_t channel_axes_mask_ = 0;
  int channel_axes_ = 0;
  int64_t m_ = 1, channels_[kMaxDims];
  bool of_ghosts_ = false;
  std::optional<Doubles> weight_copy_, bias_copy_;
  std::vector<Operand> operands_;

  bool take_axis(nb::handle axis) {
    if (!PyLong_CheckExact(axis.ptr())) return false;
    int overflow = 0;
    long i = PyLong_AsLongAndOverflow(axis.ptr(), &overflow);
    if (overflow != 0 || i < -x.ndim() || i >= x.ndim()) return false;
    if (i < 0) i += x.ndim();
    const uint64_t bit = uint64_t(1) << i;
    if ((channel_axes_mask_ & bit) != 0) return false;
    channel_axes_mask_ |= bit;
    return true;
  }
  bool take_axes(nb::handle axes) {
    if (!PyTuple_CheckExact(axes.ptr())) return take_axis(axes);
    for (const nb::handle axis : nb::borrow<nb::tuple>(axes))
      if (!take_axis(axis)) return false;
    return true;
  }

  // Whether its shape is that of x's channels, behind four rows and an axis of ghosts.
  bool fits(const Borrowed& values, bool four_rows, bool of_ghosts) const {
    if (values.ndim() != four_rows + of_ghosts + channel_axes_) return false;
    int d = 0;
    if (four_rows && values.size(d++) != 4) return false;
    if (of_ghosts && values.size(d++) != ghosts->count) return false;
    for (int c = 0; c < channel_axes_; ++c)
      if (values.size(d++) != channels_[c]) return false;
    return true;
  }

  static bool all_positive(const double* values, int64_t n) {
    int64_t positive = 0;
    for (int64_t i = 0; i < n; ++i) positive += values[i] > 0;
    return positive == n;
  }

  bool take_moments(nb::handle object, bool gathers) {
    if (!moments_.take(object, type_, "d", gathers) || !moments_.contiguous('C')) return false;
    ghosts->own_moments = fits(moments_, true, of_ghosts_);
    if (!ghosts->own_moments && (gathers || !fits(moments_, true, false))) return false;
    p.moments = ghosts->statistics(moments_.doubles());
    const int64_t row = ghosts->own_moments ? ghosts->row() : ghosts->channels;
    return gathers || all_positive(p.moments.count, row);
  }

  bool take_parameters(nb::handle weight, nb::handle bias) {
    if (!take_parameter(weight_, weight, weight_copy_, &p.weight) || !take_parameter(bias_, bias, bias_copy_, &p.bias))
      return false;
    ghosts->own_parameters = (weight_ ? weight_ : bias_).ndim() > channel_axes_;
    return !weight_ || !bias_ || weight_.ndim() == bias_.ndim();
  }
  bool take_parameter(Borrowed& to, nb::handle object, std::optional<Doubles>& copy, const double** values) {
    if (object.is_none()) return true;
    if (!to.take(object, type_, kOfParameters) || !(fits(to, false, false) || (of_ghosts_ && fits(to, false, true)))) return false;
    if (to.format() == 'd' && to.contiguous('C')) *values = to.doubles();
    else if (to.ndim() == 1) *values = copy.emplace(to.view()).get();
    return *values != nullptr;
  }
};

// Without y only the moments are gathered. `given`: y is the caller's, and may lie on an input.
bool forward(Arguments in) {
  Call call;
  Borrowed y;
  const nb::handle x = in.object(), y_ = in.object();
  const bool given = in.flag();
  const nb::handle residual = in.object(), position_weight = in.object(), moments = in.object();
  const bool gathers = in.flag();
  const nb::handle weight = in.object(), bias = in.object(), axes = in.object();
  const double eps = in.number();
  call.set_activation(in);
  const int64_t ghost_size = in.integer();
  call.p.compute_moments = gathers, call.p.omit = in.flag();
  if (!call.take(x, axes, residual, position_weight, moments, gathers, weight, bias, eps, ghost_size)) return false;
  if (!call.add(&Problem::y, y, y_, true) || (given && !call.may_write(y))) return false;
  if (y && gathers && !call.has_variance()) return false;
  const WithoutLock released;
  call.run(active_kernels().forward);
  return true;
}

// Gradients of weight and bias are written in their arrays' dtypes, with a row for each ghost; with a residual there is
// grad_residual, too. Of tests: `sums_known` reads the two rows instead, and `residual_is_y` has y in the residual's place.
bool backward(Arguments in) {
  Call call;
  Borrowed grad_y, grad_x, grad_residual, grad_weight, grad_bias;
  const nb::handle grad_y_ = in.object(), x = in.object(), grad_x_ = in.object();
  const bool given = in.flag();
  const nb::handle residual = in.object(), grad_residual_ = in.object(), position_weight = in.object(), moments = in.object();
  const nb::handle weight = in.object(), bias = in.object(), grad_weight_ = in.object(), grad_bias_ = in.object();
  const nb::handle axes = in.object();
  const double eps = in.number();
  call.set_activation(in);
  const bool training = in.flag();
  const int64_t ghost_size = in.integer();
  call.p.omit = in.flag();
  const bool sums_known = in.flag();
  call.p.training = training, call.p.compute_sums = !sums_known, call.p.residual_is_y = in.flag();
  if (!call.take(x, axes, residual, position_weight, moments, false, weight, bias, eps, ghost_size)) return false;
  if (grad_y_.is_none() || !call.add(&Problem::grad_y, grad_y, grad_y_) || !call.add(&Problem::grad_x, grad_x, grad_x_, true))
    return false;
  if (!call.add(&Problem::grad_residual, grad_residual, grad_residual_, true)) return false;
  if ((given && !call.may_write(grad_x, &grad_y)) || (training && !sums_known && !call.has_variance())) return false;
  if (!call.take_row(grad_weight, grad_weight_) || !call.take_row(grad_bias, grad_bias_)) return false;
  const int64_t row = call.ghosts->row();
  const Scratch<double> sums(2 * row);
  call.p.grad_weight = sums, call.p.grad_bias = sums + row;
  const WithoutLock released;
  if (sums_known) {
    active_kernels().to_doubles(grad_weight.view().dtype, call.p.grad_weight, grad_weight.view().data, row);
    active_kernels().to_doubles(grad_bias.view().dtype, call.p.grad_bias, grad_bias.view().data, row);
  }
  call.run(active_kernels().backward);
  if (sums_known) return true;
  if (grad_weight) active_kernels().from_doubles(grad_weight.view().dtype, grad_weight.view().data, call.p.grad_weight, row);
  if (grad_bias) active_kernels().from_doubles(grad_bias.view().dtype, grad_bias.view().data, call.p.grad_bias, row);
  return true;
}

// A function of so many arguments as Python calls it.
template <bool (*function)(Arguments), int count> PyObject* called(PyObject*, PyObject* const* arguments, Py_ssize_t n) {
  if (n != count) {
    PyErr_Format(PyExc_TypeError, "takes %d arguments; got %zd", count, n);
    return nullptr;
  }
  try {
    const bool done = function(Arguments(arguments));
    return PyErr_Occurred() ? nullptr : PyBool_FromLong(done);
  } catch (const std::bad_alloc&) { return PyErr_NoMemory(); }
}

// Rows of ghosts (R, G, ...) to (R, ...), contiguous: moments (R = 4) or sums (R = 2), up the canonical tree.
bool merge(nb::handle parts_, nb::handle merged_) {
  Borrowed parts, merged;
  PyTypeObject* type = Py_TYPE(parts_.ptr());
  if (!parts.take(parts_, type, "d") || !merged.take(merged_, type, "d", true)) return false;
  if (parts.ndim() < 2 || merged.ndim() != parts.ndim() - 1 || !parts.contiguous('C') || !merged.contiguous('C')) return false;
  int64_t channels = 1;
  for (int d = 0; d < merged.ndim(); ++d) {
    if (merged.size(d) != parts.size(d == 0 ? 0 : d + 1)) return false;
    if (d > 0) channels *= merged.size(d);
  }
  if (parts.size(0) != 4 && parts.size(0) != 2) return false;
  (parts.size(0) == 4 ? merge_moments : merge_sums)(parts.doubles(), parts.size(1), channels, merged.doubles());
  return true;
}

}  // namespace

void bind_calls(nb::module_& m) {
  static PyMethodDef functions[] = {
      {"forward", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(called<forward, 15>)), METH_FASTCALL, nullptr},
      {"backward", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(called<backward, 21>)), METH_FASTCALL, nullptr},
      {}};
  PyModule_AddFunctions(m.ptr(), functions);
  m.def("merge", &merge, nb::arg("parts"), nb::arg("merged"));
}

}  // namespace batchnorm
