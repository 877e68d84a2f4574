#include "libtorch/errors.h"

#include <dlfcn.h>
#include <nanobind/stl/string.h>

#include <stdexcept>

namespace nb = nanobind;

namespace batchnorm {
namespace {

PyObject *fallback = nullptr, *raiser = nullptr;  // never released: kernels may outlive the interpreter's modules

// An exported function of libtorch_python that calls an object's __torch_dispatch__ and, when that raises, throws PyTorch's own C++
// exception for "a Python error is set". The class of that exception is not exported, and anything else that we could throw comes
// out as a RuntimeError: so we let PyTorch throw. Where the function is missing, RuntimeError it is.
struct Objects {
  PyObject* const* data;
  size_t size;
};
using CallAndThrow = PyObject* (*)(Objects, PyObject* args, PyObject* kwargs, const char* name, PyObject* function,
                                   const char* module, int kind);
CallAndThrow call_and_throw = nullptr;
constexpr const char* kCallAndThrow =
    "_ZN5torch42handle_torch_function_no_python_arg_parserEN3c108ArrayRefIP7_objectEES3_S3_PKcS3_S6_NS_17TorchFunctionNameE";
constexpr int kTorchDispatch = 1;

[[noreturn]] void throw_python(const nb::object& exception) {
  if (call_and_throw) {
    const nb::object holder = nb::borrow(raiser)(exception);
    const nb::object function = nb::module_::import_("torch").attr("ops").attr("aten").attr("native_batch_norm").attr("default");
    PyObject* const objects[] = {holder.ptr()};
    call_and_throw({objects, 1}, nb::tuple().ptr(), nullptr, "batch_norm", function.ptr(), "torch", kTorchDispatch);
  }
  throw std::runtime_error(nb::cast<std::string>(nb::str(exception)));
}

}  // namespace

void use_python(nb::object fallback_, nb::object raiser_, const std::string& libtorch_python) {
  fallback = fallback_.release().ptr();
  raiser = raiser_.release().ptr();
  if (void* library = dlopen(libtorch_python.c_str(), RTLD_NOW | RTLD_NOLOAD))
    call_and_throw = reinterpret_cast<CallAndThrow>(dlsym(library, kCallAndThrow));
}

void answer_with_original(const char* name, const nb::tuple& arguments, stable::Value* results) {
  nb::object raised;
  try {
    const nb::object tensors = nb::borrow(fallback)(name, arguments);
    for (const nb::handle t : tensors) {
      stable::Handle result = t.is_none() ? stable::undefined() : stable::Handle(PyCapsule_GetPointer(t.ptr(), nullptr));
      *results++ = reinterpret_cast<stable::Value>(result.release());
    }
    return;
  } catch (nb::python_error& error) { raised = nb::borrow(error.value()); }
  throw_python(raised);
}

std::string said(const std::string& why) {
  return "batch_norm: " + nb::cast<std::string>(nb::module_::import_("batchnorm._refusals").attr("of_native")(why));
}

void refuse(const std::string& why) {
  nb::gil_scoped_acquire lock;
  throw_python(nb::borrow(PyExc_ValueError)(said(why)));
}

nb::object to_python(stable::Handle tensor) {
  return tensor ? nb::steal(PyCapsule_New(tensor.release(), nullptr, nullptr)) : nb::none();
}

}  // namespace batchnorm
