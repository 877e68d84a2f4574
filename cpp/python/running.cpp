// Common steps of running statistics of one channel axis. They answer false, with no statistic changed, where there is more to
// decide: `_running.py` then refuses, or computes by itself.
#include "call/fused_calls.h"
#include "python/bind.h"
#include "python/borrowed.h"

namespace nb = nanobind;

namespace batchnorm {
namespace {

// Mean and variance of C channels, and a table of moments of as many.
struct Arrays {
  Borrowed mean, var, moments;
  int64_t C = 0;
  Statistics rows;

  // Written are either the moments or the others.
  bool take(nb::handle mean_, nb::handle var_, nb::handle moments_, bool writes_moments) {
    PyTypeObject* type = Py_TYPE(moments_.ptr());
    if (!mean.take(mean_, type, kOfParameters, !writes_moments) || mean.ndim() != 1) return false;
    if (!var.take(var_, type, kOfParameters, !writes_moments) || !var.has_shape_of(mean)) return false;
    if (!moments.take(moments_, type, "d", writes_moments) || !moments.contiguous('C')) return false;
    C = mean.size(0);
    double* table = moments.doubles();
    rows = {table, table + C, table + 2 * C, table + 3 * C};
    return moments.ndim() == 2 && moments.size(0) == 4 && moments.size(1) == C;
  }
};

// Moves them by the moments of a batch. `momentum` below 0: all batches so far weigh the same.
bool move_running(nb::handle mean, nb::handle var, nb::handle batches_, nb::handle moments, double momentum, int correction) {
  Arrays a;
  Borrowed batches;
  if (!a.take(mean, var, moments, false)) return false;
  const char* int64 = sizeof(long) == 8 ? "lq" : "q";
  if (!batches.take(batches_, Py_TYPE(moments.ptr()), int64, true) || batches.ndim() != 0) return false;
  const Running running{a.mean.view(), a.var.view(), {}};
  const double* const weight = momentum < 0 ? nullptr : &momentum;
  return update_running(a.moments.view(), running, batches.integer(), weight, correction, OnNonfinite::propagate).empty();
}

// Writes them as moments, of one value each.
bool running_moments(nb::handle mean, nb::handle var, nb::handle moments) {
  Arrays a;
  if (!a.take(mean, var, moments, true)) return false;
  set_given(a.rows, {{}, {}, a.mean.view(), a.var.view()}, a.C);
  for (int64_t c = 0; c < a.C; ++c)
    if (a.rows.m2[c] < 0) return false;
  return true;
}

}  // namespace

void bind_running(nb::module_& m) {
  m.def("move_running", &move_running, nb::arg("mean"), nb::arg("var"), nb::arg("batches"), nb::arg("moments"), nb::arg("momentum"),
        nb::arg("correction"));
  m.def("running_moments", &running_moments, nb::arg("mean"), nb::arg("var"), nb::arg("moments"));
}

}  // namespace batchnorm
