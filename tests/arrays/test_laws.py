"""Laws that hold for any data (Hypothesis): the monoid of moments, and the symmetries of batch normalization."""

from __future__ import annotations

import functools

import numpy as np
import oracle
import pytest
from canonical import same_bits
from hypothesis import given
from hypothesis import strategies as st
from sklearn.preprocessing import StandardScaler

import batchnorm as bn

SIZES = st.integers(2, 40)
CHANNELS = st.integers(1, 5)
SEEDS = st.integers(0, 2**32 - 1)


@st.composite
def columns(draw, least: int = 2, most: int = 60) -> np.ndarray:
    """float64 (positions, channels): normal numbers of some offset and scale, some of them repeated."""
    rng = np.random.default_rng(draw(SEEDS))
    shape = draw(st.integers(least, most)), draw(CHANNELS)
    offset, scale = draw(st.sampled_from([0.0, 1.0, -100.0, 1e4])), draw(st.sampled_from([1.0, 1e-3, 1e3]))
    values = (rng.standard_normal(shape) + offset) * scale
    return np.where(rng.random(shape) < draw(st.sampled_from([0.0, 0.3])), values[:1], values)


@st.composite
def splits(draw, most: int = 60) -> list[np.ndarray]:
    """An array cut into consecutive parts, some of them empty."""
    x = draw(columns(most=most))
    cuts = sorted(draw(st.lists(st.integers(0, len(x)), max_size=6)))
    return np.split(x, cuts)


def assert_close(a: bn.Moments, b: bn.Moments, x: np.ndarray, mean: float = 1e-14, m2: float = 1e-12) -> None:
    """Equal to rounding: the mean to 1e-14 of the spread of x, M2 to 1e-12 of itself, unless other limits are given."""
    spread = max(float(np.ptp(x)), np.finfo(np.float64).tiny)
    assert np.array_equal(a.count, b.count) or np.allclose(a.count, b.count, rtol=1e-14)
    assert (np.abs((a.mean - b.mean) + (a.mean_low - b.mean_low)) <= mean * spread).all()
    np.testing.assert_allclose(a.m2, b.m2, rtol=m2, atol=1e-26 * spread**2)


# --- the monoid ---


@given(splits())
def test_any_split_merges_to_the_whole(parts):
    x = np.concatenate(parts)
    merged = bn.Moments.empty(x.shape[1]).merge(*(bn.moments(part) for part in parts))
    assert_close(merged, bn.moments(x), x)


@given(splits(), SEEDS)
def test_any_split_with_weights_merges_to_the_whole(parts, seed):
    rng = np.random.default_rng(seed)
    sample_weight = [np.round(rng.random(len(part)) * 4) / 2 + 0.25 for part in parts]
    pieces = [bn.moments(part, sample_weight=w) for part, w in zip(parts, sample_weight, strict=True)]
    whole = bn.moments(np.concatenate(parts), sample_weight=np.concatenate(sample_weight))
    assert_close(functools.reduce(bn.Moments.merge, pieces), whole, np.concatenate(parts))


@given(columns(3), st.data())
def test_merge_is_associative(x, data):
    first = data.draw(st.integers(0, len(x)))
    second = data.draw(st.integers(first, len(x)))
    a, b, c = (bn.moments(part) for part in np.split(x, [first, second]))
    assert_close((a + b) + c, a + (b + c), x)


@given(columns(), st.data())
def test_merge_is_commutative(x, data):
    a, b = (bn.moments(part) for part in np.split(x, [data.draw(st.integers(0, len(x)))]))
    assert_close(a + b, b + a, x)


@given(columns(1))
def test_empty_is_the_zero_exactly(x):
    m, nothing = bn.moments(x), bn.Moments.empty(x.shape[1])
    assert m + nothing == m
    assert nothing + m == m


