// The bits of the kernels' results, as one line of text for each layout, type and option: another processor, compiler or
// instruction set must print the same lines. Needs no Python. Fails where an instruction set at hand differs from the
// specification, and where an activation of the list has no case.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <iterator>
#include <string>
#include <vector>

#include "core/collapse.h"
#include "core/convert.h"
#include "kernels/select.h"

using namespace batchnorm;

namespace {

// --- numbers: the same everywhere, since nothing but integers, exact products and single roundings make them ---

struct Random {
  uint64_t state;

  uint64_t next() {  // splitmix64
    uint64_t z = state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u, z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
  }
  double uniform() { return static_cast<double>(next() >> 11) * 0x1p-53; }
  double bell() { return uniform() + uniform() + uniform() + uniform() - 2; }
};

void set(char* at, DType dtype, double v) {
  const float f = static_cast<float>(v);
  const Half h = to_half(f);
  const BFloat16 b = to_bfloat16(f);
  switch (dtype) {
    case DType::f64: std::memcpy(at, &v, 8); break;
    case DType::f32: std::memcpy(at, &f, 4); break;
    case DType::f16: std::memcpy(at, &h, 2); break;
    case DType::bf16: std::memcpy(at, &b, 2); break;
    case DType::boolean: *at = v != 0; break;
  }
}

// FNV-1a over 64 bits a value; every NaN is the same one.
struct Hash {
  uint64_t value = 0xcbf29ce484222325u;

  void add(uint64_t bits) { value = (value ^ bits) * 0x100000001b3u, value ^= value >> 29; }
  void add(double v) {
    uint64_t bits = 0x7ff8000000000000u;
    if (!std::isnan(v)) std::memcpy(&bits, &v, 8);
    add(bits);
  }
  void add(const char* at, DType dtype) {
    double d;
    float f;
    uint16_t u;
    switch (dtype) {
      case DType::f64: std::memcpy(&d, at, 8), add(d); break;
      case DType::f32: std::memcpy(&f, at, 4), add(static_cast<double>(f)); break;
      case DType::f16: std::memcpy(&u, at, 2), add(static_cast<double>(to_float(Half{u}))); break;
      default: std::memcpy(&u, at, 2), add(static_cast<double>(to_float(BFloat16{u})));
    }
  }
};

// --- cases ---

struct Layout {
  const char* name;
  int64_t N, C, S;
  bool channels_last;
  int64_t gap;  // memory between two neighbors along the last axis, in elements
};
constexpr Layout kLayouts[] = {
    {"planes", 3, 5, 1500, false, 1},       {"tiny planes", 40, 37, 9, false, 1}, {"strided planes", 5, 3, 333, false, 2},
    {"channels last", 3, 37, 700, true, 1}, {"rows", 131, 530, 1, true, 1},       {"narrow rows", 1100, 5, 2, true, 1},
    {"strided rows", 70, 33, 1, true, 3},   {"one column", 5000, 1, 1, true, 1},
};

struct Type {
  const char* name;
  DType dtype;
};
constexpr Type kTypes[] = {{"float64", DType::f64}, {"float32", DType::f32}, {"float16", DType::f16}, {"bfloat16", DType::bf16}};

struct Options {
  const char* name;
  Activation activation;
  bool residual, training;
  DType weights;         // f16: none
  double offset, scale;  // of the values
  double unusual;        // one value; 0: none
  double missing = 0;    // how many cells are
};
constexpr DType kNone = DType::f16;
constexpr Options kOptions[] = {
    {"plain", Activation::none, false, true, kNone, 0.5, 1, 0},
    {"relu, residual", Activation::relu, true, true, kNone, -30, 2, 0},
    {"relu6, mask", Activation::relu6, false, true, DType::boolean, 3, 1, 0},
    {"leaky relu, weights", Activation::leaky_relu, true, true, DType::f32, 0, 100, 0},
    {"silu, running statistics", Activation::silu, false, false, kNone, 1, 1, 0},
    {"relu, running statistics", Activation::relu, false, false, kNone, 1, 1, 0},
    {"huge", Activation::none, false, true, kNone, 0, 1e30, 0},
    {"squares underflow", Activation::relu, false, true, kNone, 1e-12, 1e-19, 0},
    {"far", Activation::none, true, true, kNone, 4000, 0.25, 0},
    {"infinite", Activation::relu, false, true, kNone, 0, 1, INFINITY},
    {"not a number", Activation::gelu, true, true, kNone, 0, 1, NAN},
    {"gelu, missing", Activation::gelu, false, true, kNone, 1, 2, 0, 0.2},
    {"gelu with tanh, mask, missing", Activation::gelu_tanh, true, true, DType::boolean, -1, 1, 0, 0.2},
    {"hardswish, weights, missing", Activation::hardswish, false, true, DType::f32, 0, 4, 0, 0.2},
    {"elu", Activation::elu, true, true, kNone, 2, 1, 0},
    {"hardswish, mask", Activation::hardswish, true, true, DType::boolean, 0, 1, 0},
    {"elu, running statistics, missing", Activation::elu, false, false, kNone, 3, 1, 0, 0.5},
    {"plain, missing", Activation::none, false, true, kNone, 0.5, 1, 0, 0.05},
    {"relu, missing", Activation::relu, false, true, kNone, 0, 1e30, 0, 0.7},
};

// --- one problem ---

class Case {
 public:
  Case(const Layout& layout, DType dtype, const Options& options) : dtype_(dtype), options_(options), random_{20150211} {
    const auto [name, N, C, S, last, gap] = layout;
    sizes_ = {N, C, S};
    strides_ = last ? std::vector<int64_t>{S * C * gap, 1, C * gap} : std::vector<int64_t>{C * S * gap, S * gap, gap};
    weight_strides_ = {S, 0, 1};
    elements_ = static_cast<size_t>(N * C * S * gap);
    x_ = values(options.offset, options.scale);
    if (options.unusual != 0) set(x_.data() + bytes_of(dtype) * (last ? 2 : S + 1), dtype, options.unusual);
    for (size_t i = 0; options.missing > 0 && i < elements_; ++i)
      if (random_.uniform() < options.missing) set(x_.data() + i * static_cast<size_t>(bytes_of(dtype)), dtype, NAN);
    grad_ = values(0.25, 1), residual_ = values(0, 1);
    weights_.resize(static_cast<size_t>(N * S * bytes_of(options.weights)));
    for (int64_t i = 0; i < N * S; ++i) set(weights_.data() + i * bytes_of(options.weights), options.weights, weight());
    for (int64_t c = 0; c < C; ++c) gamma_.push_back(random_.bell()), beta_.push_back(random_.bell());
  }

