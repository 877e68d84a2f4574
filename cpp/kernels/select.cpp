#include "kernels/select.h"

#ifdef BN_X86
#include <cpuid.h>
#endif

#include <atomic>
#include <cstring>

#include "kernels/kernels.h"

namespace batchnorm {

#if defined(BN_HAS_avx512) && defined(BN_HAS_avx512bf16)
namespace avx512bf16 {
namespace {
// Put together here, where any processor may do it.
Leaves with_stores(Leaves leaves) {
  leaves.apply = stores.apply, leaves.inner = stores.inner, leaves.grad = stores.grad;
  leaves.from_compute = stores.from_compute;
  return leaves;
}
Isa with_bfloat16(Isa isa, const Leaves& leaves) {
  isa.leaves[static_cast<int>(DType::bf16)] = &leaves;
  return isa;
}
const Leaves bf16 = with_stores(*avx512::isa.leaves[static_cast<int>(DType::bf16)]);
}  // namespace
const Isa isa = with_bfloat16(avx512::isa, bf16);
}  // namespace avx512bf16
#endif

namespace {

#ifdef BN_X86
[[maybe_unused]] bool runs_avx2() {
  unsigned a, b, c = 0, d;  // F16C by its CPUID bit: not every clang knows its name
  const bool f16c = __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
  return f16c && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}
[[maybe_unused]] bool runs_avx512() {
  return runs_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
}
[[maybe_unused]] bool runs_avx512bf16() { return runs_avx512() && __builtin_cpu_supports("avx512bf16"); }
#endif

// The kernels of an instruction set: the one driver, with its leaves.
template <const Isa& isa> constexpr Kernels kernels_of(const char* name) {
  return {name,
          [](const Problem& p) { forward(p, isa); },
          [](const Problem& p) { backward(p, isa); },
          [](char* to, const char* from, int64_t bytes, int threads, bool streaming) {
            copy(to, from, bytes, threads, streaming, isa);
          },
          [](const char* from, int64_t bytes, int threads) { return read(from, bytes, threads, isa); },
          [](DType dtype, double* to, const char* from, int64_t n) { isa.channels->to_doubles(dtype, to, from, n); },
          [](DType dtype, char* to, const double* from, int64_t n) { isa.channels->from_doubles(dtype, to, from, n); }};
}
#ifdef BN_HAS_portable
constexpr Kernels kPortable = kernels_of<portable::isa>("portable");
#endif
#ifdef BN_HAS_avx2
constexpr Kernels kAvx2 = kernels_of<avx2::isa>("avx2");
#endif
#ifdef BN_HAS_avx512
constexpr Kernels kAvx512 = kernels_of<avx512::isa>("avx512");
#endif
#ifdef BN_HAS_avx512bf16
constexpr Kernels kAvx512Bf16 = kernels_of<avx512bf16::isa>("avx512bf16");
#endif

std::atomic<const Kernels*> active{nullptr};

std::vector<const Kernels*> find_all() {
  std::vector<const Kernels*> all;
#ifdef BN_HAS_avx512bf16
  if (runs_avx512bf16()) all.push_back(&kAvx512Bf16);
#endif
#ifdef BN_HAS_avx512
  if (runs_avx512()) all.push_back(&kAvx512);
#endif
#ifdef BN_HAS_avx2
  if (runs_avx2()) all.push_back(&kAvx2);
#endif
#ifdef BN_HAS_portable
  all.push_back(&kPortable);
#endif
  all.push_back(&reference::kernels);
  return all;
}

}  // namespace

const std::vector<const Kernels*>& list_kernels() {
  static const auto& all = *new std::vector<const Kernels*>(find_all());  // never destroyed: a daemon thread may outlive it
  return all;
}

const Kernels* find_kernels(const char* name) {
  for (const Kernels* one : list_kernels())
    if (std::strcmp(one->name, name) == 0) return one;
  return nullptr;
}

const Kernels& active_kernels() {
  const Kernels* kernels = active.load(std::memory_order_relaxed);
  if (kernels == nullptr) active.store(kernels = list_kernels()[0], std::memory_order_relaxed);
  return *kernels;
}

void activate_kernels(const Kernels& kernels) { active.store(&kernels, std::memory_order_relaxed); }

}  // namespace batchnorm
