#include "kernels/layout.h"

namespace batchnorm {
namespace {

template <class T> void copy_strided(T* to, int64_t to_step, const T* from, int64_t from_step, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i * to_step] = from[i * from_step];
}

void copy_elements(char* to, int64_t to_step, const char* from, int64_t from_step, int64_t n, int64_t size) {
  switch (size) {
    case 2: return copy_strided(reinterpret_cast<uint16_t*>(to), to_step, reinterpret_cast<const uint16_t*>(from), from_step, n);
    case 4: return copy_strided(reinterpret_cast<uint32_t*>(to), to_step, reinterpret_cast<const uint32_t*>(from), from_step, n);
    default: return copy_strided(reinterpret_cast<uint64_t*>(to), to_step, reinterpret_cast<const uint64_t*>(from), from_step, n);
  }
}

}  // namespace

Layout layout_of(const Problem& p) {
  const bool side_by_side = p.channel_dims == 1 && p.C >= 2 && all_arrays(p, [](const Array& a) { return a.channel[0] == 1; });
  if (!side_by_side) return Layout::channels;
  if (p.C >= kLanes) return Layout::rows;
  const bool dense = p.reduced_dims == 1 && all_arrays(p, [&](const Array& a) { return a.reduced[0] == p.C; });
  return dense ? Layout::narrow : Layout::channels;
}

int64_t channel_offset(const Problem& p, const Array& a, int64_t c) {
  int64_t offset = 0;
  for (int d = p.channel_dims - 1; d > 0; --d) offset += c % p.channel[d] * a.channel[d], c /= p.channel[d];
  return offset + c * a.channel[0];
}

int64_t position_offset(const Problem& p, const Array& a, int64_t r) {
  if (p.reduced_dims == 1) return r * a.reduced[0];
  const int64_t inner = run_length(p), outer = r / inner;
  return run_offset(p, a, outer) + (r - outer * inner) * run_step(p, a);
}

void gather(const Problem& p, const Array& a, int64_t c, int64_t r, int64_t n, char* to, const Isa& isa) {
  const int64_t size = size_of(p), step = run_step(p, a), inner = run_length(p);
  const char* base = a.data + channel_offset(p, a, c) * size;
  const bool even = step == 1 && p.reduced_dims <= 2;  // whole runs are equally far apart
  for (int64_t outer = r / inner, s = r - outer * inner; n > 0; s = 0) {
    const int64_t length = inner - s < n ? inner - s : n, runs = even && s == 0 && length == inner ? n / inner : 1;
    const char* from = base + (run_offset(p, a, outer) + s * step) * size;
    if (step == 1) isa.copy_runs(to, from, length * size, runs > 1 ? a.reduced[0] * size : 0, runs, a.end);
    else copy_elements(to, 1, from, step, length, size);
    outer += runs, n -= runs * length, to += runs * length * size;
  }
}

void scatter(const Problem& p, const Array& a, int64_t c, int64_t r, int64_t n, const char* from) {
  const int64_t size = size_of(p), step = run_step(p, a);
  char* base = a.data + channel_offset(p, a, c) * size;
  each_segment(p, r, n, [&](int64_t outer, int64_t s, int64_t done, int64_t length) {
    char* to = base + (run_offset(p, a, outer) + s * step) * size;
    if (step == 1) std::memcpy(to, from + done * size, static_cast<size_t>(length * size));
    else copy_elements(to, step, from + done * size, 1, length, size);
  });
}

}  // namespace batchnorm
