// The activations, in one list. What each computes stands in kernels/activation.h and, written again to be compared with it, in
// reference.cpp and _reference.py; what PyTorch calls it, in torch/_activations.py.
#pragma once

namespace batchnorm {

enum class Activation : int { none, relu, relu6, leaky_relu, silu, gelu, gelu_tanh, hardswish, elu };

struct AboutActivation {
  Activation code;
  const char* name;  // as Python's option has it
  // y tells the derivative: it lies on the side of each corner on which that lies what the activation was applied to, NaN too. Of
  // one with a number, where that is above 0.
  bool told_by_y;
  const char* parameter;  // the name of the number that goes with it; "" where there is none
  double slope;           // its default
};

// In the order of their codes.
constexpr AboutActivation kActivations[] = {
    {Activation::none, "none", true, "", 0},                      // a line each
    {Activation::relu, "relu", true, "", 0},                      //
    {Activation::relu6, "relu6", true, "", 0},                    //
    {Activation::leaky_relu, "leaky_relu", true, "slope", 0.01},  //
    {Activation::silu, "silu", false, "", 0},                     //
    {Activation::gelu, "gelu", false, "", 0},                     //
    {Activation::gelu_tanh, "gelu_tanh", false, "", 0},           //
    {Activation::hardswish, "hardswish", false, "", 0},           //
    {Activation::elu, "elu", false, "alpha", 1},                  //
};
constexpr int kActivationCount = sizeof kActivations / sizeof *kActivations;

constexpr bool in_order() {
  for (int i = 0; i < kActivationCount; ++i)
    if (static_cast<int>(kActivations[i].code) != i) return false;
  return true;
}
static_assert(in_order());

// The tail of the normal distribution: for a from 0 to 37.7, P(Z > a) = e^(-a^2/2) P(u) / (a + 5) with u = (a - 5) / (a + 5). P is
// interpolated at the zeros of a Chebyshev polynomial, and 1.1e-17 (float: for a to 13.3, 1.2e-8) off, relatively. That the tail is
// the density times something smooth: W. J. Cody, Rational Chebyshev approximations for the error function, 1969.
template <class C> struct NormalTail;
template <> struct NormalTail<float> {
  static constexpr float kCoefficients[] = {0x1.89d3acp-1,  -0x1.54adp-1,  0x1.fb3194p-2,  -0x1.410fa2p-2,  0x1.51eee6p-3,
                                            -0x1.1b0528p-4, 0x1.565756p-6, -0x1.89ce04p-9, -0x1.12a3c6p-10, 0x1.86efe2p-12};
};
template <> struct NormalTail<double> {
  static constexpr double kCoefficients[] = {
      0x1.89d3abe1f95aep-1,   -0x1.54ad03f27ca17p-1,  0x1.fb31653876f8bp-2,  -0x1.410ed5f875a68p-2,  0x1.51f6329f01a32p-3,
      -0x1.1b1c254c9aa33p-4,  0x1.54b4d4f4a3a82p-6,   -0x1.88590eaa62af1p-9, -0x1.a25037ae5d1f2p-11, 0x1.1daf1d4483a18p-11,
      -0x1.f214721776eddp-15, -0x1.a170d5a0917f8p-15, 0x1.17dd949f658c1p-16, 0x1.0b27f2748b11dp-18,  -0x1.73b521743fa44p-19,
      -0x1.6992eecb09abcp-22, 0x1.d1535f819c214p-22,  0x1.6d335390ae7d1p-25, -0x1.1bd4d8ae08ac2p-24, -0x1.47f34f478c407p-27,
      0x1.075480456e6c5p-27,  0x1.faaebb32e99c1p-30,  -0x1.1a88337aefce7p-33};
};
constexpr double kNormalPeak = 0.3989422804014327;                           // 1 / sqrt(2 pi)
constexpr double kTanh1 = 1.5957691216057308, kTanh3 = 0.07135481627260025;  // 2 sqrt(2 / pi), and 0.044715 of it

}  // namespace batchnorm