  uint64_t run(const Kernels& kernels, int threads) {
    const auto C = static_cast<size_t>(sizes_[1]);
    std::vector<double> moments(4 * C), sums(2 * C);
    std::vector<char> y(x_.size(), 1), dx(x_.size(), 1), dr(x_.size(), 1);
    const auto problem = [&](std::vector<Operand> operands) {
      if (options_.residual) operands.push_back({&Problem::residual, view(residual_)});
      if (options_.weights != kNone)
        operands.push_back({&Problem::weights, {weights_.data(), options_.weights, 3, sizes_.data(), weight_strides_.data()}});
      Problem p;
      collapse(p, 1 << 1, operands);
      p.moments = {moments.data(), moments.data() + C, moments.data() + 2 * C, moments.data() + 3 * C, nullptr};
      p.weight = gamma_.data(), p.bias = beta_.data(), p.eps = 1e-5;
      p.activation = options_.activation, p.slope = 0.01, p.omit = options_.missing > 0, p.threads = threads;
      p.training = options_.training, p.grad_weight = sums.data(), p.grad_bias = sums.data() + C;
      return p;
    };
    kernels.forward(problem({{&Problem::x, view(x_)}, {&Problem::y, view(y)}}));
    std::vector<Operand> operands = {{&Problem::x, view(x_)}, {&Problem::grad_y, view(grad_)}, {&Problem::grad_x, view(dx)}};
    if (options_.residual) operands.push_back({&Problem::grad_residual, view(dr)});
    kernels.backward(problem(operands));
    Hash hash;
    for (const double v : moments) hash.add(v);
    for (const double v : sums) hash.add(v);
    for (const auto* array : {&y, &dx, &dr})
      for (size_t i = 0; i < elements_; ++i) hash.add(array->data() + i * static_cast<size_t>(bytes_of(dtype_)), dtype_);
    return hash.value;
  }

 private:
  DType dtype_;
  const Options& options_;
  Random random_;
  std::vector<int64_t> sizes_, strides_, weight_strides_;
  size_t elements_ = 0;
  std::vector<char> x_, grad_, residual_, weights_;
  std::vector<double> gamma_, beta_;

  View view(std::vector<char>& array) const { return {array.data(), dtype_, 3, sizes_.data(), strides_.data()}; }

  std::vector<char> values(double offset, double scale) {
    const auto size = static_cast<size_t>(bytes_of(dtype_));
    std::vector<char> array(elements_ * size);
    for (size_t i = 0; i < elements_; ++i) set(array.data() + i * size, dtype_, offset + scale * random_.bell());
    return array;
  }
  double weight() {
    const double u = random_.uniform();
    return u < 0.2 ? 0 : options_.weights == DType::boolean ? 1 : u;
  }
};

}  // namespace

int main() {
  const std::vector<const Kernels*>& all = list_kernels();
  const Kernels* specification = all.back();
  int wrong = 0;
  for (const AboutActivation& one : kActivations)
    if (std::none_of(std::begin(kOptions), std::end(kOptions), [&](const Options& o) { return o.activation == one.code; }))
      std::fprintf(stderr, "no case has %s\n", one.name), ++wrong;
  for (const Layout& layout : kLayouts)
    for (const Type& type : kTypes)
      for (const Options& options : kOptions) {
        Case problem(layout, type.dtype, options);
        const uint64_t expected = problem.run(*specification, 1);
        std::printf("%016llx  %s, %s, %s\n", static_cast<unsigned long long>(expected), layout.name, type.name, options.name);
        for (const Kernels* one : all)
          for (const int threads : {1, 3}) {
            if (one == specification || problem.run(*one, threads) == expected) continue;
            std::fprintf(stderr, "%s, %d threads: other bits of %s, %s, %s\n", one->name, threads, layout.name, type.name,
                         options.name);
            ++wrong;
          }
      }
  for (const Kernels* one : all) std::fprintf(stderr, "%s%s", one->name, one == all.back() ? "" : ", ");
  std::fprintf(stderr, ": %d wrong\n", wrong);
  return wrong != 0;
}
