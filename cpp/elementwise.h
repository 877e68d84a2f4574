// The element loops: one run of contiguous elements, forward or backward. A run's coefficients come from a source: the same for
// the whole run (contiguous layouts: a run belongs to one channel), or one for each column (channels-last).
#pragma once

#include "activation.h"
#include "coefficients.h"
#include "load_store.h"

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

// dL/dz from dL/dy; z is recomputed as the forward computed it, so that the corner falls on the same side, or, in place of the
// residual, y is there, which lies on the same side.
template <Variant V, class C, class K>
BN_INLINE Lanes<C> grad_before_activation(const Problem& p, const K& k, int64_t j, Lanes<C> x, Lanes<C> g,
                                          const Lanes<C>* residual) {
  if constexpr (V == Variant::plain) return g;
  if (V == Variant::wide && p.activation == Activation::none) return g;
  const bool from_y = residual && p.residual_is_y;
  Lanes<C> z = from_y ? *residual : normalized<V>(k, j, x);
  if (residual && !from_y) z = z + *residual;
  if constexpr (V == Variant::relu) return activate_backward(Activation::relu, C(0), z, g);
  return activate_backward(p.activation, static_cast<C>(p.slope), z, g);
}

// Elements up to the first one at which a whole vector can be streamed.
template <class T> BN_INLINE int64_t until_aligned(const T* p) {
  return static_cast<int64_t>((0 - reinterpret_cast<uintptr_t>(p)) % 64 / sizeof(T));
}

// put(j, whole(j)) for vectors that cover a run of n >= 16 elements; the last one overlaps its neighbour. It is computed before
// anything is written, for the output may be the input.
template <class F, class G> BN_INLINE void each_vector(int64_t n, const F& whole, const G& put) {
  const auto last = whole(n - 16);
  for (int64_t j = 0; j + 16 < n; j += 16) put(j, whole(j));
  put(n - 16, last);
}

// The same past the cache: vectors of whole lines, and beside them put_some(j, count, vector, lane) for what shares its line with
// another run, for a line must not be written both ways.
template <class T, class F, class G, class H>
BN_INLINE void each_line(const T* out, int64_t n, const F& whole, const G& put, const H& put_some) {
  const auto first = whole(0), last = whole(n - 16);
  const int64_t head = until_aligned(out), end = n - (n - head) % 16;
  for (int64_t j = head; j < end; j += 16) put(j, whole(j));
  if (head > 0) put_some(0, head, first, 0);
  if (end < n) put_some(end, n - end, last, 16 - (n - end));
}

template <class T> struct ForwardRun {
  const T *x, *residual;
  T* y;
};

template <class T, class K, Variant V>
BN_INLINE void forward_run(const Problem& p, const Table<Compute<T>>& table, int64_t c, ForwardRun<T> run, int64_t n,
                           bool streaming) {
  const K k(table, c);  // of its own: stores to y cannot change it, and the compiler knows
  using C = Compute<T>;
  const auto result = [&](int64_t j, Lanes<C> x, Lanes<C> r) BN_INLINE_LAMBDA {
    Lanes<C> z = normalized<V>(k, j, x);
    if (run.residual) z = z + r;
    return activated<V>(p, z);
  };
  if (n < 16) {
    const Lanes<C> r = run.residual ? load_some(run.residual, 0, n) : fill<C>(0);
    return store_some(run.y, n, result(0, load_some(run.x, 0, n), r));
  }
  const auto whole = [&](int64_t j) BN_INLINE_LAMBDA {
    return result(j, load(run.x + j), run.residual ? load(run.residual + j) : fill<C>(0));
  };
  if (streaming) {
    each_line(
        run.y, n, whole, [&](int64_t j, Lanes<C> y) BN_INLINE_LAMBDA { stream(run.y + j, y); },
        [&](int64_t j, int64_t count, Lanes<C> y, int64_t lane) { store_some(run.y + j, count, y, lane); });
  } else {
    each_vector(n, whole, [&](int64_t j, Lanes<C> y) BN_INLINE_LAMBDA { store(run.y + j, y); });
  }
}

// `weights`: null, one for each element, or (weight_step 0) one for the run.
template <class T> struct BackwardRun {
  const T *x, *g, *residual;
  T *grad_x, *grad_residual;
  const Compute<T>* weights;
  int64_t weight_step;
};

// The case worth a loop of its own: training, without weights and without a residual.
inline bool is_common(const Problem& p) { return p.training && !p.weights && !p.residual && !p.grad_residual; }

