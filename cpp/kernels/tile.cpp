#include "kernels/tile.h"

#include <algorithm>

namespace batchnorm {
void Tile::take(int64_t c, int64_t width, bool side_by_side) {
  has_coefs_ = has_coefs_ && c == c_ && width == width_ && side_by_side == side_by_side_;
  c_ = c, width_ = width, side_by_side_ = side_by_side;
  whole_ = (width + kLanes - 1) / kLanes * kLanes;
}

// With their sums, or before these are known.
void Tile::make_coefs(bool with_sums) {
  if (has_coefs_) return;
  has_coefs_ = true;
  any_wide_ = call_.any_wide(c_, c_ + width_);
  any_wide_z_ = false;
  for (int64_t i = 0; i < (side_by_side_ ? whole_ : 1); ++i) {
    const int64_t c = c_ + std::min(i, width_ - 1);
    Coefficients k = forward_coefficients<double>(p_, c);
    if (with_sums && p_.training) add_backward(p_, c, k);
    const double values[row_count] = {k.center, k.scale, k.shift, k.k1, k.k0, 0.0, -0.0, k.wide, k.wide_z};
    const double wide[row_count] = {k.mean, k.wide_scale, k.wide_shift, k.wide_k1, k.wide_k0, 0.0, -0.0, 1.0, 1.0};
    any_wide_z_ = any_wide_z_ || k.wide_z != 0;
    for (int row = 0; row < row_count; ++row) {
      put_computed(coefs_[row], size_, i, values[row]);
      if (any_wide_) wide_coefs_[row][i] = wide[row];
    }
  }
  if (side_by_side_) return;
  for (int row = 0; row < row_count; ++row) {
    if (size_ == 4) std::fill_n(reinterpret_cast<float*>(coefs_[row]) + 1, kLanes - 1, *reinterpret_cast<float*>(coefs_[row]));
    else std::fill_n(reinterpret_cast<double*>(coefs_[row]) + 1, kLanes - 1, *reinterpret_cast<double*>(coefs_[row]));
    std::fill_n(wide_coefs_[row] + 1, kLanes - 1, wide_coefs_[row][0]);
  }
}

void Tile::load(const Array& a, char* to) {
  const int64_t size = call_.data.size;
  char* raw = size == size_ ? to : raw_;
  if (side_by_side_) {
    for (int64_t i = 0; i < n_; ++i)
      std::memcpy(raw + i * whole_ * size, batchnorm::at(p_, a, c_, r_ + i), static_cast<size_t>(width_ * size));
  } else {
    gather(p_, a, c_, r_, n_, raw, call_.isa);  // at most half of what a tile holds: there is room beyond
  }
  if (size != size_) call_.data.to_compute(to, raw, elements(), nullptr);
}

void Tile::store(const Array& a, const char* from) {
  const int64_t size = call_.data.size;
  const char* raw = from;
  if (size != size_) call_.data.from_compute(raw_, from, elements()), raw = raw_;
  if (!side_by_side_) return scatter(p_, a, c_, r_, n_, raw);
  for (int64_t i = 0; i < n_; ++i)
    std::memcpy(batchnorm::at(p_, a, c_, r_ + i), raw + i * whole_ * size, static_cast<size_t>(width_ * size));
}

void Tile::apply(bool wide, char* to, const char* from, const char* residual, Coefs k) {
  const Leaves& leaves = wide ? call_.wide : call_.compute;
  leaves.apply({to, from, nullptr, residual, 1, elements(), 0, 0, 0, 0, false}, k, whole_, Activation::none);
}

// z from x, and the residual.
void Tile::normalize() {
  const bool adds = static_cast<bool>(p_.residual);
  if (adds) load(p_.residual, r_tile_);
  apply(false, z_, x_, adds && !any_wide_z_ ? r_tile_ : nullptr, coefs(false));
  if (!any_wide_z_) return;
  call_.compute.to_double(wide_x_, x_, elements(), nullptr);
  apply(true, reinterpret_cast<char*>(wide_x_), reinterpret_cast<char*>(wide_x_), nullptr, coefs(true));
  call_.compute.choose(z_, wide_x_, coefs_[is_wide_z], whole_, elements());
  if (adds) call_.compute.add(z_, r_tile_, elements());
}

// x, and h, the gradient before the activation.
void Tile::gradients(bool with_sums) {
  make_coefs(with_sums);
  load(p_.x, x_), load(p_.grad_y, h_);
  if (p_.activation != Activation::none) {
    if (p_.residual_is_y) load(p_.residual, z_);
    else normalize();
    call_.compute.activate_backward(p_.activation, p_.slope, h_, z_, elements());
  }
  if (p_.omit) call_.compute.keep_numbers(h_, x_, elements());
}

void Tile::apply(int64_t r, int64_t n) {
  at(r, n);
  if (call_.backward) backward();
  else forward();
}

void Tile::forward() {
  make_coefs(false);
  load(p_.x, x_);
  normalize();
  call_.compute.activate(p_.activation, p_.slope, z_, elements());
  store(p_.y, z_);
}

void Tile::backward() {
  gradients(true);
  if (p_.only_activation) return store(p_.grad_x, h_);
  const bool weighted = p_.training && call_.given.weights;
  if (p_.grad_residual) store(p_.grad_residual, h_);
  // In the compute type, and in double for the channels that need it.
  for (const bool wide : {false, true}) {
    if (wide && !any_wide_) break;
    char *x = x_, *h = h_, *t = z_;
    if (wide) {
      call_.compute.to_double(wide_x_, x_, elements(), nullptr), call_.compute.to_double(wide_h_, r_tile_, elements(), nullptr);
      x = reinterpret_cast<char*>(wide_x_), h = reinterpret_cast<char*>(wide_h_), t = x;
    } else if (any_wide_) {
      std::memcpy(r_tile_, h_, static_cast<size_t>(elements() * size_));  // kept for the other turn
    }
    const Leaves& leaves = wide ? call_.wide : call_.compute;
    if (p_.training && !weighted) {
      leaves.grad({h, x, h, nullptr, 1, elements(), 0, 0, 0, 0, false}, coefs(wide), whole_, Activation::none);
      continue;
    }
    if (weighted) {
      apply(wide, t, x, nullptr, coefs(wide, center, k1, k0));
      const char* w = call_.factors_from(r_);
      if (wide) call_.compute.to_double(reinterpret_cast<double*>(raw_), w, (n_ + kLanes - 1) / kLanes * kLanes, nullptr), w = raw_;
      leaves.subtract_weighted(h, t, w, side_by_side_ ? whole_ : 0, elements());
    }
    apply(wide, h, h, nullptr, coefs(wide, zero, scale, minus_zero));
  }
  if (any_wide_) call_.compute.choose(h_, wide_h_, coefs_[is_wide], whole_, elements());
  if (p_.omit) call_.compute.keep_numbers(h_, x_, elements());
  store(p_.grad_x, h_);
}

// Adds cells of d, and of d or h. What does not count in them is zero, or, of rows, left out; what is missing is NaN in the d of
// moments, and zero in that of gradients.
void Tile::reduce(bool as_moments, bool in_double, char* d, char* h, const uint16_t* counts, double* acc) {
  const Leaves& leaves = in_double ? call_.wide : call_.compute;
  alignas(64) static constexpr double kZeros[kLanes] = {};
  const char* zeros = reinterpret_cast<const char*>(kZeros);
  const Coefs none{zeros, zeros, zeros, zeros, zeros};
  if (side_by_side_) {
    alignas(64) char cell[11 * kLanes * 8];
    const There there{counts, as_moments && p_.omit};
    if (as_moments) leaves.moments_rows(d, kLanes, there, kLanes, zeros, cell, kLanes);
    else leaves.sums_rows(d, kLanes, h, kLanes, there, kLanes, none, Activation::none, cell, kLanes);
    return leaves.add_cell(cell, kLanes, kLanes, as_moments && there.selects(), false, acc);
  }
  const int64_t size = in_double ? 8 : size_, cells = (n_ + kCell - 1) / kCell;
  const int nothing = as_moments && p_.omit ? 0xff : 0;  // bytes of what adds 0: NaN, where that is missing
  for (char* tile : {d, h})
    if (tile) std::memset(tile + n_ * size, nothing, static_cast<size_t>((cells * kCell - n_) * size));
  if (as_moments) leaves.moments(d, cells, {}, zeros, {counts, p_.omit}, acc);
  else leaves.sums(d, h, cells, {}, none, Activation::none, false, acc);
}

void Tile::add_moments(int64_t r, int64_t n, const uint16_t* counts, const double* K, double* acc) {
  const int64_t step = side_by_side_ ? kCell : most();
  for (int64_t done = 0; done < n; done += step) {
    at(r + done, std::min(step, n - done));
    load(p_.x, x_);
    call_.compute.to_double(wide_x_, x_, elements(), K);
    const uint16_t* here = counts ? counts + done / kLanes : nullptr;
    uint16_t some[8];
    if (side_by_side_) here = first_bits(n_, here, some);
    reduce(true, true, reinterpret_cast<char*>(wide_x_), nullptr, here, acc);
  }
}

void Tile::add_sums(int64_t r, int64_t n, bool in_double, double* acc) {
  const int64_t step = side_by_side_ ? kCell : most();
  for (int64_t done = 0; done < n; done += step) {
    at(r + done, std::min(step, n - done));
    gradients(false);
    uint16_t some[8];
    const uint16_t* counts = side_by_side_ ? first_bits(n_, nullptr, some) : nullptr;
    if (!in_double) {
      call_.compute.to_compute(z_, x_, elements(), coefs_[center]);
      if (p_.omit) call_.compute.keep_numbers(z_, x_, elements());
      reduce(false, false, z_, h_, counts, acc);
      continue;
    }
    double centers[kLanes];
    for (int64_t i = 0; i < kLanes; ++i)
      centers[i] = sums_center(forward_coefficients<double>(p_, side_by_side_ ? c_ + std::min(i, width_ - 1) : c_));
    call_.compute.to_double(wide_x_, x_, elements(), centers);
    call_.compute.to_double(wide_h_, h_, elements(), nullptr);
    if (p_.omit) {
      call_.compute.to_double(reinterpret_cast<double*>(z_), x_, elements(), nullptr);
      call_.wide.keep_numbers(reinterpret_cast<char*>(wide_x_), z_, elements());
    }
    reduce(false, true, reinterpret_cast<char*>(wide_x_), reinterpret_cast<char*>(wide_h_), counts, acc);
  }
}

}  // namespace batchnorm
