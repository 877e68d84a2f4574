"""Moments: exact against the oracle, bit for bit in the canonical order, selected as masks and weights say."""

from __future__ import annotations

import copy
import pickle
import warnings

import canonical
import numpy as np
import oracle
import pytest
from canonical import same_bits
from cases import CASES, DTYPES, MASKED, Built, Case, build, exact_statistics

import batchnorm as bn

FIELDS = ("count", "mean", "mean_low", "m2")


def _moments(built: Built) -> bn.Moments:
    return bn.moments(built.x, built.case.axis, **built.selection)


def _canonical(built: Built) -> canonical.Sums:
    sample_weight = None if built.counted is None else canonical.columns(built.counted, built.case.kept)
    return canonical.moments(canonical.columns(built.x, built.case.kept), sample_weight)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_moments_are_exact(case: Case):
    """Whatever the offset; float64 data and weights to 1e-15 of the spread for the mean, to 1e-12 for M2."""
    built = build(case)
    m = _moments(built)
    for name in FIELDS:
        assert getattr(m, name).shape == case.kept_shape, name
        assert getattr(m, name).dtype == np.float64, name
    count, mean, m2 = (oracle.kept_shape(part, built.problem) for part in exact_statistics(case))
    assert np.array_equal(m.count, oracle.to_float(count)) or np.allclose(m.count, oracle.to_float(count), rtol=1e-15)
    off = oracle.to_float(mean - oracle.exact(m.mean) - oracle.exact(m.mean_low))
    spread = np.ptp(built.x.astype(np.float64), axis=case.reduced)
    short = case.dtype != "float64"
    assert (np.abs(off) <= 2e-15 * spread + short * oracle.MEAN * np.sqrt(oracle.to_float(m2 / count))).all()
    np.testing.assert_allclose(m.m2, oracle.to_float(m2), rtol=oracle.M2 if short else 1e-12, atol=1e-28)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_moments_have_the_bits_of_the_canonical_order(case: Case):
    built = build(case)
    m, expected = _moments(built), _canonical(built)
    for name in FIELDS:
        assert same_bits(getattr(m, name).ravel(), getattr(expected, name)), name


@pytest.mark.parametrize("empty", [None, 0, 1, 2])
@pytest.mark.parametrize("blocks", [1, 2, 3, 4, 5, 6, 7, 8, 9, 13])
def test_the_tree_of_blocks(blocks, empty, rng):
    """Every shape of tree, with a last block of one position, unweighted or with a block in which nothing counts."""
    x = rng.standard_normal((canonical.BLOCK * (blocks - 1) + 1, 2)) * [1.0, 1e-3] + [
        1e3,
        1.0,
    ]  # so that mean_low is not 0
    sample_weight = None
    if empty is not None:
        sample_weight = rng.random((x.shape[0], 1)) * (rng.random((x.shape[0], 1)) < 0.9)
        sample_weight[empty * canonical.BLOCK : (empty + 1) * canonical.BLOCK] = 0.0
        sample_weight[-1] = 0.5
    m = bn.moments(x, sample_weight=None if sample_weight is None else sample_weight[:, 0])
    expected = canonical.moments(x, None if sample_weight is None else np.broadcast_to(sample_weight, x.shape))
    for name in FIELDS:
        assert same_bits(getattr(m, name), getattr(expected, name)), name


@pytest.mark.parametrize(("where", "length"), [(0, 40), (3, 40), *((at, 5001) for at in (0, 1, 17, 2047, 2048, 5000))])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("selected", [False, True])
def test_non_finite_values_follow_the_canonical_order(value, where, length, selected, rng):
    x = rng.standard_normal((length, 3))
    x[where, 1] = value
    sample_weight = np.ones(length) if selected else None
    m = bn.moments(x, sample_weight=sample_weight)
    expected = canonical.moments(x, None if sample_weight is None else np.broadcast_to(sample_weight[:, None], x.shape))
    for name in FIELDS:
        assert same_bits(getattr(m, name), getattr(expected, name)), name
    assert not np.isfinite(m.m2[1])
    assert np.isfinite(m.m2[[0, 2]]).all()


