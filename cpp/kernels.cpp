#include "kernels.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <optional>

#include "call.h"

namespace batchnorm {
namespace {

void run(const Problem& given, const Isa& isa, bool backward) {
  Problem joined;
  if (given.weights) joined = given, join_positions(joined);
  const Problem& p = given.weights ? joined : given;
  Call call(p, given, isa, backward);
  std::optional<Weights> weights;
  if (given.weights && call.reduces && !backward) weights.emplace(given, call.threads), call.weights = &*weights;
  const Layout layout = layout_of(p);
  if (layout == Layout::channels) walk_channels(call);
  else walk_rows(call, layout);
}

// A part for each thread, cut between cache lines: f(first byte, bytes).
template <class F> void each_part(int64_t bytes, int threads, const F& f) {
  constexpr int64_t least = 128 * 1024;  // copied in about the time that waking a thread takes
  const int64_t parts = std::clamp<int64_t>(bytes / least, 1, threads), lines = (bytes + 63) / 64;
  parallel_for(parts, threads, [&](int64_t part) {
    const int64_t first = std::min(lines * part / parts * 64, bytes), end = std::min(lines * (part + 1) / parts * 64, bytes);
    f(first, end - first);
  });
}

}  // namespace

void forward(const Problem& p, const Isa& isa) { run(p, isa, false); }
void backward(const Problem& p, const Isa& isa) { run(p, isa, true); }

void copy(char* to, const char* from, int64_t bytes, int threads, bool streaming, const Isa& isa) {
  each_part(bytes, threads, [&](int64_t first, int64_t some) {
    if (streaming) isa.stream(to + first, from + first, some);
    else std::memcpy(to + first, from + first, static_cast<size_t>(some));
  });
}

uint64_t read(const char* from, int64_t bytes, int threads, const Isa& isa) {
  std::atomic<uint64_t> total{0};
  each_part(bytes, threads, [&](int64_t first, int64_t some) { total += isa.add_words(from + first, some); });
  return total;
}

}  // namespace batchnorm
