// The element loops: one run of contiguous elements, forward or backward. A run's coefficients come from a source: the same for
// the whole run (contiguous layouts: a run belongs to one channel), or one for each column (channels-last).
#pragma once

#include "activation.h"
#include "coefficients.h"

namespace batchnorm {
namespace BN_ISA {
namespace {

template <class C> struct Uniform : Coefficients<C, double> {
  Uniform(const Table<C>& t, int64_t c)
      : Coefficients<C, double>{t.center[c], t.scale[c],      t.shift[c],      t.k1[c],      t.k0[c],     t.wide[c],
                                t.mean[c],   t.wide_scale[c], t.wide_shift[c], t.wide_k1[c], t.wide_k0[c]} {}
  static BN_INLINE Lanes<C> narrow(C value, int64_t) { return fill<C>(value); }
  static BN_INLINE D16 widened(double value, int64_t) { return fill<double>(value); }
};

template <class C> struct Columns : Coefficients<const C*, const double*> {
  Columns(const Table<C>& t, int64_t c)
      : Coefficients<const C*, const double*>{t.center + c,     t.scale + c,   t.shift + c,  t.k1 + c,
                                              t.k0 + c,         t.wide + c,    t.mean + c,   t.wide_scale + c,
                                              t.wide_shift + c, t.wide_k1 + c, t.wide_k0 + c} {}
  static BN_INLINE Lanes<C> narrow(const C* row, int64_t j) { return load(row + j); }
  static BN_INLINE D16 widened(const double* row, int64_t j) { return load(row + j); }
};

// The cases worth a loop of their own; `any` decides within the loop, `wide` also handles channels outside float's range.
enum class Variant { plain, relu, any, wide };

inline Variant variant_of(const Problem& p, bool wide) {
  if (wide) return Variant::wide;
  if (p.activation == Activation::none) return Variant::plain;
  return p.activation == Activation::relu ? Variant::relu : Variant::any;
}

// Calls f with the variant as a compile-time constant.
template <class F> BN_INLINE void with_variant(Variant v, const F& f) {
  switch (v) {
    case Variant::plain: return f(std::integral_constant<Variant, Variant::plain>());
    case Variant::relu: return f(std::integral_constant<Variant, Variant::relu>());
    case Variant::any: return f(std::integral_constant<Variant, Variant::any>());
    case Variant::wide: return f(std::integral_constant<Variant, Variant::wide>());
  }
}

// The float result, or, in the lanes of wide channels, the double one rounded.
template <class K> BN_INLINE F16 blend(const K& k, int64_t j, D16 wide, F16 result) {
  return if_less(fill<float>(0), k.narrow(k.wide, j), narrow(wide), result);
}
template <class K> BN_INLINE D16 blend(const K&, int64_t, D16, D16 result) { return result; }

// What the activation is applied to, less the residual.
template <Variant V, class C, class K> BN_INLINE Lanes<C> normalized(const K& k, int64_t j, Lanes<C> x) {
  Lanes<C> z = multiply_add(x - k.narrow(k.center, j), k.narrow(k.scale, j), k.narrow(k.shift, j));
  if constexpr (V == Variant::wide) {
    z = blend(k, j, (to_wide(x) - k.widened(k.mean, j)) * k.widened(k.wide_scale, j) + k.widened(k.wide_shift, j), z);
  }
  return z;
}

template <Variant V, class C> BN_INLINE Lanes<C> activated(const Problem& p, Lanes<C> z) {
  if constexpr (V == Variant::plain) return z;
  if constexpr (V == Variant::relu) return activate(Activation::relu, C(0), z);
  return activate(p.activation, static_cast<C>(p.slope), z);
}

// dL/dz from dL/dy; z is recomputed as the forward computed it, so that the corner falls on the same side.
template <Variant V, class C, class K>
BN_INLINE Lanes<C> grad_before_activation(const Problem& p, const K& k, int64_t j, Lanes<C> x, Lanes<C> g,
                                          const Lanes<C>* residual) {
  if constexpr (V == Variant::plain) return g;
  if (V == Variant::wide && p.activation == Activation::none) return g;
  Lanes<C> z = normalized<V>(k, j, x);
  if (residual) z = z + *residual;
  if constexpr (V == Variant::relu) return activate_backward(Activation::relu, C(0), z, g);
  return activate_backward(p.activation, static_cast<C>(p.slope), z, g);
}

// Elements up to the first one at which a whole vector can be streamed.
template <class T> BN_INLINE int64_t until_aligned(const T* p, int64_t n) {
  constexpr uintptr_t kAlign = 64;
  const int64_t head = static_cast<int64_t>((0 - reinterpret_cast<uintptr_t>(p)) % kAlign / sizeof(T));
  return head < n ? head : n;
}

template <class T> struct ForwardRun {
  const T *x, *residual;
  T* y;
};

template <class T, class K, Variant V>
void forward_run(const Problem& p, const K& source, ForwardRun<T> run, int64_t n, bool streaming) {
  const K k = source;  // a copy: stores to y cannot change it, and the compiler knows
  using C = Compute<T>;
  const auto result = [&](int64_t j, Lanes<C> x, Lanes<C> r) BN_INLINE_LAMBDA {
    Lanes<C> z = normalized<V>(k, j, x);
    if (run.residual) z = z + r;
    return activated<V>(p, z);
  };
  const auto some = [&](int64_t j, int64_t count) {
    const Lanes<C> r = run.residual ? load_some(run.residual + j, count) : fill<C>(0);
    store_some(run.y + j, count, result(j, load_some(run.x + j, count), r));
  };
  const auto whole = [&](int64_t j) BN_INLINE_LAMBDA {
    return result(j, load(run.x + j), run.residual ? load(run.residual + j) : fill<C>(0));
  };
  int64_t j = 0;
  if (streaming) {
    j = until_aligned(run.y, n);
    if (j > 0) some(0, j);
    for (; j + 16 <= n; j += 16) stream(run.y + j, whole(j));
  } else {
    for (; j + 16 <= n; j += 16) store(run.y + j, whole(j));
  }
  if (j < n) some(j, n - j);
}

// `weights`: null, one for each element, or (weight_step 0) one for the run.
template <class T> struct BackwardRun {
  const T *x, *g, *residual;
  T *grad_x, *grad_residual;
  const Compute<T>* weights;
  int64_t weight_step;
};

template <class T, class K, Variant V>
void backward_run(const Problem& p, const K& source, BackwardRun<T> run, int64_t n, bool streaming) {
  const K k = source;
  using C = Compute<T>;
  struct Grads {
    Lanes<C> x, residual;
  };
  const auto result = [&](int64_t j, Lanes<C> x, Lanes<C> g, Lanes<C> r, Lanes<C> w) BN_INLINE_LAMBDA {
    const Lanes<C> before = grad_before_activation<V>(p, k, j, x, g, run.residual ? &r : nullptr), zero = fill<C>(0);
    Lanes<C> inner = before;
    if (p.training) {
      Lanes<C> through_moments = multiply_add(x - k.narrow(k.center, j), k.narrow(k.k1, j), k.narrow(k.k0, j));
      if (run.weights) through_moments = if_less(zero, w, through_moments * w, zero);
      inner = before - through_moments;
    }
    Lanes<C> grad_x = inner * k.narrow(k.scale, j);
    if constexpr (V == Variant::wide) {
      D16 wide = to_wide(before);
      if (p.training) {
        D16 through = (to_wide(x) - k.widened(k.mean, j)) * k.widened(k.wide_k1, j) + k.widened(k.wide_k0, j);
        if (run.weights) through = if_less(fill<double>(0), to_wide(w), through * to_wide(w), fill<double>(0));
        wide = wide - through;
      }
      grad_x = blend(k, j, wide * k.widened(k.wide_scale, j), grad_x);
    }
    return Grads{grad_x, before};
  };
  const auto some = [&](int64_t j, int64_t count) {
    const Lanes<C> r = run.residual ? load_some(run.residual + j, count) : fill<C>(0);
    Lanes<C> w = fill<C>(1);
    if (run.weights) w = run.weight_step ? load_some(run.weights + j, count) : fill<C>(*run.weights);
    const Grads grads = result(j, load_some(run.x + j, count), load_some(run.g + j, count), r, w);
    store_some(run.grad_x + j, count, grads.x);
    if (run.grad_residual) store_some(run.grad_residual + j, count, grads.residual);
  };
  const auto whole = [&](int64_t j) BN_INLINE_LAMBDA {
    Lanes<C> w = fill<C>(1);
    if (run.weights) w = run.weight_step ? load(run.weights + j) : fill<C>(*run.weights);
    return result(j, load(run.x + j), load(run.g + j), run.residual ? load(run.residual + j) : fill<C>(0), w);
  };
  int64_t j = 0;
  if (streaming) {
    j = until_aligned(run.grad_x, n);
    if (j > 0) some(0, j);
  }
  for (; j + 16 <= n; j += 16) {
    const Grads grads = whole(j);
    if (streaming) stream(run.grad_x + j, grads.x);
    else store(run.grad_x + j, grads.x);
    if (run.grad_residual) store(run.grad_residual + j, grads.residual);
  }
  if (j < n) some(j, n - j);
}

}  // namespace
}  // namespace BN_ISA
}  // namespace batchnorm
