"""Every variant is a choice of moments: masks, weights, ghost batches and renormalization obey the laws that follow.

Data is drawn by Hypothesis. Gradients are compared with autograd of the plain formulas in float64.
"""

from __future__ import annotations

import functools

import canonical
import numpy as np
import plain_formulas
import pytest
from canonical import same_bits
from hypothesis import assume, given
from hypothesis import strategies as st

import batchnorm as bn

SEEDS = st.integers(0, 2**32 - 1)
CONSTANT = {"start": 0, "r_end": 0, "d_end": 0}  # limits that do not grow


class Problem:
    """x, grad, weight and bias in float64; channels on axis 1."""

    def __init__(self, shape: tuple[int, ...], seed: int, offset: float) -> None:
        self.rng = np.random.default_rng(seed)
        self.x = self.rng.standard_normal(shape) * np.exp(self.rng.standard_normal(shape[1])).reshape(
            1, -1, *[1] * (len(shape) - 2)
        )
        self.x = self.x + offset
        self.grad = self.rng.standard_normal(shape) + 0.3
        self.weight, self.bias = self.rng.standard_normal((2, shape[1]))

    @property
    def positions(self) -> tuple[int, ...]:
        return self.x.shape[:1] + self.x.shape[2:]

    def forward(self, **options) -> tuple[np.ndarray, bn.Moments]:
        return bn.batch_norm(self.x, self.weight, self.bias, **options)

    def backward(self, m: bn.Moments, **options) -> bn.Gradients:
        return bn.batch_norm_backward(self.grad, self.x, m, self.weight, self.bias, **options)

    def plain(self, **options) -> plain_formulas.Plain:
        return plain_formulas.batch_norm(self.x, self.grad, self.weight, self.bias, **options)


@st.composite
def problems(draw, least: int = 2, most: int = 12) -> Problem:
    shape = (draw(st.integers(least, most)), draw(st.integers(1, 4)), *draw(st.lists(st.integers(1, 4), max_size=2)))
    return Problem(shape, draw(SEEDS), draw(st.sampled_from([0.0, 100.0])))


def assert_agrees(y: np.ndarray, g: bn.Gradients, expected: plain_formulas.Plain) -> None:
    """To 1e-9 of the largest value: autograd's own sums are plain ones."""
    for name, found in {"y": y, "x": g.x, "weight": g.weight, "bias": g.bias}.items():
        value = getattr(expected, name)
        np.testing.assert_allclose(found, value, rtol=1e-9, atol=1e-9 * (1 + np.abs(value).max()), err_msg=name)


