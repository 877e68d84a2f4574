// Channels side by side: rows of C values. Sums by blocks of rows and panels of channels; then long runs of columns.
#include <algorithm>
#include <optional>

#include "kernels/tile.h"

namespace batchnorm {
namespace {

constexpr int64_t kPanel = 512;  // channels of a block's task: what it sums stays in L1
// Columns that make the start of a run cheap; their coefficients stay in L1. From the last-level cache a forward of more is up to
// half as slow again; a backward of fewer, a tenth.
constexpr int64_t kRun = 64, kRunBackward = 512;
constexpr int64_t kWide = 1024;  // channels whose coefficients do
constexpr int64_t kFew = 16;     // rows that a part of wider ones is taken of

class Rows {
 public:
  Rows(Call& call, Layout layout) : call_(call), p_(call.p), narrow_(layout == Layout::narrow) {
    simple_ = call.is_simple();
    dense_ = p_.reduced_dims == 1 && !call.factors && all_arrays(p_, [&](const Array& a) { return a.reduced[0] == p_.C; });
  }

  template <class P> void run() {
    const int64_t blocks = blocks_of(p_), C = p_.C;
    call_.each_channels(1, [&](int64_t c0, int64_t c1) { call_.prepare(c0, c1); });
    const int64_t panels = panels_for(blocks);
    Scratch<double> others(call_.reduces ? (blocks - 1) * C * Parts<P>::kValues : 0);
    const auto part = [&](int64_t b) {  // the first block's are where all are merged
      Parts<P> of = call_.whole(P());
      for (int k = 0; b > 0 && k < Parts<P>::kValues; ++k) of.rows[k] = others + ((b - 1) * Parts<P>::kValues + k) * C;
      return of;
    };
    if (call_.reduces) {
      parallel_for(blocks * panels, call_.threads, [&](int64_t t) {
        const int64_t b = t / panels, c0 = begin(t % panels, panels), c1 = begin(t % panels + 1, panels);
        block_of_rows(call_, c0, c1 - c0, b, part(b).from(c0));
      });
    }
    call_.each_channels(call_.reduces ? blocks : 1, [&](int64_t c0, int64_t c1) {
      // Up the canonical tree: neighbors, then neighbors of these, …
      for (int64_t step = 1; call_.reduces && step < blocks; step *= 2)
        for (int64_t b = 0; b + step < blocks; b += 2 * step) merge(part(b).from(c0), part(b + step).from(c0), c1 - c0);
      call_.finish(c0, c1);
    });
    if (call_.applies) apply_all();
  }

 private:
  Call& call_;
  const Problem& p_;
  bool narrow_, simple_, dense_;

  void merge(Parts<Moments> a, Parts<Moments> b, int64_t n) const { call_.isa.channels->merge_moments(a.rows, b.rows, n); }
  void merge(Parts<Sums> a, Parts<Sums> b, int64_t n) const { call_.isa.channels->merge_sums(a.rows, b.rows, n); }

  // Tasks as many for each thread, or many of them.
  int64_t panels_for(int64_t blocks) const {
    if (narrow_) return 1;
    const int64_t C = p_.C, threads = call_.threads;
    int64_t panels = (C + kPanel - 1) / kPanel;
    const int64_t most = std::max<int64_t>(1, C / 32);
    while (blocks * panels < 8 * threads && blocks * panels % threads != 0 && panels < most) ++panels;
    return panels;
  }
  // A panel's first channel: whole units, and none of fewer than sixteen.
  int64_t begin(int64_t panel, int64_t panels) const { return panel == panels ? p_.C : p_.C * panel / panels / kLanes * kLanes; }

  void apply_all() {
    const Order order = call_.reduces ? Order::backwards : Order::forwards;
    const int64_t bytes = p_.C * call_.data.size;
    if (!simple_ || call_.any_wide(0, p_.C)) {
      const int64_t rows = std::max<int64_t>(4, kTaskBytes / bytes);
      return parallel_for((p_.m + rows - 1) / rows, call_.threads,
                          [&](int64_t t) { apply_tiles(t * rows, std::min((t + 1) * rows, p_.m)); }, order);
    }
    // Rows one behind another are one run, whose columns begin again; `repeat` rows have columns enough.
    const bool joined = dense_ && p_.C <= kWide;
    const int64_t run = call_.backward ? kRunBackward : kRun;
    const int64_t repeat = joined ? std::min((run + p_.C - 1) / p_.C, p_.m) : 1, period = repeat * p_.C;
    std::optional<ChannelRows> repeated;
    if (joined) repeated.emplace(period, call_.data.compute).repeat(call_.table, call_.rows(), p_.C, period);
    const ChannelRows& columns = joined ? *repeated : call_.table;
    const int64_t rows = std::max(repeat, kTaskBytes / bytes / repeat * repeat);
    parallel_for((p_.m + rows - 1) / rows, call_.threads,
                 [&](int64_t t) {
                   const int64_t r0 = t * rows, r1 = std::min(r0 + rows, p_.m);
                   if (joined) return call_.elements(runs_at(0, r0, 1, (r1 - r0) * p_.C), columns.at(0), period);
                   const int64_t panels = (p_.C + kWide - 1) / kWide * (p_.C > kWide ? 2 : 1);
                   for (int64_t r = r0; r < r1;) {
                     const int64_t n = std::min(std::min(panels > 1 ? kFew : rows, r1 - r), run_length(p_) - r % run_length(p_));
                     for (int64_t i = 0; i < panels; ++i) {
                       const int64_t c = begin(i, panels), width = begin(i + 1, panels) - c;
                       call_.elements(runs_at(c, r, n, width), columns.at(c), period);
                     }
                     r += n;
                   }
                 },
                 order);
  }

  Runs runs_at(int64_t c, int64_t r, int64_t count, int64_t length) const {
    return call_.runs([&](const Array& a) { return at(p_, a, c, r); }, [&](const Array& a) { return run_step(p_, a); }, r, count,
                      length);
  }

  void apply_tiles(int64_t r0, int64_t r1) const {
    Tile tile(call_);
    for (int64_t c = 0; c < p_.C; c += Tile::kWidth) {
      tile.rows(c, std::min(Tile::kWidth, p_.C - c));
      for (int64_t r = r0; r < r1; r += tile.most()) {
        const int64_t n = std::min(tile.most(), r1 - r);
        tile.apply(r, n);
      }
    }
  }
};

}  // namespace

void walk_rows(Call& call, Layout layout) {
  Rows rows(call, layout);
  if (call.backward) rows.run<Sums>();
  else rows.run<Moments>();
}

}  // namespace batchnorm
