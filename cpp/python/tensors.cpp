#include <initializer_list>
#include <new>
#include <stdexcept>

#include "call/fused_calls.h"
#include "call/torch_calls.h"
#include "libtorch/errors.h"
#include "libtorch/operations.h"
#include "libtorch/step.h"
#include "python/bind.h"
#include "python/lock.h"

namespace nb = nanobind;

namespace batchnorm {
namespace {

using stable::Handle;

// As dlpack.h declares it, version 1.
struct Described {
  void* data;
  int32_t device_type, device_index, ndim;
  uint8_t code, bits;
  uint16_t lanes;
  int64_t *sizes, *strides;
  uint64_t offset;
};
struct Exchange {
  uint32_t major, minor;
  void *previous, *allocate, *export_owned, *import_owned;
  int (*describe)(PyObject* tensor, Described*);  // 0, or a Python exception is set
  void* current_stream;
};

enum Code : uint8_t { integer = 0, floating = 2, brain = 4 };

// Never released: calls may outlive the interpreter's modules.
const Exchange* exchange = nullptr;
PyObject *tensor_type = nullptr, *parameter_type = nullptr, *to_tensors = nullptr, *is_neg = nullptr;

// Whether there is such a table; without one nothing is taken. `steals`: makes tensors of a list of owning pointers.
bool read_through(nb::handle table, nb::handle tensor, nb::handle parameter, nb::handle steals) {
  const auto* found = static_cast<const Exchange*>(PyCapsule_GetPointer(table.ptr(), "dlpack_exchange_api"));
  if (found == nullptr) throw nb::python_error();
  tensor_type = tensor.inc_ref().ptr(), parameter_type = parameter.inc_ref().ptr(), to_tensors = steals.inc_ref().ptr();
  is_neg = PyUnicode_InternFromString("is_neg");
  if (found->major == 1 && found->describe != nullptr) exchange = found;
  return exchange != nullptr;
}

bool dtype_of(const Described& d, DType* to) {
  if (d.code == Code::floating && d.bits == 64) *to = DType::f64;
  else if (d.code == Code::floating && d.bits == 32) *to = DType::f32;
  else if (d.code == Code::floating && d.bits == 16) *to = DType::f16;
  else if (d.code == Code::brain && d.bits == 16) *to = DType::bf16;
  else return false;
  return true;
}

// A tensor on the CPU, of a class of PyTorch's own, that is not the negative of what lies in its memory.
bool describe(PyObject* object, Described* to) {
  constexpr int32_t cpu = 1;
  PyObject* const type = reinterpret_cast<PyObject*>(Py_TYPE(object));
  if (type != tensor_type && type != parameter_type) return false;
  if (exchange->describe(object, to) != 0) {
    PyErr_Clear();
    return false;
  }
  if (to->code != Code::integer) {
    PyObject* const negative = PyObject_CallMethodNoArgs(object, is_neg);
    Py_XDECREF(negative);
    PyErr_Clear();
    if (negative != Py_False) return false;
  }
  return to->device_type == cpu && to->lanes == 1 && to->data != nullptr;
}

bool view(PyObject* object, View* to) {
  Described d;
  if (object == Py_None) return true;
  if (!describe(object, &d) || !dtype_of(d, &to->dtype)) return false;
  to->data = static_cast<char*>(d.data) + d.offset, to->ndim = d.ndim, to->sizes = d.sizes, to->strides = d.strides;
  return true;
}

bool views(PyObject* const* objects, std::initializer_list<View*> to) {
  for (View* v : to)
    if (!view(*objects++, v)) return false;
  return true;
}

// y and the moments of `_batch_norm_no_update` (see step.h) of x, weight, bias, mean, var and eps.
nb::object step(PyObject* const* given) {
  View x;
  ChannelViews known;
  if (!views(given, {&x, &known.weight, &known.bias, &known.mean, &known.var}) || !x) return nb::none();
  const double eps = PyFloat_AsDouble(given[5]);
  if (!is_served_step(x, known, eps)) return nb::none();
  Handle y, moments;
  {
    const WithoutLock released;
    const OnHostPool pool(on_pool_of_torch);
    y = stable::empty_dense(x);
    if (!y) return nb::none();
    moments = stable::empty_table(4, 0, x.sizes[1]);
    step_forward(x, y, moments, known, eps);
  }
  nb::list pointers;
  pointers.append(to_python(std::move(y))), pointers.append(to_python(std::move(moments)));
  return nb::steal(PyObject_CallOneArg(to_tensors, pointers.ptr()));
}

// `batchnorm::update_`, with its arguments.
nb::object update(PyObject* const* given) {
  Running running;
  View table;
  Described count;
  if (!views(given, {&running.mean, &running.var}) || !view(given[3], &table) || !view(given[7], &running.count)) return nb::none();
  if (!running.mean || !running.var || !table || !describe(given[2], &count)) return nb::none();
  if (count.code != Code::integer || count.bits != 64 || count.ndim != 0) return nb::none();
  const bool has_momentum = given[4] != Py_None;
  const double momentum = has_momentum ? PyFloat_AsDouble(given[4]) : 0;
  const auto correction = static_cast<int>(PyLong_AsLong(given[5]));
  const auto on = static_cast<OnNonfinite>(PyLong_AsLong(given[6]));
  if (PyErr_Occurred() != nullptr) throw nb::python_error();
  auto* const batches = reinterpret_cast<int64_t*>(static_cast<char*>(count.data) + count.offset);
  const std::string why = update_running(table, running, batches, has_momentum ? &momentum : nullptr, correction, on);
  if (!why.empty()) throw nb::value_error(said(why).c_str());
  return nb::bool_(true);
}

// A function of so many arguments as Python calls it.
template <nb::object (*function)(PyObject* const*), int count> PyObject* called(PyObject*, PyObject* const* given, Py_ssize_t n) {
  if (n != count) {
    PyErr_Format(PyExc_TypeError, "takes %d arguments; got %zd", count, n);
    return nullptr;
  }
  if (exchange == nullptr) Py_RETURN_NONE;
  try {
    return function(given).release().ptr();
  } catch (nb::python_error& error) { error.restore(); } catch (const nb::builtin_exception& error) {
    PyErr_SetString(PyExc_ValueError, error.what());
  } catch (const std::bad_alloc&) { PyErr_NoMemory(); } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  }
  return nullptr;
}

}  // namespace

void bind_tensors(nb::module_& m) {
  auto t = nb::cast<nb::module_>(m.attr("torch"));
  t.def("read_through", &read_through, nb::arg("table"), nb::arg("tensor"), nb::arg("parameter"), nb::arg("steals"));
  static PyMethodDef functions[] = {
      {"step", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(called<step, 6>)), METH_FASTCALL, nullptr},
      {"update", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(called<update, 8>)), METH_FASTCALL, nullptr},
      {}};
  PyModule_AddFunctions(t.ptr(), functions);
}

}  // namespace batchnorm