@given(columns(), SEEDS)
def test_mask_and_its_complement_merge_to_the_whole(x, seed):
    mask = np.random.default_rng(seed).random(len(x)) < 0.5
    assert_close(bn.moments(x, mask=mask) + bn.moments(x, mask=~mask), bn.moments(x), x)


@given(splits())
def test_any_split_that_the_kernels_saw_as_other_layouts(parts):
    """Merging along another axis: the same numbers as (N, C, S) and as its samples one by one."""
    x = np.concatenate(parts)
    stacked = np.stack([x, x + 1.0], axis=2)
    samples = [bn.moments(sample.T) for sample in stacked]
    assert_close(functools.reduce(bn.Moments.merge, samples), bn.moments(stacked), stacked)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_many_parts_of_long_data(dtype, rng):
    x = (rng.standard_normal((50_000, 3)) + 100).astype(dtype)
    parts = np.split(x, np.sort(rng.integers(0, 50_000, 300)))
    limits = {} if dtype == "float64" else {"mean": oracle.MEAN, "m2": oracle.M2}
    assert_close(sum(bn.moments(part) for part in parts), bn.moments(x), x.astype(np.float64), **limits)


# --- scikit-learn, which nobody here wrote, as the oracle of merging ---


@given(splits())
def test_standard_scaler_with_partial_fit(parts):
    parts = [part for part in parts if len(part)]
    scaler = StandardScaler()
    merged = bn.Moments.empty(parts[0].shape[1])
    for part in parts:
        scaler.partial_fit(part)
        merged = merged + bn.moments(part)
    _agrees_with(scaler, merged, np.concatenate(parts))


@given(splits(), SEEDS)
def test_standard_scaler_with_sample_weight(parts, seed):
    parts = [part for part in parts if len(part)]
    rng = np.random.default_rng(seed)
    scaler = StandardScaler()
    merged = bn.Moments.empty(parts[0].shape[1])
    for part in parts:
        sample_weight = rng.random(len(part)) + 0.1
        with np.errstate(invalid="ignore"):  # its variance of equal values may be a little below 0
            scaler.partial_fit(part, sample_weight=sample_weight)
        merged = merged + bn.moments(part, sample_weight=sample_weight)
    _agrees_with(scaler, merged, np.concatenate(parts))


def _agrees_with(scaler: StandardScaler, m: bn.Moments, x: np.ndarray) -> None:
    """To 1e-12, relative to the size of the data: the scaler's own error grows with it."""
    size = np.abs(x).max()
    np.testing.assert_allclose(m.mean, scaler.mean_, rtol=1e-12, atol=1e-12 * np.ptp(x))
    np.testing.assert_allclose(m.var(), scaler.var_, rtol=1e-12, atol=1e-15 * size**2)


# --- symmetries of the result ---


@given(columns(), SEEDS)
def test_permuting_the_batch_permutes_the_result(x, seed):
    order = np.random.default_rng(seed).permutation(len(x))
    y, m = bn.batch_norm(x)
    y_permuted, m_permuted = bn.batch_norm(x[order])
    assert_close(m_permuted, m, x)
    np.testing.assert_allclose(y_permuted, y[order], rtol=1e-11, atol=1e-11)


