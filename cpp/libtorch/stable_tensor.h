// Tensors, arguments and results as the stable C ABI hands them over.
#pragma once

#include <array>
#include <cstring>
#include <initializer_list>
#include <utility>

#include "core/collapse.h"
#include "libtorch/stable_abi.h"

namespace batchnorm {
namespace stable {

constexpr uint64_t kVersion = uint64_t(2) << 56 | uint64_t(10) << 48;  // of the ABI that this is written for: 2.10

void read_codes();  // of dtypes and devices, constants of the libtorch that is loaded; once, after connect()

void check(Error error, const char* what);

// Owns a tensor, or nothing.
class Handle {
 public:
  Handle() = default;
  explicit Handle(Tensor tensor) : tensor_(tensor) {}
  Handle(Handle&& other) noexcept : tensor_(std::exchange(other.tensor_, nullptr)) {}
  Handle& operator=(Handle&& other) noexcept {
    std::swap(tensor_, other.tensor_);
    return *this;
  }
  ~Handle() {
    if (tensor_) abi().aoti_torch_delete_tensor_object(tensor_);
  }

  explicit operator bool() const { return tensor_ != nullptr; }
  Tensor get() const { return tensor_; }
  Tensor release() { return std::exchange(tensor_, nullptr); }
  Handle again() const;  // another reference
  bool defined() const;

  // Whether kernels can read it: strided memory of the CPU, of a dtype they know.
  bool readable() const;
  View view(bool writable = false) const;
  View shape() const;             // without its memory, which it need not have
  int64_t storage_bytes() const;  // of its whole storage; -1 where it does not start there
  int64_t* int64() const;         // a single integer to be written; null where it is not one

 private:
  Tensor tensor_ = nullptr;
};

Handle undefined();
Handle empty_vector(int64_t n, DType dtype);
Handle empty_matrix(int64_t rows, int64_t columns, DType dtype);
Handle empty_vector_with_tail(int64_t n, DType dtype, int64_t tail_bytes);  // n values in a larger storage
Handle empty_bytes();                                                       // uint8, no elements
Handle empty_table(int64_t rows, int64_t ghosts, int64_t columns);          // float64; of no ghosts, without their axis
Handle empty_in_suggested_format(const View& x);         // as PyTorch's batch norm does: contiguous, or like x in channels-last
Handle empty_like(const Handle& tensor, const View& x);  // as torch.empty_like(x): a dense array keeps its strides
Handle empty_dense(const View& x);                       // the same, or nothing where x is not dense

// Takes arguments from the stack in the order of the schema; what it returns is owned.
class Arguments {
 public:
  explicit Arguments(Value* stack) : next_(stack) {}

  Handle tensor() { return Handle(reinterpret_cast<Tensor>(*next_++)); }
  Handle defined_tensor() {  // or nothing: autograd says "none" with an undefined tensor, too
    Handle given = tensor();
    return given.defined() ? std::move(given) : Handle();
  }
  Handle optional_tensor() {
    Value inner;
    if (!optional(&inner)) return Handle();
    Handle given(reinterpret_cast<Tensor>(inner));
    return given.defined() ? std::move(given) : Handle();
  }
  double number() { return number_of(*next_++); }
  bool optional_number(double* to) {
    Value inner;
    const bool given = optional(&inner);
    if (given) *to = number_of(inner);
    return given;
  }
  int64_t integer() { return static_cast<int64_t>(*next_++); }
  bool boolean() { return (*next_++ & 1) != 0; }
  std::array<bool, 3> three_booleans();

 private:
  Value* next_;

  bool optional(Value* inner);
  static double number_of(Value bits) {
    double value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
  }
};

// Results go where the arguments were.
inline void give(Value* stack, std::initializer_list<Handle*> results) {
  for (Handle* h : results) *stack++ = reinterpret_cast<Value>(h->release());
}

}  // namespace stable
}  // namespace batchnorm