template <class T, class K, Variant V, bool Common>
BN_INLINE void backward_run(const Problem& p, const Table<Compute<T>>& table, int64_t c, BackwardRun<T> run, int64_t n,
                            bool streaming) {
  const K k(table, c);
  using C = Compute<T>;
  struct Grads {
    Lanes<C> x, residual;
  };
  const bool training = Common || p.training, weighted = !Common && run.weights;
  const bool adds = !Common && run.residual, saves = !Common && run.grad_residual;
  const auto result = [&](int64_t j, Lanes<C> x, Lanes<C> g, Lanes<C> r, Lanes<C> w) BN_INLINE_LAMBDA {
    const Lanes<C> before = grad_before_activation<V>(p, k, j, x, g, adds ? &r : nullptr), zero = fill<C>(0);
    Lanes<C> inner = before;
    if (training) {
      Lanes<C> through_moments = multiply_add(x - k.narrow(k.center, j), k.narrow(k.k1, j), k.narrow(k.k0, j));
      if (weighted) through_moments = if_less(zero, w, through_moments * w, zero);
      inner = before - through_moments;
    }
    Lanes<C> grad_x = inner * k.narrow(k.scale, j);
    if constexpr (V == Variant::wide) {
      D16 wide = to_wide(before);
      if (training) {
        D16 through = (to_wide(x) - k.widened(k.mean, j)) * k.widened(k.wide_k1, j) + k.widened(k.wide_k0, j);
        if (weighted) through = if_less(fill<double>(0), to_wide(w), through * to_wide(w), fill<double>(0));
        wide = wide - through;
      }
      grad_x = blend(k, j, wide * k.widened(k.wide_scale, j), grad_x);
    }
    return Grads{grad_x, before};
  };
  if (n < 16) {
    const Lanes<C> r = adds ? load_some(run.residual, 0, n) : fill<C>(0);
    Lanes<C> w = fill<C>(1);
    if (weighted) w = run.weight_step ? load_some(run.weights, 0, n) : fill<C>(*run.weights);
    const Grads grads = result(0, load_some(run.x, 0, n), load_some(run.g, 0, n), r, w);
    store_some(run.grad_x, n, grads.x);
    if (saves) store_some(run.grad_residual, n, grads.residual);
    return;
  }
  const auto whole = [&](int64_t j) BN_INLINE_LAMBDA {
    Lanes<C> w = fill<C>(1);
    if (weighted) w = run.weight_step ? load(run.weights + j) : fill<C>(*run.weights);
    return result(j, load(run.x + j), load(run.g + j), adds ? load(run.residual + j) : fill<C>(0), w);
  };
  if (streaming) {
    each_line(
        run.grad_x, n, whole,
        [&](int64_t j, Grads grads) BN_INLINE_LAMBDA {
          stream(run.grad_x + j, grads.x);
          if (saves) store(run.grad_residual + j, grads.residual);
        },
        [&](int64_t j, int64_t count, Grads grads, int64_t lane) {
          store_some(run.grad_x + j, count, grads.x, lane);
          if (saves) store_some(run.grad_residual + j, count, grads.residual, lane);
        });
  } else {
    each_vector(n, whole, [&](int64_t j, Grads grads) BN_INLINE_LAMBDA {
      store(run.grad_x + j, grads.x);
      if (saves) store(run.grad_residual + j, grads.residual);
    });
  }
}

// The arrays of one run, whichever the problem has, and how far each is from the same run of the next channel.
template <class T> struct Runs {
  const T *x, *g, *residual;
  T *out, *grad_residual;  // out: y or grad_x
  struct {
    int64_t x, g, residual, out, grad_residual;
  } step;
  const Compute<T>* weights;
  int64_t weight_step;

  ForwardRun<T> forward() const { return {x, residual, out}; }
  BackwardRun<T> backward() const { return {x, g, residual, out, grad_residual, weights, weight_step}; }
  void next_channel() { x += step.x, g += step.g, residual += step.residual, out += step.out, grad_residual += step.grad_residual; }
};

// The runs of channels c0 … c1 - 1, or, with Columns, one run of columns from c0 on; forward or backward as the problem has it.
template <class T, class K, Variant V>
BN_OUTLINED void apply_to(const Problem& p, const Table<Compute<T>>& table, int64_t c0, int64_t c1, Runs<T> r, int64_t n,
                          bool streaming) {
  constexpr bool common = V != Variant::wide;  // rare, and large: not worth a loop of its own
  if (!p.grad_y) {
    for (int64_t c = c0; c < c1; ++c, r.next_channel()) forward_run<T, K, V>(p, table, c, r.forward(), n, streaming);
  } else if (common && is_common(p)) {
    for (int64_t c = c0; c < c1; ++c, r.next_channel()) backward_run<T, K, V, common>(p, table, c, r.backward(), n, streaming);
  } else {
    for (int64_t c = c0; c < c1; ++c, r.next_channel()) backward_run<T, K, V, false>(p, table, c, r.backward(), n, streaming);
  }
}

}  // namespace
}  // namespace BN_ISA
}  // namespace batchnorm
