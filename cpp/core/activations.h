// The activations, in one list. What each computes stands in kernels/activation.h and, written again to be compared with it, in
// reference.cpp and _reference.py; what PyTorch calls it, in torch/_activations.py.
#pragma once

namespace batchnorm {

enum class Activation : int { none, relu, relu6, leaky_relu, silu };

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
};
constexpr int kActivationCount = sizeof kActivations / sizeof *kActivations;

constexpr bool in_order() {
  for (int i = 0; i < kActivationCount; ++i)
    if (static_cast<int>(kActivations[i].code) != i) return false;
  return true;
}
static_assert(in_order());

}  // namespace batchnorm
