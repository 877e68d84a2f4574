// One channel at a time: contiguous and general layouts. What the last-level cache cannot hold is taken in blocks of channels that
// caches hold, so that the second pass reads from there, last samples first.
#include <algorithm>

#include "kernels/tile.h"

namespace batchnorm {
namespace {

constexpr int64_t kColumns = 1024;    // of a sample of tiny planes: their coefficients stay in L1
constexpr int64_t kPositions = 1024;  // of a task of tiles

class Channels {
 public:
  explicit Channels(Call& call) : call_(call), p_(call.p), inner_(run_length(p_)), outer_(p_.m / inner_) {
    simple_ = call.is_simple() && all_arrays(p_, [&](const Array& a) { return run_step(p_, a) == 1; });
    dense_ = simple_ && p_.channel_dims == 1 && p_.reduced_dims <= 2 &&
             all_arrays(p_, [&](const Array& a) { return a.channel[0] == inner_; });
  }

  template <class P> void run() {
    const int threads = call_.threads;
    const int64_t blocks = blocks_of(p_), C = p_.C;
    const bool many = threads == 1 || C >= 4 * threads;  // channels enough to share them out whole
    if (call_.reduces && !call_.backward) call_.take_samples();
    if (!call_.reduces || !many) call_.each_channels(1, [&](int64_t c0, int64_t c1) { call_.prepare(c0, c1); });
    if (!call_.reduces) {
      call_.each_channels(1, [&](int64_t c0, int64_t c1) { call_.finish(c0, c1); });
    } else if (many) {
      const int64_t bytes = call_.data.size * (call_.backward ? 2 : 1) * p_.m;
      const bool both = call_.applies && C * bytes >= kStreamFrom;
      const int64_t fits = std::max<int64_t>(1, cache_budget() / bytes), share = std::max<int64_t>(1, C / (4 * threads));
      const int64_t channel_block = threads > 1 ? std::min(fits, share) : fits;
      parallel_for((C + channel_block - 1) / channel_block, threads, [&](int64_t t) {
        const int64_t c0 = t * channel_block, c1 = std::min(c0 + channel_block, C);
        sum_channels<P>(c0, c1);
        if (both) apply_channels(c0, c1);
      });
      if (both) return;
    } else {
      Scratch<P> parts(C * blocks);
      parallel_for(C * blocks, threads, [&](int64_t t) { parts[t] = block_of_channel<P>(call_, t / blocks, t % blocks); });
      call_.each_channels(blocks, [&](int64_t c0, int64_t c1) { finish_channels(parts + c0 * blocks, c0, c1); });
    }
    if (call_.applies) apply_all();
  }

 private:
  Call& call_;
  const Problem& p_;
  const int64_t inner_, outer_;  // positions of a run, and how many runs a channel has
  bool simple_, dense_;

  // In the order of memory: the blocks that begin in one run, channel by channel, then those of the next run.
  template <class P> void sum_channels(int64_t c0, int64_t c1) {
    const int64_t blocks = blocks_of(p_);
    call_.prepare(c0, c1);
    Scratch<P> parts(blocks > 1 ? (c1 - c0) * blocks : 0);
    BlockOf some[kLanes];
    int64_t n = 0;
    const auto sum_some = [&] {
      const SomeParts<P> results;
      blocks_of_channels(call_, some, n, results);
      for (int64_t i = 0; i < n; ++i) {
        const auto [c, b] = some[i];
        if (blocks == 1) call_.whole(P()).put(c, results.at(i));
        else parts[(c - c0) * blocks + b] = results.at(i);
      }
      n = 0;
    };
    for (int64_t b0 = 0, b1; b0 < blocks; b0 = b1) {
      for (b1 = b0 + 1; b1 < blocks && b1 * kBlock / inner_ == b0 * kBlock / inner_;) ++b1;
      for (int64_t c = c0; c < c1; ++c)
        for (int64_t b = b0; b < b1; ++b) {
          some[n++] = {c, b};
          if (n == kLanes) sum_some();
        }
    }
    sum_some();
    if (blocks == 1) call_.finish(c0, c1);
    else finish_channels<P>(parts, c0, c1);
  }
  template <class P> void finish_channels(const P* parts, int64_t c0, int64_t c1) const {
    for (int64_t c = c0; c < c1; ++c) {
      Tree<P> tree;
      for (int64_t b = 0, blocks = blocks_of(p_); b < blocks; ++b) tree.push(*parts++);
      call_.whole(P()).put(c, tree.finish());
    }
    call_.finish(c0, c1);
  }

  bool by_runs(int64_t c0, int64_t c1) const { return simple_ && !call_.any_wide(c0, c1); }