def packed(a: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The selected positions as (positions, C)."""
    return np.moveaxis(a, 1, -1)[mask]


# --- masks and weights ---


@given(problems(), SEEDS)
def test_masked_is_packed(p, seed):
    """The selected positions, as if nothing else were there; to the others the same map is applied."""
    mask = np.random.default_rng(seed).random(p.positions) < 0.7
    assume(mask.sum() >= 2)
    y, m = p.forward(mask=mask)
    expected, expected_m = bn.batch_norm(packed(p.x, mask), p.weight, p.bias)
    np.testing.assert_allclose(packed(y, mask), expected, rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(m.m2, expected_m.m2, rtol=1e-12)
    assert (m.count == mask.sum()).all()
    grad = np.where(np.expand_dims(mask, 1), p.grad, 0.0)
    g = bn.batch_norm_backward(grad, p.x, m, p.weight, p.bias, mask=mask)
    of_packed = bn.batch_norm_backward(packed(grad, mask), packed(p.x, mask), expected_m, p.weight, p.bias)
    np.testing.assert_allclose(packed(g.x, mask), of_packed.x, rtol=1e-9, atol=1e-9)
    assert (packed(g.x, ~mask) == 0).all()
    np.testing.assert_allclose(g.weight, of_packed.weight, rtol=1e-9, atol=1e-9)


@given(problems(), SEEDS)
def test_gradients_with_weights(p, seed):
    """Every position is normalized, so gradients flow from uncounted positions, too."""
    rng = np.random.default_rng(seed)
    sample_weight = rng.random(p.positions) * (rng.random(p.positions) < 0.7)
    assume((sample_weight > 0).sum() >= 2)
    y, m = p.forward(sample_weight=sample_weight)
    assert_agrees(y, p.backward(m, sample_weight=sample_weight), p.plain(counted=sample_weight))


@given(problems(), SEEDS)
def test_weights_of_0_and_1_are_a_mask_exactly(p, seed):
    mask = np.random.default_rng(seed).random(p.positions) < 0.7
    assume(mask.sum() >= 2)
    for sample_weight in (mask.astype(np.float32), mask.astype(np.float64)):
        y, m = p.forward(mask=mask)
        y_weighted, m_weighted = p.forward(sample_weight=sample_weight)
        assert m_weighted == m
        assert same_bits(y_weighted, y)
        g, g_weighted = p.backward(m, mask=mask), p.backward(m, sample_weight=sample_weight)
        assert all(same_bits(getattr(g_weighted, name), getattr(g, name)) for name in ("x", "weight", "bias"))


@given(problems(), SEEDS)
def test_integer_weights_are_repetition(p, seed):
    """Weight k is the position k times; its gradient is that of its k copies together."""
    times = np.random.default_rng(seed).integers(0, 4, p.positions)
    assume((times > 0).sum() >= 2)
    x = np.moveaxis(p.x, 1, -1).reshape(-1, p.x.shape[1])
    grad = np.moveaxis(p.grad, 1, -1).reshape(x.shape)
    k = times.ravel()
    counted = k > 0
    grad[~counted] = 0  # no copy of these exists
    repeated = np.repeat(x, k, axis=0)
    y, m = bn.batch_norm(x, p.weight, p.bias, sample_weight=k.astype(np.float64))
    expected, expected_m = bn.batch_norm(repeated, p.weight, p.bias)
    np.testing.assert_allclose(np.repeat(y, k, axis=0), expected, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(m.m2, expected_m.m2, rtol=1e-12)
    shared = np.repeat(grad / np.maximum(k, 1)[:, None], k, axis=0)
    g = bn.batch_norm_backward(grad, x, m, p.weight, p.bias, sample_weight=k.astype(np.float64))
    of_copies = bn.batch_norm_backward(shared, repeated, expected_m, p.weight, p.bias)
    together = np.add.reduceat(of_copies.x, np.concatenate([[0], np.cumsum(k[counted])[:-1]]), axis=0)
    size = 1 + np.abs(together).max()
    np.testing.assert_allclose(g.x[counted], together, rtol=1e-9, atol=1e-9 * size)


@pytest.mark.parametrize("last", [False, True])
def test_a_mask_from_lengths_serves_both_orders(rng, last):
    """(N, C, L) and (N, L, C) take the same mask."""
    x, lengths = rng.standard_normal((3, 4, 6)), [6, 2, 4]
    mask = bn.mask_from_lengths(lengths, 6)
    expected = bn.moments(np.concatenate([x[n, :, :length].T for n, length in enumerate(lengths)]))
    found = bn.moments(np.moveaxis(x, 1, 2) if last else x, -1 if last else 1, mask=mask)
    np.testing.assert_allclose(found.mean, expected.mean, rtol=1e-14)
    np.testing.assert_allclose(found.m2, expected.m2, rtol=1e-13)


def test_a_mask_from_lengths():
    assert bn.mask_from_lengths([0, 2, 1], 3).tolist() == [[False] * 3, [True, True, False], [True, False, False]]
    assert bn.mask_from_lengths(np.array([3, 1], dtype=np.uint8)).shape == (2, 3)
    assert bn.mask_from_lengths([], 4).shape == (0, 4)
    assert bn.mask_from_lengths([0]).shape == (1, 0)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([1.5],), TypeError, "integers; got dtype float64"),
        (([[1]],), ValueError, r"one axis, .* got \(1, 1\)"),
        (([3, 1], 2), ValueError, "from 0 to max_length=2.* got 1 to 3"),
        (([-1],), ValueError, "from 0 to max_length=0.* got -1 to 0"),
        (([1], 2.0), TypeError, "max_length must be an int"),
    ],
)
def test_lengths_that_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        bn.mask_from_lengths(*arguments)


# --- ghost batches ---


def _divides(p: Problem, size: int) -> bool:
    """Whether every ghost has two positions."""
    rest = len(p.x) % size or size
    return min(size, rest) * p.x[0, 0].size >= 2


@given(problems(), st.integers(1, 12))
def test_ghosts_forward_and_backward(p, size):
    """Also where the last ghost is incomplete."""
    assume(_divides(p, size))
    y, m = p.forward(virtual_batch_size=size)
    assert m.shape == (-(-len(p.x) // size), p.x.shape[1])
    assert_agrees(y, p.backward(m, virtual_batch_size=size), p.plain(size=size))


@given(problems(), st.integers(1, 12), SEEDS)
def test_ghosts_with_weights(p, size, seed):
    rng = np.random.default_rng(seed)
    sample_weight = rng.random(p.positions) * (rng.random(p.positions) < 0.8)
    parts = [sample_weight[i : i + size] for i in range(0, len(sample_weight), size)]
    if any((part > 0).sum() < 2 for part in parts):
        with pytest.raises(ValueError, match=r"two|one counted value|select nothing"):
            p.forward(sample_weight=sample_weight, virtual_batch_size=size)
        return
    y, m = p.forward(sample_weight=sample_weight, virtual_batch_size=size)
    found = p.backward(m, sample_weight=sample_weight, virtual_batch_size=size)
    assert_agrees(y, found, p.plain(counted=sample_weight, size=size))


@given(problems(), st.integers(0, 3))
def test_one_ghost_is_plain_exactly(p, more):
    assume(p.x.size > p.x.shape[1])
    size = len(p.x) + more
    y, m = p.forward()
    y_ghost, m_ghost = p.forward(virtual_batch_size=size)
    assert same_bits(y_ghost, y)
    assert m_ghost.reduce() == m
    g, g_ghost = p.backward(m), p.backward(m_ghost, virtual_batch_size=size)
    assert all(same_bits(getattr(g_ghost, name), getattr(g, name)) for name in ("x", "weight", "bias"))


@given(problems(most=30), st.integers(1, 12))
def test_ghosts_merge_to_the_batch(p, size):
    m, merged = bn.moments(p.x), bn.moments(p.x, virtual_batch_size=size).reduce()
    assert same_bits(merged.count, m.count)
    assert (np.abs((merged.mean - m.mean) + (merged.mean_low - m.mean_low)) <= 1e-14 * np.ptp(p.x)).all()
    np.testing.assert_allclose(merged.m2, m.m2, rtol=1e-12, atol=1e-26 * np.ptp(p.x) ** 2)


@given(problems(most=30), st.integers(1, 4))
def test_merging_follows_the_canonical_tree(p, size):
    """Neighbors first, an odd one carried: the bits of that tree in plain NumPy."""
    ghosts = bn.moments(p.x, virtual_batch_size=size)
    level = [canonical.Sums(*(getattr(ghosts, n)[i] for n in canonical.Sums._fields)) for i in range(ghosts.shape[0])]
    while len(level) > 1:
        pairs = [canonical.merge(*level[i : i + 2]) for i in range(0, len(level) - 1, 2)]
        level = pairs + level[len(pairs) * 2 :]
    merged = ghosts.reduce()
    assert all(same_bits(getattr(merged, name), getattr(level[0], name)) for name in canonical.Sums._fields)


def test_merging_along_any_axis(rng):
    x = rng.standard_normal((6, 2, 3, 5))
    m = bn.moments(x, axis=(1, 2))
    for axis in (0, 1, -1, -2):
        found = m.reduce(axis)
        parts = [bn.Moments(*(np.take(v, i, axis) for v in (m.count, m.mean, m.m2))) for i in range(m.shape[axis])]
        np.testing.assert_allclose(found.m2, functools.reduce(bn.Moments.merge, parts).m2, rtol=1e-13)
    assert bn.Moments.empty((0, 3)).reduce() == bn.Moments.empty(3)
    with pytest.raises(ValueError, match="no axis 2"):
        m.reduce(2)


def test_ghosts_cut_the_first_reduced_axis(rng):
    """Axis 0, or the next one where channels are on axis 0."""
    x = rng.standard_normal((3, 6, 4))
    found = bn.moments(x, axis=0, virtual_batch_size=4)
    expected = bn.moments(x.transpose(1, 0, 2), axis=1, virtual_batch_size=4)
    assert found == expected
    several = bn.moments(x, axis=(0, 2), virtual_batch_size=4)
    assert several.shape == (2, 3, 4)
    for i, part in enumerate((x[:, :4], x[:, 4:])):
        assert same_bits(several.m2[i], bn.moments(part, axis=(0, 2)).m2)


def test_normalize_with_the_moments_of_ghosts(rng):
    x = rng.standard_normal((7, 3, 4)).astype(np.float32)
    y, m = bn.batch_norm(x, virtual_batch_size=3)
    assert same_bits(bn.normalize(x, m, virtual_batch_size=3), y)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"virtual_batch_size": 3}, ValueError, r"ghost 2 of 3 \(sample 6 of the input \(7, 2\).* has 1"),
        ({"virtual_batch_size": 4, "mask": np.arange(7) > 2}, ValueError, r"ghost 0 of 2 \(samples 0 to 3.* has 1"),
        ({"virtual_batch_size": 4, "mask": np.arange(7) > 3}, ValueError, r"ghost 0 of 2 .* has 0"),
    ],
)
def test_ghosts_that_are_refused(rng, options, error, message):
    out = np.zeros((7, 2))
    with pytest.raises(error, match=message):
        bn.batch_norm(rng.standard_normal((7, 2)), out=out, **options)
    assert (out == 0).all()


@pytest.mark.parametrize("shape", [(6, 1), (1, 5), (6, 5), (1, 1)])
def test_masks_that_repeat_count_in_every_ghost(rng, shape):
    """A mask with an axis of length one says the same for all of it."""
    x, mask = rng.standard_normal((6, 3, 5)), np.ones(shape, dtype=bool)
    mask[0, 1:] = False  # where the mask has positions of its own, ghost 0 keeps one
    if shape[1] == 5:
        with pytest.raises(ValueError, match="ghost 0 of 6"):
            bn.batch_norm(x, mask=mask, virtual_batch_size=1)
    y, m = bn.batch_norm(x, mask=mask, virtual_batch_size=2)
    assert (m.count[0] == np.broadcast_to(mask, (6, 5))[:2].sum()).all()
    expected = plain_formulas.batch_norm(x, x, np.ones(3), np.zeros(3), counted=np.broadcast_to(mask, (6, 5)), size=2)
    np.testing.assert_allclose(y, expected.y, rtol=1e-10, atol=1e-10)


def test_evaluation_ignores_ghosts(rng):
    """Constant moments have no parts: one row for each channel, whatever the ghost size."""
    x, m = rng.standard_normal((7, 3)), bn.Moments.from_statistics(np.ones(3), np.full(3, 2.0))
    g = bn.batch_norm_backward(x, x, m, training=False, virtual_batch_size=3)
    assert same_bits(g.x, bn.batch_norm_backward(x, x, m, training=False).x)
    layer = bn.BatchNorm1d(3, track_running_stats=False, virtual_batch_size=3, dtype=np.float64).eval()
    assert same_bits(layer(x), bn.batch_norm(x)[0])


def test_ghosts_of_nothing(rng):
    empty = bn.moments(np.zeros((0, 3)), virtual_batch_size=2)
    assert empty.shape == (0, 3)
    assert empty.reduce() == bn.Moments.empty(3)
    with pytest.raises(ValueError, match=r"every axis of the input .* is a channel axis"):
        bn.moments(np.eye(3), axis=(0, 1), virtual_batch_size=2)


def test_moments_of_other_ghosts_are_refused(rng):
    x = rng.standard_normal((8, 2))
    _, m = bn.batch_norm(x, virtual_batch_size=4)
    with pytest.raises(ValueError, match=r"one value for each ghost and channel, shape \(4, 2\).* got .*\(2, 2\)"):
        bn.batch_norm_backward(x, x, m, virtual_batch_size=2)
    with pytest.raises(ValueError, match=r"one value for each channel, shape \(2,\).* got .*\(2, 2\)"):
        bn.batch_norm_backward(x, x, m)


# --- batch renormalization ---


def _running(p: Problem) -> bn.Moments:
    return bn.Moments.from_statistics(
        p.x.mean((0, *range(2, p.x.ndim))) + p.rng.standard_normal(p.x.shape[1]) * 0.3,
        np.exp(p.rng.standard_normal(p.x.shape[1])),
    )


LIMITS = st.sampled_from([(1.0, 0.0), (1.1, 0.1), (3.0, 5.0), (1e9, 1e9), (2.0, 0.0), (1.0, 1.0)])


@given(problems(), LIMITS, st.sampled_from([None, 2, 3]))
def test_renormalization_forward_and_backward(p, limits, size):
    """With ghosts, too: each has an r and d of its own."""
    assume(_divides(p, size or len(p.x)))
    running = _running(p)
    m = bn.moments(p.x, virtual_batch_size=size)
    options = {"virtual_batch_size": size, "renorm_factors": bn.Renorm(*limits, **CONSTANT).factors(m, running)}
    y = bn.normalize(p.x, m, p.weight, p.bias, **options)
    expected = p.plain(size=size, renorm=plain_formulas.Renormalized(running.mean, running.var(), *limits))
    assert_agrees(y, p.backward(m, **options), expected)


@given(problems(), SEEDS)
def test_renormalization_with_limits_1_and_0_is_plain_exactly(p, seed):
    assume(p.x.size > p.x.shape[1])
    plain = bn.BatchNorm(p.x.shape[1], dtype=np.float64)
    renormalized = bn.BatchNorm(p.x.shape[1], dtype=np.float64, renorm=bn.Renorm(1.0, 0.0))
    for layer in (plain, renormalized):
        layer.weight[...], layer.bias[...] = p.weight, p.bias
        layer.running_mean[...] = np.random.default_rng(seed).standard_normal(p.x.shape[1])
    for _ in range(2):
        assert same_bits(renormalized(p.x), plain(p.x))
        found, expected = renormalized.backward(p.grad), plain.backward(p.grad)
        assert all(same_bits(getattr(found, name), getattr(expected, name)) for name in ("x", "weight", "bias"))
    assert all(same_bits(v, plain.state_dict()[name]) for name, v in renormalized.state_dict().items())


@given(problems())
def test_renormalization_without_limits_is_evaluation(p):
    """Inside the limits, training computes what evaluation would."""
    assume(p.x.size > p.x.shape[1])
    layer = bn.BatchNorm(
        p.x.shape[1], dtype=np.float64, renorm=bn.Renorm(1e9, 1e9, **CONSTANT), update_running_stats=False
    )
    layer.running_mean[...] = 0.5
    y = layer(p.x)
    np.testing.assert_allclose(y, layer.eval()(p.x), rtol=1e-9, atol=1e-9 * np.abs(y).max())


def test_the_schedule_of_the_paper():
    r = bn.Renorm()
    assert [r.limits(step) for step in (0, 4999, 5000)] == [(1.0, 0.0)] * 3
    assert r.limits(15_000)[1] == 2.5
    assert r.limits(22_500)[0] == 2.0
    assert r.limits(25_000)[1] == 5.0
    assert r.limits(39_999)[0] < 3.0
    assert r.limits(40_000) == r.limits(10**9) == (3.0, 5.0)
    assert bn.Renorm(2.0, 1.0, **CONSTANT).limits(0) == (2.0, 1.0)


def test_the_schedule_continues_from_a_state(rng):
    """Its state is the number of batches, which state_dict has."""
    schedule = bn.Renorm(start=2, r_end=6, d_end=4)
    layer, other = (bn.BatchNorm1d(3, renorm=schedule, dtype=np.float64) for _ in range(2))
    batches = [rng.standard_normal((5, 3)) * 3 + 1 for _ in range(6)]
    for x in batches[:4]:
        layer(x)
    other.load_state_dict(layer.state_dict())
    for x in batches[4:]:
        assert same_bits(other(x), layer(x))
    fresh = bn.BatchNorm1d(3, renorm=schedule, dtype=np.float64)
    fresh.load_state_dict(layer.state_dict() | {"num_batches_tracked": np.zeros((), np.int64)})
    assert not np.allclose(fresh(x), layer(x))


def test_renormalization_is_for_training_alone(rng):
    x = rng.standard_normal((6, 3))
    layer = bn.BatchNorm1d(3, renorm=bn.Renorm(**CONSTANT), normalize_with="batch", dtype=np.float64).eval()
    assert same_bits(layer(x), bn.batch_norm(x)[0])


def test_factors_that_are_refused(rng):
    x = rng.standard_normal((6, 3))
    m = bn.moments(x)
    with pytest.raises(TypeError, match=r"must come from bn\.Renorm"):
        bn.normalize(x, m, renorm_factors=(1.0, 0.0))
    other = bn.Renorm().factors(bn.moments(x[:, :2]), bn.Moments.from_statistics([0.0, 0.0], [1.0, 1.0]))
    with pytest.raises(ValueError, match=r"of the same moments.* \(3,\); got shapes \(2,\) and \(2,\)"):
        bn.normalize(x, m, renorm_factors=other)
    with pytest.raises(ValueError, match=r"Renorm.factors: eps must be positive"):
        bn.Renorm().factors(m, m, eps=-1.0)
