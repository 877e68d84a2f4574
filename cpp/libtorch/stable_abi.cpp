#include "libtorch/stable_abi.h"

#include <dlfcn.h>

#include <type_traits>

namespace batchnorm {
namespace stable {
namespace {

Abi found;

}  // namespace

std::string connect(const std::string& path) {
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_NOLOAD);
  if (library == nullptr) return path + " (not loaded)";
  Abi all{};
  std::string missing;
  const auto find = [&](auto& function, const char* name, bool optional = false) {
    function = reinterpret_cast<std::decay_t<decltype(function)>>(dlsym(library, name));
    if (function == nullptr && !optional && missing.empty()) missing = name;
  };
#define BN_FIND(name) find(all.name, #name)
  BN_FIND(aoti_torch_library_init_impl);
  BN_FIND(torch_library_impl);
  BN_FIND(aoti_torch_delete_library_object);
  BN_FIND(torch_call_dispatcher);
  BN_FIND(aoti_torch_new_tensor_handle);
  BN_FIND(aoti_torch_new_uninitialized_tensor);
  BN_FIND(aoti_torch_delete_tensor_object);
  BN_FIND(aoti_torch_is_defined);
  BN_FIND(torch_get_const_data_ptr);
  BN_FIND(torch_get_mutable_data_ptr);
  BN_FIND(aoti_torch_get_dim);
  BN_FIND(aoti_torch_get_sizes);
  BN_FIND(aoti_torch_get_strides);
  BN_FIND(aoti_torch_get_dtype);
  BN_FIND(aoti_torch_get_storage_size);
  BN_FIND(aoti_torch_get_storage_offset);
  BN_FIND(aoti_torch_get_layout);
  BN_FIND(aoti_torch_get_device_type);
  BN_FIND(aoti_torch_empty_strided);
  BN_FIND(aoti_torch__reinterpret_tensor);
  BN_FIND(torch_list_get_item);
  BN_FIND(torch_delete_list);
  BN_FIND(torch_parallel_for);
  BN_FIND(torch_get_num_threads);
  BN_FIND(aoti_torch_grad_mode_is_enabled);
  BN_FIND(aoti_torch_dtype_float64);
  BN_FIND(aoti_torch_dtype_float32);
  BN_FIND(aoti_torch_dtype_float16);
  BN_FIND(aoti_torch_dtype_bfloat16);
  BN_FIND(aoti_torch_dtype_bool);
  BN_FIND(aoti_torch_dtype_uint8);
  BN_FIND(aoti_torch_dtype_int64);
  BN_FIND(aoti_torch_layout_strided);
  BN_FIND(aoti_torch_device_type_cpu);
#undef BN_FIND
  find(all.torch_from_blob, "torch_from_blob", true);
  find(all.torch_delete_stable_ivalue, "torch_delete_stable_ivalue", true);
  if (missing.empty()) found = all;  // the library stays open: torch is never unloaded
  else dlclose(library);
  return missing;
}

const Abi& abi() { return found; }

}  // namespace stable
}  // namespace batchnorm