  // All positions of some channels, the last ones first: they are the ones a cache still holds.
  void apply_channels(int64_t c0, int64_t c1) const {
    if (!by_runs(c0, c1)) return apply_tiles(c0, c1, 0, p_.m);
    if (is_tiny()) return apply_columns(c0, c1, 0, outer_);
    for (int64_t outer = outer_ - 1; outer >= 0; --outer) apply_runs(outer, c0, c1, 0, inner_);
  }

  // Everything, in the order of memory as far as channels stand one behind another in a sample.
  void apply_all() const {
    const int64_t C = p_.C;
    const Order order = call_.reduces ? Order::backwards : Order::forwards;
    if (!by_runs(0, C)) {
      const int64_t some = std::max<int64_t>(1, kTaskBytes / (kPositions * call_.data.size)), parts = (C + some - 1) / some;
      const int64_t chunks = (p_.m + kPositions - 1) / kPositions;
      return parallel_for(
          chunks * parts, call_.threads,
          [&](int64_t t) {
            const int64_t r = t / parts * kPositions, c = t % parts * some;
            apply_tiles(c, std::min(c + some, C), r, std::min(r + kPositions, p_.m));
          },
          order);
    }
    const int64_t bytes = inner_ * call_.data.size;
    if (is_tiny()) {
      const int64_t some = std::max<int64_t>(1, kColumns / inner_), parts = (C + some - 1) / some;
      const int64_t samples = std::max<int64_t>(16, kTaskBytes / (some * bytes)), chunks = (outer_ + samples - 1) / samples;
      return parallel_for(
          chunks * parts, call_.threads,
          [&](int64_t t) {
            const int64_t n = t / parts * samples, c = t % parts * some;
            apply_columns(c, std::min(c + some, C), n, std::min(n + samples, outer_));
          },
          order);
    }
    if (bytes >= kTaskBytes) {  // parts of a run
      const int64_t parts = (bytes + kTaskBytes - 1) / kTaskBytes, some = ((inner_ + parts - 1) / parts + 63) / 64 * 64;
      return parallel_for(
          outer_ * C * parts, call_.threads,
          [&](int64_t t) {
            const int64_t plane = t / parts, s = t % parts * some;
            if (s < inner_) apply_runs(plane / C, plane % C, plane % C + 1, s, std::min(s + some, inner_));
          },
          order);
    }
    const int64_t planes = outer_ * C, some = std::max<int64_t>(1, kTaskBytes / bytes);
    parallel_for((planes + some - 1) / some, call_.threads,
                 [&](int64_t t) {
                   for (int64_t i = t * some, end = std::min(i + some, planes); i < end;) {
                     const int64_t outer = i / C, c = i % C, n = std::min(C - c, end - i);
                     apply_runs(outer, c, c + n, 0, inner_);
                     i += n;
                   }
                 },
                 order);
  }

  bool is_tiny() const { return dense_ && inner_ < kLanes && p_.C > 1 && !call_.factors; }

  // The arrays of channel c, from position s of run `outer` on; `count` runs of the channels that follow.
  Runs runs_at(int64_t outer, int64_t c, int64_t s, int64_t count, int64_t length) const {
    const auto here = [&](const Array& a) {
      return a.data + (channel_offset(p_, a, c) + run_offset(p_, a, outer) + s) * call_.data.size;
    };
    return call_.runs(here, [&](const Array& a) { return a.channel[p_.channel_dims - 1]; }, outer * inner_ + s, count, length);
  }

  void apply_runs(int64_t outer, int64_t c0, int64_t c1, int64_t s0, int64_t s1) const {
    const int64_t some = p_.channel_dims == 1 ? c1 - c0 : 1;
    for (int64_t c = c0; c < c1; c += some) call_.elements(runs_at(outer, c, s0, some, s1 - s0), call_.table.at(c), 0);
  }

  // Small planes: a sample's channels are one run of columns, each with the coefficients of its channel.
  void apply_columns(int64_t c0, int64_t c1, int64_t n0, int64_t n1) const {
    const int64_t most = std::max<int64_t>(1, kColumns / inner_);
    for (int64_t c = c0; c < c1; c += most) {
      const int64_t channels = std::min(most, c1 - c), width = channels * inner_;
      ChannelRows columns(width, call_.data.compute);
      columns.spread(call_.table, call_.rows(), c, channels, inner_);
      for (int64_t n = n1 - 1; n >= n0; --n) call_.elements(runs_at(n, c, 0, 1, width), columns.at(0), width);
    }
  }

  void apply_tiles(int64_t c0, int64_t c1, int64_t r0, int64_t r1) const {
    Tile tile(call_);
    for (int64_t r = r0; r < r1; r += tile.most())
      for (int64_t c = c0; c < c1; ++c) {
        tile.channel(c);
        const int64_t n = std::min(tile.most(), r1 - r);
        tile.apply(r, n);
      }
  }
};

}  // namespace

void walk_channels(Call& call) {
  Channels channels(call);
  if (call.backward) channels.run<Sums>();
  else channels.run<Moments>();
}

}  // namespace batchnorm
