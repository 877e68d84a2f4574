#include "libtorch/stable_tensor.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "runtime/memory.h"

namespace batchnorm {
namespace stable {
namespace {

struct Codes {
  int32_t dtypes[5], uint8, int64, strided, cpu;  // dtypes in the order of DType
} codes;

int32_t code_of(DType dtype) { return codes.dtypes[static_cast<int>(dtype)]; }

int dtype_of(int32_t code) {
  for (int i = 0; i < 5; ++i)
    if (codes.dtypes[i] == code) return i;
  return -1;
}

// A tensor over a block of the pool, or null where the pool does not serve.
Tensor pooled(int ndim, const int64_t* sizes, const int64_t* strides, int32_t dtype, int64_t bytes) {
  void* memory = abi().torch_from_blob ? pool_allocate(bytes) : nullptr;
  if (memory == nullptr) return nullptr;
  Tensor tensor = nullptr;
  const Error error = abi().torch_from_blob(
      memory, ndim, sizes, strides, 0, dtype, codes.cpu, -1, &tensor, codes.strided, nullptr, 0,
      [](void* data, void*) { pool_release(data); }, nullptr);
  // If it fails it may have called the deleter, so the block is not released here: better lost than given twice.
  check(error, "memory for a result");
  return tensor;
}

Handle empty(int ndim, const int64_t* sizes, const int64_t* strides, int32_t dtype) {
  int64_t elements = 1;
  for (int d = 0; d < ndim; ++d) elements *= sizes[d];
  Tensor tensor = pooled(ndim, sizes, strides, dtype, elements * bytes_of(static_cast<DType>(dtype_of(dtype))));
  if (tensor != nullptr) return Handle(tensor);
  check(abi().aoti_torch_empty_strided(ndim, sizes, strides, dtype, codes.cpu, 0, &tensor), "memory for a result");
  return Handle(tensor);
}

// Strides of a dense array whose axes lie in memory in this order, outermost first.
void dense_strides(const View& x, const int* order, int64_t* strides) {
  int64_t step = 1;
  for (int i = x.ndim - 1; i >= 0; --i) strides[order[i]] = step, step *= x.sizes[order[i]];
}

// PyTorch's rule for which strides mean channels-last: from the channels outwards over W, H, (D) and N they never decrease. Its two
// exceptions, from c10/core/MemoryFormat.h: channels that are broadcast, and (N, 1, 1, 1), which both formats describe.
bool is_channels_last_like(const View& x) {
  if (x.strides[1] == 0) return false;
  const int order[] = {1, x.ndim - 1, x.ndim - 2, x.ndim == 5 ? 2 : 0, 0};
  int64_t least = 0;
  for (int i = 0; i < x.ndim; ++i) {
    const int d = order[i];
    if (x.sizes[d] == 0 || x.strides[d] < least || (d == 0 && least == x.strides[1])) return false;
    least = x.strides[d];
    if (x.sizes[d] > 1) least *= x.sizes[d];
  }
  return true;
}

// Whether x is dense with its axes in memory in this order, outermost first; where an axis of one element lies says nothing.
bool is_dense_in(const View& x, const int* order) {
  int64_t step = 1;
  for (int i = x.ndim - 1; i >= 0; step *= x.sizes[order[i--]])
    if (x.sizes[order[i]] != 1 && x.strides[order[i]] != step) return false;
  return true;
}

bool is_dense(const View& x) {
  int axes[kMaxDims], n = 0;
  for (int d = 0; d < x.ndim; ++d)
    if (x.sizes[d] != 1) axes[n++] = d;
  std::sort(axes, axes + n, [&](int a, int b) { return x.strides[a] < x.strides[b]; });
  int64_t step = 1;
  for (int i = 0; i < n; step *= x.sizes[axes[i++]])
    if (x.strides[axes[i]] != step) return false;
  return true;
}

}  // namespace

void read_codes() {
  const Abi& a = abi();
  codes = {{a.aoti_torch_dtype_float64(), a.aoti_torch_dtype_float32(), a.aoti_torch_dtype_float16(), a.aoti_torch_dtype_bfloat16(),
            a.aoti_torch_dtype_bool()},
           a.aoti_torch_dtype_uint8(),
           a.aoti_torch_dtype_int64(),
           a.aoti_torch_layout_strided(),
           a.aoti_torch_device_type_cpu()};
}

void check(Error error, const char* what) {
  if (error != 0) throw std::runtime_error(std::string("batchnorm: libtorch refused ") + what);
}

Handle Handle::again() const {
  Tensor tensor;
  check(abi().aoti_torch_new_tensor_handle(tensor_, &tensor), "another reference");
  return Handle(tensor);
}

bool Handle::defined() const {
  bool is = false;
  check(abi().aoti_torch_is_defined(tensor_, &is), "a tensor");
  return is;
}

bool Handle::readable() const {
  if (!defined()) return false;
  int32_t layout, device, dtype;
  check(abi().aoti_torch_get_layout(tensor_, &layout), "a layout");
  check(abi().aoti_torch_get_device_type(tensor_, &device), "a device");
  check(abi().aoti_torch_get_dtype(tensor_, &dtype), "a dtype");
  return layout == codes.strided && device == codes.cpu && dtype_of(dtype) >= 0;
}

View Handle::shape() const {
  int64_t ndim, *sizes, *strides;
  int32_t dtype;
  check(abi().aoti_torch_get_dim(tensor_, &ndim), "a rank");
  check(abi().aoti_torch_get_sizes(tensor_, &sizes), "sizes");
  check(abi().aoti_torch_get_strides(tensor_, &strides), "strides");
  check(abi().aoti_torch_get_dtype(tensor_, &dtype), "a dtype");
  return {nullptr, static_cast<DType>(dtype_of(dtype)), static_cast<int>(ndim), sizes, strides};
}

View Handle::view(bool writable) const {
  if (!tensor_) return {};
  View v = shape();
  void* data;
  if (writable) check(abi().torch_get_mutable_data_ptr(tensor_, &data), "memory");
  else check(abi().torch_get_const_data_ptr(tensor_, const_cast<const void**>(&data)), "memory");
  static char nothing;  // an empty tensor is there, too
  v.data = data != nullptr ? static_cast<char*>(data) : &nothing;
  return v;
}

int64_t Handle::storage_bytes() const {
  int64_t bytes, offset;
  check(abi().aoti_torch_get_storage_size(tensor_, &bytes), "a storage");
  check(abi().aoti_torch_get_storage_offset(tensor_, &offset), "a storage");
  return offset == 0 ? bytes : -1;
}

int64_t* Handle::int64() const {
  if (!defined()) return nullptr;
  int64_t ndim;
  int32_t dtype, device;
  void* data;
  check(abi().aoti_torch_get_dim(tensor_, &ndim), "a rank");
  check(abi().aoti_torch_get_dtype(tensor_, &dtype), "a dtype");
  check(abi().aoti_torch_get_device_type(tensor_, &device), "a device");
  if (ndim != 0 || dtype != codes.int64 || device != codes.cpu) return nullptr;
  check(abi().torch_get_mutable_data_ptr(tensor_, &data), "memory");
  return static_cast<int64_t*>(data);
}

Handle undefined() {
  Tensor tensor;
  check(abi().aoti_torch_new_uninitialized_tensor(&tensor), "an undefined tensor");
  return Handle(tensor);
}

Handle empty_vector(int64_t n, DType dtype) {
  const int64_t one = 1;
  return empty(1, &n, &one, code_of(dtype));
}

Handle empty_vector_with_tail(int64_t n, DType dtype, int64_t tail_bytes) {
  const Handle whole = empty_vector(n + tail_bytes / bytes_of(dtype), dtype);
  const int64_t one = 1;
  Tensor tensor;
  check(abi().aoti_torch__reinterpret_tensor(whole.get(), 1, &n, &one, 0, &tensor), "memory for a result");
  return Handle(tensor);
}

Handle empty_bytes() {
  const int64_t none = 0, one = 1;
  return empty(1, &none, &one, codes.uint8);
}

Handle empty_matrix(int64_t rows, int64_t columns, DType dtype) {
  const int64_t sizes[] = {rows, columns}, strides[] = {columns, 1};
  return empty(2, sizes, strides, code_of(dtype));
}

Handle empty_table(int64_t rows, int64_t ghosts, int64_t columns) {
  if (ghosts == 0) return empty_matrix(rows, columns, DType::f64);
  const int64_t sizes[] = {rows, ghosts, columns}, strides[] = {ghosts * columns, columns, 1};
  return empty(3, sizes, strides, code_of(DType::f64));
}

Handle empty_in_suggested_format(const View& x) {
  int contiguous[kMaxDims], channels_last[kMaxDims];
  for (int d = 0; d < x.ndim; ++d) contiguous[d] = d, channels_last[d] = d == 0 ? 0 : d + 1;
  channels_last[x.ndim - 1] = 1;
  const bool images = x.ndim == 4 || x.ndim == 5;
  const bool last = images && !is_dense_in(x, contiguous) && (is_dense_in(x, channels_last) || is_channels_last_like(x));
  int64_t strides[kMaxDims];
  dense_strides(x, last ? channels_last : contiguous, strides);
  return empty(x.ndim, x.sizes, strides, code_of(x.dtype));
}

Handle empty_dense(const View& x) { return is_dense(x) ? empty(x.ndim, x.sizes, x.strides, code_of(x.dtype)) : Handle(); }

Handle empty_like(const Handle& tensor, const View& x) {
  if (Handle dense = empty_dense(x)) return dense;
  Value stack[6] = {reinterpret_cast<Value>(tensor.again().release())};  // and five options that are not given
  check(abi().torch_call_dispatcher("aten::empty_like", "", stack, kVersion), "memory for a result");
  return Handle(reinterpret_cast<Tensor>(stack[0]));
}

std::array<bool, 3> Arguments::three_booleans() {
  const auto list = reinterpret_cast<List>(*next_++);
  std::array<bool, 3> values;
  for (size_t i = 0; i < values.size(); ++i) {
    Value value = 0;
    check(abi().torch_list_get_item(list, i, &value), "an item");
    values[i] = (value & 1) != 0;
  }
  abi().torch_delete_list(list);
  return values;
}

bool Arguments::optional(Value* inner) {
  auto* box = reinterpret_cast<Value*>(*next_++);
  if (box == nullptr) return false;
  *inner = *box;
  if (abi().torch_delete_stable_ivalue) abi().torch_delete_stable_ivalue(box);
  else delete box;
  return true;
}

}  // namespace stable
}  // namespace batchnorm