@given(columns(), SEEDS)
def test_channels_do_not_see_each_other(x, seed):
    """Permuting or dropping channels permutes or drops results, bit for bit."""
    order = np.random.default_rng(seed).permutation(x.shape[1])[: x.shape[1] // 2 + 1]
    y, m = bn.batch_norm(x)
    y_permuted, m_permuted = bn.batch_norm(x[:, order])
    assert same_bits(y_permuted, y[:, order])
    assert same_bits(m_permuted.m2, m.m2[order])


@given(columns())
def test_result_has_mean_0_and_the_variance_left_by_eps(x):
    y, m = bn.batch_norm(x)
    after = bn.moments(y)
    np.testing.assert_allclose(after.mean, 0.0, atol=1e-12)
    np.testing.assert_allclose(after.var(), m.var() / (m.var() + 1e-5), rtol=1e-11, atol=1e-13)


@given(columns(), SEEDS)
def test_weight_and_bias_become_standard_deviation_and_mean(x, seed):
    weight, bias = np.random.default_rng(seed).standard_normal((2, x.shape[1]))
    y, m = bn.batch_norm(x, weight, bias)
    after = bn.moments(y)
    np.testing.assert_allclose(after.mean, bias, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(
        after.std(), np.abs(weight) * np.sqrt(m.var() / (m.var() + 1e-5)), rtol=1e-11, atol=1e-12
    )


@given(columns(), st.integers(-20, 20), st.sampled_from([np.float32, np.float64]))
def test_scale_does_not_matter(x, power, dtype):
    """Powers of two change no bit when eps follows; other factors only what rounding changes."""
    x = x.astype(dtype)
    y, _ = bn.batch_norm(x)
    factor = dtype(2.0**power)
    y_scaled, _ = bn.batch_norm(x * factor, eps=1e-5 * 4.0**power)
    assert same_bits(y_scaled, y)
    y_negative, _ = bn.batch_norm(-x)
    assert np.array_equal(y_negative, -y)


@given(columns(), st.floats(0.01, 100.0))
def test_any_scale_does_not_matter_when_eps_is_negligible(x, factor):
    x = x + np.arange(len(x))[:, None] * np.ptp(x)  # no channel is constant
    y, _ = bn.batch_norm(x, eps=1e-300)
    y_scaled, _ = bn.batch_norm(x * factor, eps=1e-300)
    np.testing.assert_allclose(y_scaled, y, rtol=1e-9, atol=1e-9)


@given(SIZES, CHANNELS, SEEDS, st.integers(-1000, 1000))
def test_offset_does_not_matter(size, channels, seed, offset):
    """Integers plus an integer are exact, so are their differences; but shifts of short sums may round otherwise."""
    x = np.random.default_rng(seed).integers(-50, 50, (size, channels)).astype(np.float32)
    y, m = bn.batch_norm(x)
    y_moved, m_moved = bn.batch_norm(x + np.float32(offset))
    np.testing.assert_allclose(m_moved.m2, m.m2, rtol=2 * oracle.M2)
    np.testing.assert_allclose(y_moved, y, rtol=2e-7, atol=2e-7)


@given(columns())
def test_order_inside_a_channel_is_kept(x):
    """A larger x never gets a smaller y; equal x get equal y."""
    y, _ = bn.batch_norm(x)
    for channel in range(x.shape[1]):
        order = np.argsort(x[:, channel], kind="stable")
        assert (np.diff(y[order, channel]) >= 0).all()


@given(columns(), SEEDS)
def test_gradients_are_linear_in_grad(x, seed):
    rng = np.random.default_rng(seed)
    m = bn.moments(x)
    weight, bias = rng.standard_normal((2, x.shape[1]))
    first, second = rng.standard_normal((2, *x.shape))
    a, b, both = (bn.batch_norm_backward(g, x, m, weight, bias) for g in (first, second, 2.0 * first + second))
    for name in ("x", "weight", "bias"):
        combined = 2.0 * getattr(a, name) + getattr(b, name)
        size = np.abs(combined).max() + np.abs(getattr(b, name)).max() + 1.0
        np.testing.assert_allclose(getattr(both, name), combined, rtol=1e-10, atol=1e-10 * size)


@given(columns(3), SEEDS)
def test_evaluation_sees_each_position_alone(x, seed):
    """Normalizing with known moments: a part of the batch gives that part of the result, bit for bit."""
    m = bn.Moments.from_statistics(x.mean(0), x.var(0) + 0.1)
    rows = np.random.default_rng(seed).permutation(len(x))[: len(x) // 2 + 1]
    assert same_bits(bn.normalize(x[rows], m), bn.normalize(x, m)[rows])
