// The Python module `batchnorm._native`: a list of functions.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <string>
#include <vector>

#include "kernels/select.h"
#include "libtorch/aten.h"
#include "python/bind.h"
#include "python/lock.h"
#include "runtime/parallel.h"

namespace nb = nanobind;
using namespace batchnorm;

namespace {

// Of the benchmarks: the memory of a contiguous array.
class Bytes {
 public:
  Bytes(nb::handle object, bool writable) {
    if (PyObject_GetBuffer(object.ptr(), &view_, writable ? PyBUF_WRITABLE : PyBUF_SIMPLE) != 0) throw nb::python_error();
  }
  Bytes(const Bytes&) = delete;
  Bytes& operator=(const Bytes&) = delete;
  ~Bytes() { PyBuffer_Release(&view_); }

  char* data() const { return static_cast<char*>(view_.buf); }
  int64_t size() const { return view_.len; }

 private:
  Py_buffer view_{};
};

void copy(nb::handle to_, nb::handle from_, bool streaming) {
  const Bytes to(to_, true), from(from_, false);
  const int threads = get_num_threads();
  const WithoutLock released;
  active_kernels().copy(to.data(), from.data(), from.size(), threads, streaming);
}

// The sum of its words, whatever they mean.
uint64_t read_bytes(nb::handle from_) {
  const Bytes from(from_, false);
  const int threads = get_num_threads();
  const WithoutLock released;
  return active_kernels().read(from.data(), from.size(), threads);
}

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (const Kernels* one : list_kernels()) names.emplace_back(one->name);
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
  nb::set_leak_warnings(false);  // a daemon thread that Python stops at its end keeps its arrays
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
  bind_calls(m);
  bind_running(m);
  bind_memory(m);
  bind_torch(m);
  bind_tensors(m);
}