# --- data whose moments are known without any arithmetic ---


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("length", [2, 16, 17, 2048, 2049, 100_000])
def test_known_moments(length, dtype):
    """Alternating 1 and 3 (and one 2 where the length is odd): mean 2 and M2 the number of ones and threes, exactly."""
    x = np.where(np.arange(length) % 2 == 0, 1.0, 3.0)
    if length % 2:
        x[length // 2] = 2.0
        x[: length // 2] = 1.0
        x[length // 2 + 1 :] = 3.0
    m = bn.moments(x.astype(DTYPES[dtype])[:, None])
    assert m.count.tolist() == [length]
    assert m.m2.tolist() == [length - length % 2]
    assert m.mean.tolist() == [2.0]


@pytest.mark.parametrize("value", [0.0, 0.1, -3e38, 1e-45, 65504.0])
def test_a_constant_has_no_variance_at_all(value):
    m = bn.moments(np.full((5000, 2), value, dtype=np.float32))
    assert m.m2.tolist() == [0.0, 0.0]
    assert m.mean.tolist() == [float(np.float32(value))] * 2
    assert m.mean_low.tolist() == [0.0, 0.0]


def test_m2_is_not_negative_where_squares_underflow():
    """Each square is below the smallest float64, the product of their sums is not: the difference may not show."""
    x = np.full((17, 1), 1.4e-162)
    x[0] = 0.0
    m = bn.moments(x)
    assert m.m2.tolist() == [0.0]
    assert canonical.moments(x).m2.tolist() == [0.0]


@pytest.mark.parametrize("x", [[1e200, -1e200], [1e200, 1e199], [1e160] * 2048 + [-1e160] * 2048], ids=len)
def test_squares_beyond_float64_are_no_variance(x):
    """Neither inside a block nor between blocks: an infinite variance would make every output 0."""
    y, m = bn.batch_norm(np.array(x)[:, None])
    assert np.isfinite(m.mean).all()
    assert np.isnan(m.m2).all()
    assert np.isnan(y).all()


# --- masks and weights ---


def _packed(built: Built) -> np.ndarray:
    """The selected positions alone, as (positions, C)."""
    rows = canonical.columns(built.counted, built.case.kept)[:, 0] > 0
    return np.transpose(built.x, built.case.reduced + built.case.kept).reshape(rows.size, -1)[rows]


@pytest.mark.parametrize("case", [case for case in MASKED if case.select.endswith("mask")], ids=str)
def test_a_mask_is_packing(case: Case):
    """Moments and y at the selected positions are those of the array that holds the selected positions alone."""
    built = build(case)
    packed = _packed(built)
    m, m_packed = _moments(built), bn.moments(packed)
    assert m.count.ravel().tolist() == m_packed.count.tolist()
    short = case.dtype != "float64"
    off = np.abs(m.mean.ravel() - m_packed.mean)
    assert (off <= 1e-14 * (1 + np.abs(m_packed.mean)) + 2 * short * oracle.MEAN * m_packed.std()).all()
    np.testing.assert_allclose(m.m2.ravel(), m_packed.m2, rtol=2 * oracle.M2 if short else 1e-13, atol=1e-25)
    y, _ = bn.batch_norm(built.x, axis=case.axis, **built.selection)
    y_packed, _ = bn.batch_norm(packed)
    rows = canonical.columns(built.counted, case.kept)[:, 0] > 0
    tolerance = 1e-12 if case.dtype == "float64" else 5e-7
    if case.dtype in ("float16", "bfloat16"):
        tolerance = 2.0 ** (-10 if case.dtype == "float16" else -7) * 4
    found = canonical.columns(y, case.kept)[rows]
    np.testing.assert_allclose(found, y_packed.astype(np.float64), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
def test_integer_weights_are_repetition(dtype, rng):
    x = rng.standard_normal((700, 3)).astype(DTYPES[dtype])
    times = rng.integers(0, 9, 700)
    m, repeated = bn.moments(x, sample_weight=times.astype(np.float64)), bn.moments(np.repeat(x, times, axis=0))
    assert m.count.tolist() == repeated.count.tolist()
    mean, m2 = (1e-14, 1e-13) if dtype == "float64" else (oracle.MEAN, oracle.M2)
    np.testing.assert_allclose(m.mean, repeated.mean, rtol=1e-14, atol=mean)
    np.testing.assert_allclose(m.m2, repeated.m2, rtol=m2)


def test_gradients_of_integer_weights_are_those_of_repetition(rng):
    """A position's gradient is the sum over its repetitions, when each of these has its share of g."""
    x, grad = rng.standard_normal((2, 40, 3))
    times = rng.integers(1, 5, 40)
    weight, bias = rng.standard_normal((2, 3))
    m = bn.moments(x, sample_weight=times.astype(float))
    found = bn.batch_norm_backward(grad, x, m, weight, bias, sample_weight=times.astype(float))
    repeated = np.repeat(x, times, axis=0)
    split = np.repeat(grad / times[:, None], times, axis=0)
    whole = bn.batch_norm_backward(split, repeated, bn.moments(repeated), weight, bias)
    summed = np.add.reduceat(whole.x, np.concatenate([[0], np.cumsum(times)[:-1]]), axis=0)
    np.testing.assert_allclose(found.x, summed, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(found.weight, whole.weight, rtol=1e-12)
    np.testing.assert_allclose(found.bias, whole.bias, rtol=1e-12)


@pytest.mark.parametrize(
    "shape", [(4, 5), (4, 1), (1, 5), (5,), (1,), (), (4, 1, 5), (4, 1, 1), (1, 1, 5), (1, 1, 1)], ids=str
)
def test_masks_and_weights_broadcast(shape, rng):
    """Against x of shape (4, 3, 5), channels on axis 1: without that axis, or with it as length one."""
    x = rng.standard_normal((4, 3, 5))
    sample_weight = rng.random(shape) + 0.5
    full = np.broadcast_to(sample_weight[:, 0] if len(shape) == 3 else sample_weight, (4, 5))
    assert bn.moments(x, sample_weight=sample_weight) == bn.moments(x, sample_weight=full.copy())
    mask = np.ones(shape, dtype=bool)
    mask.flat[0] = mask.size == 1
    full_mask = np.broadcast_to(mask[:, 0] if len(shape) == 3 else mask, (4, 5))
    assert bn.moments(x, mask=mask) == bn.moments(x, mask=full_mask.copy())
    assert bn.moments(x, mask=mask).count.tolist() == [float(full_mask.sum())] * 3


def test_mask_and_weights_together_multiply(rng):
    x, mask, sample_weight = rng.standard_normal((40, 3)), rng.random(40) < 0.5, rng.random(40)
    assert bn.moments(x, mask=mask, sample_weight=sample_weight) == bn.moments(x, sample_weight=sample_weight * mask)


def test_a_full_mask_and_weights_of_one_are_nothing(rng):
    x = rng.standard_normal((5000, 3))
    assert bn.moments(x, mask=np.ones(5000, dtype=bool)) == bn.moments(x)
    assert bn.moments(x, sample_weight=np.ones(5000)) == bn.moments(x)


@pytest.mark.parametrize("junk", [np.nan, np.inf, -np.inf, 3e38])
@pytest.mark.parametrize("how", ["mask", "sample_weight"])
@pytest.mark.parametrize("shape", [(64, 17), (3, 17, 49), (3, 2, 2500)], ids=str)
def test_what_does_not_count_does_not_reach_the_statistics(shape, how, junk, rng):
    x = rng.standard_normal(shape).astype(np.float32)
    mask = rng.random(shape[:1] + shape[2:]) < 0.5
    mask.flat[0], mask.flat[-1] = False, True
    selection = {"mask": mask} if how == "mask" else {"sample_weight": mask.astype(np.float32)}
    clean = bn.moments(x, **selection)
    np.moveaxis(x, 1, -1)[~mask] = junk
    assert bn.moments(x, **selection) == clean
    y, m = bn.batch_norm(x, **selection)
    assert m == clean
    assert np.isfinite(np.moveaxis(y, 1, -1)[mask]).all()


def test_scaling_all_weights_changes_only_the_count(rng):
    x, sample_weight = rng.standard_normal((300, 3)), rng.random(300)
    m, scaled = bn.moments(x, sample_weight=sample_weight), bn.moments(x, sample_weight=sample_weight * 1024)
    assert same_bits(scaled.count, m.count * 1024)
    assert same_bits(scaled.mean, m.mean)
    assert same_bits(scaled.var(), m.var())


# --- the moments of nothing ---


@pytest.mark.parametrize(
    ("shape", "axis", "kept"),
    [
        ((0, 3), 1, (3,)),
        ((0, 3, 5), 1, (3,)),
        ((4, 3, 0), 1, (3,)),
        ((0,), (), ()),
        ((4, 0), 1, (0,)),
        ((0, 2, 4, 3), (1, 3), (2, 3)),
    ],
)
def test_moments_of_an_empty_array_are_empty(shape, axis, kept):
    assert bn.moments(np.empty(shape, dtype=np.float32), axis) == bn.Moments.empty(kept)


def test_moments_of_a_mask_that_selects_nothing_are_empty(rng):
    x = rng.standard_normal((5000, 3))
    assert bn.moments(x, mask=np.zeros(5000, dtype=bool)) == bn.Moments.empty(3)
    assert bn.moments(x, sample_weight=np.zeros(5000)) == bn.Moments.empty(3)


def test_moments_of_one_position(rng):
    m = bn.moments(np.array([[3.0, np.pi]]))
    assert m.count.tolist() == [1.0, 1.0]
    assert m.mean.tolist() == [3.0, np.pi]
    assert m.m2.tolist() == [0.0, 0.0]


# --- Moments as an object ---


@pytest.fixture
def pair(rng) -> tuple[bn.Moments, bn.Moments]:
    x = rng.standard_normal((50, 3)) * 7 + 1e3
    return bn.moments(x[:20]), bn.moments(x[20:])


def test_merge_has_the_bits_of_the_canonical_merge(pair):
    a, b = pair
    expected = canonical.merge(*(canonical.Sums(*(getattr(m, name) for name in FIELDS)) for m in pair))
    merged = a.merge(b)
    for name in FIELDS:
        assert same_bits(getattr(merged, name), getattr(expected, name)), name
    assert a + b == merged


def test_moments_of_two_blocks_are_the_merge_of_their_moments(rng):
    """The kernels merge as Moments.merge does."""
    x = rng.standard_normal((2 * canonical.BLOCK, 3))
    assert bn.moments(x) == bn.moments(x[: canonical.BLOCK]) + bn.moments(x[canonical.BLOCK :])


@pytest.mark.parametrize("mean", [0.0, 1e300, -1e300, np.inf, np.nan])
@pytest.mark.parametrize("m2", [0.0, 5.0, np.nan])
def test_merging_nothing_changes_nothing_of_any_moments(mean, m2):
    m, nothing = bn.Moments(3.0, [mean], [m2], [1e-20]), bn.Moments.empty(1)
    assert m + nothing == m
    assert nothing + m == m
    assert nothing.merge(m, nothing, nothing) == m


def test_merge_of_many_and_sum(pair):
    a, b = pair
    assert a.merge(b, a) == (a + b) + a
    assert a.merge() == a
    assert sum([a, b, a]) == (a + b) + a
    assert sum([a, b], bn.Moments.empty(3)) == a + b


@pytest.mark.parametrize("shape", [3, (3,), (), (2, 3), 0], ids=str)
def test_empty(shape):
    empty = bn.Moments.empty(shape)
    for name in FIELDS:
        assert getattr(empty, name).shape == ((shape,) if isinstance(shape, int) else shape)
        assert not getattr(empty, name).any()
    assert empty + empty == empty


def test_moments_are_frozen(pair):
    m = pair[0]
    before = pickle.dumps(m)
    for name in FIELDS:
        with pytest.raises(AttributeError):
            setattr(m, name, np.zeros(3))
        with pytest.raises(ValueError, match="read-only"):
            getattr(m, name)[0] = 7.0
    with pytest.raises(AttributeError):
        m.anything = 1
    assert pickle.dumps(m) == before


def test_moments_do_not_share_memory_with_what_they_were_made_of():
    mean = np.array([1.0, 2.0])
    m = bn.Moments(np.full(2, 3.0), mean, np.ones(2))
    mean[0] = 9.0
    assert m.mean.tolist() == [1.0, 2.0]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickle_and_copy(pair, protocol):
    m = pair[0]
    for other in (pickle.loads(pickle.dumps(m, protocol)), copy.copy(m), copy.deepcopy(m)):
        assert isinstance(other, bn.Moments)
        assert other == m
        with pytest.raises(ValueError, match="read-only"):
            other.mean[0] = 7.0


def test_equality_is_exact(pair):
    a, b = pair
    assert a != b
    assert a == bn.Moments(a.count, a.mean, a.m2, a.mean_low)
    assert a != bn.Moments(a.count, np.nextafter(a.mean, np.inf), a.m2, a.mean_low)
    assert a != bn.Moments(a.count, a.mean, np.nextafter(a.m2, np.inf), a.mean_low)
    assert a != "moments"
    assert bn.Moments.empty(3) != bn.Moments.empty((3, 1))


def test_repr_shows_what_it_holds():
    text = repr(bn.Moments(5.0, [3.0, -1.5], [10.0, 20.0]))
    assert text.startswith("Moments(")
    for shown in ("count", "mean", "5", "3.", "-1.5", "2."):
        assert shown in text
    assert len(repr(bn.Moments.empty(100_000))) < 2000


def test_notebooks_show_a_table_of_the_channels():
    m = bn.moments([[1.0, 10.0], [3.0, 50.0]]).named(["a", "<b>"])
    shown = m._repr_html_()
    assert "<b>Moments</b> of 2 channels" in shown
    assert "<tr><th>a</th><td>2</td><td>2</td><td>1</td><td>1</td></tr>" in shown
    assert "<tr><th>&lt;b&gt;</th><td>2</td><td>30</td><td>400</td><td>20</td></tr>" in shown
    many = bn.moments(np.ones((2, 5, 6)), axis=(1, 2))._repr_html_()
    assert many.count("<tr>") == 21
    assert "<th>3, 1</th>" in many
    assert "10 more channels are not shown." in many
    assert "of 1 channel<" in bn.Moments.empty(1)._repr_html_()
    assert "<tr><th></th><td>2</td><td>2</td><td>1</td><td>1</td></tr>" in bn.moments([1.0, 3.0], axis=())._repr_html_()


def test_repr_of_nothing_does_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "Moments" in repr(bn.Moments.empty(3))
        assert "<td>0</td><td>0</td><td>nan</td>" in bn.Moments.empty(3)._repr_html_()


def test_variance_and_its_correction(pair):
    m = pair[0]
    assert same_bits(m.var(), m.m2 / m.count)
    assert same_bits(m.var(1), m.m2 / (m.count - 1))
    assert same_bits(m.var(correction=1.5), m.m2 / (m.count - 1.5))
    assert same_bits(m.std(), np.sqrt(m.var()))
    assert same_bits(m.std(1), np.sqrt(m.var(1)))


@pytest.mark.parametrize("kept", [(), (2,), (2, 3)], ids=str)
def test_from_statistics(kept, rng):
    mean, var = rng.standard_normal(kept), rng.random(kept)
    m = bn.Moments.from_statistics(mean, var, count=8.0)
    assert same_bits(m.mean, np.asarray(mean))
    assert same_bits(m.var(), np.asarray(var))
    assert same_bits(m.count, np.full(kept, 8.0))
    assert not m.mean_low.any()
    assert same_bits(bn.Moments.from_statistics(mean, var).m2, np.asarray(var))
    assert bn.Moments.from_statistics(mean.tolist(), var.tolist(), 8).shape == kept


def test_a_mean_in_two_parts(rng):
    """float64 data far from 0: the mean has more digits than a float64 holds, and mean_low has them."""
    x = 1e9 + rng.random((999, 1))
    m = bn.moments(x)
    exact = oracle.statistics(oracle.Problem(x, (1,))).mean
    high, low = oracle.high_and_low(exact)
    assert m.mean[0] == high[0, 0]
    assert abs(m.mean_low[0] - low[0, 0]) < 1e-15
    assert m.mean_low[0] != 0
