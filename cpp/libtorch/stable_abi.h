// LibTorch's stable C ABI: the functions that we call, found in the libtorch that the process has loaded. No torch header at build
// time; one build serves every torch that has them (2.10 and later). Names and meaning: torch/csrc/stable/c/shim.h and
// torch/csrc/inductor/aoti_torch/c/shim.h of PyTorch.
#pragma once

#include <cstdint>
#include <string>

namespace batchnorm {
namespace stable {

using Value = uint64_t;  // a boxed argument or result: a number's bits, or a pointer; of an optional, null or a pointer to a Value
using Tensor = void*;    // owned by who holds it
using List = void*;
using Library = void*;
using Error = int32_t;
using Kernel = void (*)(Value* stack, uint64_t arguments, uint64_t results);

struct Abi {
  Error (*aoti_torch_library_init_impl)(const char* ns, const char* key, const char* file, uint32_t line, Library*);
  Error (*torch_library_impl)(Library, const char* name, Kernel, uint64_t version);
  Error (*aoti_torch_delete_library_object)(Library);
  Error (*torch_call_dispatcher)(const char* name, const char* overload, Value* stack, uint64_t version);
  Error (*aoti_torch_new_tensor_handle)(Tensor, Tensor*);
  Error (*aoti_torch_new_uninitialized_tensor)(Tensor*);
  Error (*aoti_torch_delete_tensor_object)(Tensor);
  Error (*aoti_torch_is_defined)(Tensor, bool*);
  Error (*torch_get_const_data_ptr)(Tensor, const void**);
  Error (*torch_get_mutable_data_ptr)(Tensor, void**);
  Error (*aoti_torch_get_dim)(Tensor, int64_t*);
  Error (*aoti_torch_get_sizes)(Tensor, int64_t**);
  Error (*aoti_torch_get_strides)(Tensor, int64_t**);
  Error (*aoti_torch_get_dtype)(Tensor, int32_t*);
  Error (*aoti_torch_get_storage_size)(Tensor, int64_t* bytes);
  Error (*aoti_torch_get_storage_offset)(Tensor, int64_t*);
  Error (*aoti_torch_get_layout)(Tensor, int32_t*);
  Error (*aoti_torch_get_device_type)(Tensor, int32_t*);
  Error (*aoti_torch_empty_strided)(int64_t ndim, const int64_t* sizes, const int64_t* strides, int32_t dtype, int32_t device_type,
                                    int32_t device_index, Tensor*);
  Error (*aoti_torch__reinterpret_tensor)(Tensor, int64_t ndim, const int64_t* sizes, const int64_t* strides, int64_t offset,
                                          Tensor*);
  Error (*torch_list_get_item)(List, size_t, Value*);
  Error (*torch_delete_list)(List);
  Error (*torch_parallel_for)(int64_t begin, int64_t end, int64_t grain, void (*)(int64_t, int64_t, void*), void*);
  Error (*torch_get_num_threads)(uint32_t*);
  bool (*aoti_torch_grad_mode_is_enabled)();
  int32_t (*aoti_torch_dtype_float64)();
  int32_t (*aoti_torch_dtype_float32)();
  int32_t (*aoti_torch_dtype_float16)();
  int32_t (*aoti_torch_dtype_bfloat16)();
  int32_t (*aoti_torch_dtype_bool)();
  int32_t (*aoti_torch_dtype_uint8)();
  int32_t (*aoti_torch_dtype_int64)();
  int32_t (*aoti_torch_layout_strided)();
  int32_t (*aoti_torch_device_type_cpu)();
  Error (*torch_from_blob)(void* data, int64_t ndim, const int64_t* sizes, const int64_t* strides, int64_t offset, int32_t dtype,
                           int32_t device_type, int32_t device_index, Tensor*, int32_t layout, const uint8_t* metadata,
                           int64_t metadata_bytes, void (*deleter)(void* data, void* context), void* context);  // since 2.11
  Error (*torch_delete_stable_ivalue)(Value*);  // since 2.13; before, an optional is freed with delete
};

// Finds them in the library at `path`, which must be loaded already. Empty where all are there, else the first that is missing.
std::string connect(const std::string& path);

// What `connect` has found.
const Abi& abi();

}  // namespace stable
}  // namespace batchnorm
