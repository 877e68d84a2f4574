"""Missing cells: what nan_policy says of values that are NaN."""

from __future__ import annotations

import itertools

import canonical
import numpy as np
import oracle
import pytest
from canonical import same_bits
from cases import DTYPES, MISSING, Case, build, check_gradients, exact_forward, exact_statistics, lay_out
from pairs import pairs

import batchnorm as bn
from batchnorm import _blocks

ISAS = tuple(bn._native.available_isas())
LAYOUTS = ("contiguous", "channels-last", "permuted", "sliced", "sliced-channels")
# Rows, few of them side by side, short and long planes, several blocks, one that is not whole.
SHAPES = [(33, 3), (2100, 40), (4500, 5), (3, 16, 7, 7), (2, 40, 56, 56), (2500, 1), (4, 300), (2, 3, 1100)]
SELECTIONS = ("all", "mask", "weights", "mask of weights")
TABLE = canonical.Sums._fields


def _values(shape: tuple[int, ...], dtype: str, missing: float, rng: np.random.Generator) -> np.ndarray:
    """Channels of any kind, one of them empty, one with infinity, and cells that are missing."""
    x = 3.0 * rng.standard_normal(shape) + 50
    channels = shape[1]
    if channels > 3:
        x[:, 1] *= 1e-20
        x[:, 2] *= 1 if dtype == "float16" else 1e30
        x[:, 3] = 3.1
    x[rng.random(shape) < missing] = np.nan
    if channels > 4:
        x[:, 4] = np.nan
    if channels > 5:
        x[-1, 5] = np.inf
    return x.astype(DTYPES[dtype])


def _selection(kind: str, shape: tuple[int, ...], rng: np.random.Generator) -> dict[str, np.ndarray]:
    positions = (shape[0], *shape[2:])
    if kind == "all":
        return {}
    if kind == "mask":
        return {"mask": rng.random(positions) < 0.7}
    if kind == "weights":
        return {"sample_weight": rng.random(positions) * (rng.random(positions) < 0.8)}
    return {"sample_weight": (rng.random(positions) < 0.7).astype(np.float32)}


PROBLEMS = pairs(SHAPES, DTYPES, (0.0, 0.05, 0.6, 0.999), SELECTIONS)


@pytest.mark.parametrize(("shape", "dtype", "missing", "selects"), PROBLEMS, ids=str)
def test_moments_in_the_canonical_order(shape, dtype, missing, selects):
    """In every layout and instruction set, the bits of canonical.py."""
    rng = np.random.default_rng(len(shape) + int(100 * missing))
    x, given = _values(shape, dtype, missing, rng), _selection(selects, shape, rng)
    weights = next((w.reshape(-1, 1) for w in given.values()), None)
    expected = canonical.moments(canonical.columns(x, (1,)), weights, omit=True)
    for layout, isa, threads in pairs(LAYOUTS, ISAS, (1, 3)):
        bn._native.force_isa(isa)
        bn.set_num_threads(threads)
        m = bn.moments(lay_out(x, layout, (1,)), nan_policy="omit", **given)
        differ = [name for name in TABLE if not same_bits(getattr(m, name), getattr(expected, name))]
        assert not differ, f"{layout}, {isa}, {threads} threads: other bits in {differ}"


@pytest.mark.parametrize("dtype", DTYPES)
def test_without_nan_nothing_changes(rng, dtype):
    for shape in SHAPES:
        x = (rng.standard_normal(shape) + 3).astype(DTYPES[dtype])
        assert bn.moments(x, nan_policy="omit") == bn.moments(x) == bn.moments(x, nan_policy="raise")


def test_a_row_of_missing_cells_is_a_masked_position(rng):
    """Where all channels miss the same positions: the bits of a mask, of which K may be any value."""
    for shape in SHAPES:
        x, mask = rng.standard_normal(shape).astype(np.float32), rng.random((shape[0], *shape[2:])) < 0.7
        x[np.broadcast_to(np.expand_dims(~mask, 1), shape)] = np.nan
        assert bn.moments(x, nan_policy="omit") == bn.moments(x, mask=mask)


@pytest.mark.parametrize("nothing", [np.full((5, 1), np.nan), np.empty((0, 1))], ids=["missing", "empty"])
def test_a_channel_of_nothing_is_empty(nothing):
    m = bn.moments(nothing, nan_policy="omit")
    assert m == bn.Moments.empty(1)
    assert m + bn.moments(np.array([[2.0], [4.0]])) == bn.moments(np.array([[2.0], [4.0]]))


def test_one_value_and_infinity():
    """One value has the variance 0; infinity is a value."""
    x = np.array([[np.nan, 1.0, np.inf], [7.0, np.nan, 2.0], [np.nan, 3.0, np.nan]])
    m = bn.moments(x, nan_policy="omit")
    assert m.count.tolist() == [1, 2, 2]
    assert m.mean.tolist() == [7, 2, np.inf]
    np.testing.assert_array_equal(m.m2, [0, 2, np.nan])


def test_moments_of_parts_merge_by_what_each_channel_has(rng):
    x = rng.standard_normal((100, 4))
    x[rng.random(x.shape) < 0.3] = np.nan
    x[:30, 2] = np.nan
    parts = [bn.moments(part, nan_policy="omit") for part in (x[:30], x[30:31], x[31:])]
    whole, merged = bn.moments(x, nan_policy="omit"), sum(parts[1:], parts[0])
    np.testing.assert_array_equal(merged.count, np.count_nonzero(~np.isnan(x), axis=0))
    np.testing.assert_allclose(merged.mean, np.nanmean(x, axis=0), rtol=1e-12)
    np.testing.assert_allclose(merged.var(), np.nanvar(x, axis=0), rtol=1e-12)
    np.testing.assert_allclose(merged.m2, whole.m2, rtol=1e-12)
    ghosts = bn.moments(x, nan_policy="omit", virtual_batch_size=30)
    for i in range(4):
        part = bn.moments(x[30 * i : 30 * i + 30], nan_policy="omit")
        assert part == bn.Moments(ghosts.count[i], ghosts.mean[i], ghosts.m2[i], ghosts.mean_low[i])


def test_gathered_from_blocks(monkeypatch, rng):
    monkeypatch.setattr(_blocks, "BLOCK", 64)
    x = rng.standard_normal((40, 7)).astype(np.float32)
    x[rng.random(x.shape) < 0.2] = np.nan
    m = bn.gather_moments(x, nan_policy="omit")
    np.testing.assert_array_equal(m.count, np.count_nonzero(~np.isnan(x), axis=0))
    np.testing.assert_allclose(m.mean, np.nanmean(x.astype(float), axis=0), atol=1e-6)
    assert m == bn.gather_moments([x[i : i + 9] for i in range(0, 40, 9)], nan_policy="omit", threads=2)
    clean = np.where(np.isnan(x), 0, x)
    clean[33, 5] = np.nan
    with pytest.raises(ValueError, match=r"gather_moments: x must have no NaN .* index \(33, 5\), in channel 5"):
        bn.gather_moments(clean, nan_policy="raise")
    assert np.isnan(bn.gather_moments(clean).mean).tolist() == [False] * 5 + [True, False]


def test_raise_names_the_first_that_counts():
    x = np.zeros((4, 3, 2), np.float32)
    x[1, 2, 1] = np.nan
    with pytest.raises(ValueError, match=r"moments: x must have no NaN .* index \(1, 2, 1\), in channel 2;"):
        bn.moments(x, nan_policy="raise")
    with pytest.raises(ValueError, match=r"index \(1, 2, 1\), in channel \(1, 2\);"):
        bn.moments(x, axis=(0, 1), nan_policy="raise")
    mask = np.ones((4, 2), bool)
    mask[1, 1] = False
    assert bn.moments(x, mask=mask, nan_policy="raise") == bn.moments(x, mask=mask)
    x[1, 2] = np.inf, -np.inf  # their mean is NaN, and they are not
    assert bn.moments(x, nan_policy="raise") == bn.moments(x)


def test_other_policies_are_refused():
    with pytest.raises(ValueError, match=r"moments: nan_policy says what .* got 'ommit'; did you mean 'omit'\?"):
        bn.moments(np.zeros((2, 2)), nan_policy="ommit")
    with pytest.raises(TypeError, match=r"gather_moments: nan_policy .* got True of type bool"):
        bn.gather_moments(np.zeros((2, 2)), nan_policy=True)


# --- forward and backward ---


@pytest.mark.parametrize("case", MISSING, ids=str)
def test_batch_norm_is_exact(case: Case):
    """Where x is missing, y is NaN; elsewhere it is normalized by the moments of what is there."""
    built = build(case)
    y, m = bn.batch_norm(built.x, built.weight, built.bias, **built.selection, **built.options)
    assert built.missing is not None
    np.testing.assert_array_equal(np.isnan(y), built.missing)
    expected = exact_forward(case)
    there = built.at_cells(y.astype(np.float64), 0), built.at_cells(expected.y, 0)
    oracle.assert_within(*there, oracle.forward_bound(expected, y.dtype, case.activation), "y")
    assert m == bn.moments(built.x, case.axis, **built.selection, nan_policy="omit")
    assert same_bits(bn.normalize(built.x, m, built.weight, built.bias, **built.options), y)
    out = built.x.copy()
    assert bn.batch_norm(out, built.weight, built.bias, **built.selection, **built.options, out=out)[1] == m
    assert same_bits(out, y)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("case", MISSING, ids=str)
def test_gradients_are_exact(case: Case, training):
    """Where x is missing they are 0, and grad_y, which is NaN there, is not looked at."""
    built = build(case)
    selection = built.selection if training else {}
    m = bn.moments(built.x, case.axis, **selection, nan_policy="omit")
    problem = built.problem if training else built.problem._replace(sample_weight=None)
    stats = exact_statistics(case) if training else oracle.given_statistics(problem, m.count, m.mean, m.var())
    grad = built.at_cells(built.grad, 0)
    exact = oracle.backward(problem, grad, stats, training=training)
    given = {**selection, **built.options, "training": training}
    found = bn.batch_norm_backward(built.grad, built.x, m, built.weight, built.bias, **given)
    check_gradients(built, grad, found, exact)
    assert built.missing is not None
    for gradient in (found.x, found.residual):
        assert gradient is None or not gradient[built.missing].any()


VISITED = pairs(
    [(33, 20), (2100, 5), (4, 17, 7, 7), (3, 5, 40, 70), (6, 20, 9)],
    [
        {},
        {"activation": "relu"},
        {"activation": "relu6", "residual": True},
        {"activation": "silu"},
        {"activation": "leaky_relu", "residual": True},
        {"sample_weight": True},
        {"sample_weight": True, "activation": "relu"},
        {"virtual_batch_size": 2},
    ],
    DTYPES,
)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_bits_of_the_specification(dtype):
    """Every layout, instruction set and number of threads, for each way in which elements are visited."""
    for shape, given in [row[:2] for row in VISITED if row[2] == dtype]:
        rng = np.random.default_rng(shape)
        x, grad, residual = rng.standard_normal((3, *shape)).astype(DTYPES[dtype]) + 3
        if shape[1] > 4:
            x[:, 1] *= 1e-20
            x[:, 2] *= 1 if dtype == "float16" else 1e30
            grad[:, 3] *= 0
        x[rng.random(shape) < 0.3] = np.nan
        x[:2, :, ...], grad[np.isnan(x)] = 3 + rng.random(x[:2].shape).astype(x.dtype), np.nan
        given = dict(given)
        if "virtual_batch_size" in given and len(shape) == 2:
            continue  # a ghost of a few values loses too many
        if "virtual_batch_size" not in given:
            x[2:, 4] = np.nan
        if given.pop("sample_weight", False):
            given["sample_weight"] = rng.random((shape[0], *shape[2:])) + 0.1
        names = ("x", "grad", "residual") if given.pop("residual", False) else ("x", "grad")
        values = dict(zip(("x", "grad", "residual"), (x, grad, residual), strict=True))
        expected = None
        ways = [("contiguous", "reference", 1), *pairs(LAYOUTS, ISAS, (1, 3))]
        for layout, isa, threads in ways:
            bn._native.force_isa(isa)
            bn.set_num_threads(threads)
            arrays = {name: lay_out(values[name], layout, (1,)) for name in names}
            found = _everything(arrays, given)
            expected = found if expected is None else expected
            differ = [name for name, value in expected.items() if not same_bits(found[name], value)]
            assert not differ, f"{shape}, {given}, {layout}, {isa}, {threads} threads: other bits in {differ}"


def _everything(arrays: dict[str, np.ndarray], given: dict) -> dict[str, np.ndarray]:
    x, grad, ones = arrays["x"], arrays["grad"], np.ones(arrays["x"].shape[1])
    given = {**given, "residual": arrays.get("residual"), "nan_policy": "omit"}
    y, m = bn.batch_norm(x, **given)
    found = {"y": y, "count": m.count, "mean": m.mean, "m2": m.m2}
    for training in (True, False):
        if not training:
            given = {name: given[name] for name in given.keys() - {"sample_weight", "virtual_batch_size"}}
            m = m.reduce() if m.mean.ndim > 1 else m
        g = bn.batch_norm_backward(grad, x, m, ones, ones, training=training, **given)
        parts = {"x": g.x, "weight": g.weight, "bias": g.bias, "residual": g.residual}
        found |= {f"d {name}, {training}": value for name, value in parts.items() if value is not None}
    return found


def test_sums_of_gradients_in_the_canonical_order(rng):
    for shape, dtype in itertools.product([(2100, 40), (4500, 5), (2, 40, 56, 56)], ("float32", "float64")):
        x = _values(shape, dtype, 0.1, rng)
        x[:, 4] = 5.0
        x[-1, 5:6] = 3.0
        grad = rng.standard_normal(shape).astype(dtype)
        m, ones = bn.moments(x, nan_policy="omit"), np.ones(shape[1])
        found = bn.batch_norm_backward(np.where(np.isnan(x), np.nan, grad), x, m, ones, ones, nan_policy="omit")
        rstd = 1.0 / np.sqrt(m.var() + 1e-5)
        wide = np.zeros(shape[1], bool) if dtype == "float64" else (rstd < 2.0**-100) | (np.abs(m.mean) > 2.0**102)
        columns = canonical.columns(grad, (1,)), canonical.columns(x, (1,))
        sum_g, sum_gd = canonical.gradient_sums(*columns, m, wide, omit=True)
        assert same_bits(found.bias, sum_g)
        assert same_bits(found.weight, sum_gd * rstd)


@pytest.mark.parametrize("out", [True, False])
def test_a_channel_with_fewer_than_two_values_is_refused(out):
    """By its own count, in a ghost as well; nothing is written."""
    x = np.arange(24.0).reshape(6, 4)
    x[1:, 2] = np.nan
    given = {"nan_policy": "omit", "out": np.full_like(x, 7) if out else None}
    with pytest.raises(ValueError, match=r"batch_norm: every channel needs at least two values .* channel 2 has 1 "):
        bn.batch_norm(x, **given)
    x[3:, 2] = 5
    with pytest.raises(ValueError, match=r"channel 2 of ghost batch 0 has 1 "):
        bn.batch_norm(x, virtual_batch_size=3, **given)
    weights = np.full(6, 0.25)
    assert bn.batch_norm(x, sample_weight=weights, nan_policy="omit")[1].count.tolist() == [1.5, 1.5, 1.0, 1.5]
    weights[3:] = 0, 0, 9
    x[0, 2] = np.nan
    with pytest.raises(ValueError, match=r"channel 2 has 1 "):
        bn.batch_norm(x, sample_weight=weights, **given)
    assert given["out"] is None or (given["out"] == 7).all()


def test_raise_changes_nothing():
    x = np.arange(12.0).reshape(4, 3)
    x[2, 1] = np.nan
    out, m = np.full_like(x, 7), bn.moments(np.arange(12.0).reshape(4, 3))
    with pytest.raises(ValueError, match=r"batch_norm: x must have no NaN .* index \(2, 1\), in channel 1;"):
        bn.batch_norm(x, nan_policy="raise", out=out)
    with pytest.raises(ValueError, match=r"normalize: x must have no NaN .* index \(2, 1\), in channel 1;"):
        bn.normalize(x, m, nan_policy="raise", out=out)
    with pytest.raises(ValueError, match=r"batch_norm_backward: x must have no NaN .* index \(2, 1\)"):
        bn.batch_norm_backward(x, x, m, nan_policy="raise", out=out)
    assert (out == 7).all()


def test_running_statistics_move_by_what_each_channel_has(rng):
    x = rng.standard_normal((20, 3))
    x[:5, 1] = np.nan
    running = bn.RunningStatistics(3, momentum=None, dtype=np.float64, on_nonfinite="raise")
    running.update(bn.batch_norm(x, nan_policy="omit")[1])
    np.testing.assert_allclose(running.running_var, np.nanvar(x, axis=0, ddof=1), rtol=1e-12)


# --- masks per cell ---


def _of_positions(mask: np.ndarray, x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.broadcast_to(np.expand_dims(mask, 1), x.shape))


@pytest.mark.parametrize("ghosts", [None, 3])
@pytest.mark.parametrize("selects", ["all", "weights"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_mask_that_is_the_same_in_every_channel_is_one_of_positions(rng, dtype, selects, ghosts):
    """The same bits, NaN in cells that count and in others included."""
    for shape in [(33, 3), (9, 17, 7), (300, 20)]:
        x, grad = rng.standard_normal((2, *shape)).astype(DTYPES[dtype])
        mask = rng.random((shape[0], *shape[2:])) < 0.7
        mask[:: ghosts or 33], mask[1 :: ghosts or 33] = True, True
        for place in range(3):
            if place == 1:
                x[np.flatnonzero(~mask.reshape(len(x), -1).all(axis=1))[:1]] = np.nan
            if place == 2:
                x[5, 2] = np.nan
            given = {**_selection(selects, shape, rng), "virtual_batch_size": ghosts}
            if "sample_weight" in given:
                given["sample_weight"] += 0.1
            weighted = {**given, "mask": mask}, {**given, "mask": _of_positions(mask, x)}
            expected, found = (_all_of(x, grad, options) for options in weighted)
            differ = [name for name, value in expected.items() if not same_bits(found[name], value)]
            assert not differ, f"{shape}, {place}: other bits in {differ}"


def _all_of(x: np.ndarray, grad: np.ndarray, given: dict) -> dict[str, np.ndarray]:
    y, m = bn.batch_norm(x, **given)
    ones = np.ones(x.shape[1])
    g = bn.batch_norm_backward(grad, x, m, ones, ones, residual=grad, **given)
    found = {"y": y, "dx": g.x, "d weight": g.weight, "d bias": g.bias, "d residual": g.residual}
    return found | {name: getattr(m, name) for name in TABLE}


def test_a_mask_per_cell_is_exact(rng):
    """Every channel by its own cells, against the oracle; in place, and by a layer."""
    x, grad = rng.standard_normal((2, 12, 3))
    cells = rng.random(x.shape) < 0.6
    cells[:2] = True
    problem = oracle.Problem(x, (1,), sample_weight=cells.astype(float))
    stats = oracle.statistics(problem)
    y, m = bn.batch_norm(x, mask=cells)
    np.testing.assert_allclose(y, oracle.forward(problem, stats).y, atol=1e-12)
    assert m.count.tolist() == cells.sum(axis=0).tolist()
    exact = oracle.backward(problem, grad, stats)
    found = bn.batch_norm_backward(grad, x, m, np.ones(3), np.ones(3), mask=cells)
    for name in ("x", "weight", "bias"):
        np.testing.assert_allclose(getattr(found, name), getattr(exact, name), atol=1e-12)
    out = grad.copy()
    assert same_bits(bn.batch_norm_backward(out, x, m, mask=cells, out=out).x, found.x)
    layer = bn.BatchNorm1d(3, dtype=np.float64)
    assert same_bits(layer(x, mask=cells), y)
    assert same_bits(layer.backward(grad).x, found.x)
    np.testing.assert_allclose(layer.running_mean, 0.1 * m.mean)


def test_a_mask_per_cell_and_missing_cells(rng):
    x = rng.standard_normal((20, 3))
    cells = rng.random(x.shape) < 0.7
    cells[:2] = True
    x[rng.random(x.shape) < 0.2] = np.nan
    x[:2] = rng.standard_normal((2, 3))
    m = bn.moments(x, mask=cells, nan_policy="omit")
    there = np.where(cells, x, np.nan)
    np.testing.assert_allclose(m.mean, np.nanmean(there, axis=0), rtol=1e-12)
    assert m == bn.moments(there, nan_policy="omit")
    np.testing.assert_array_equal(np.isnan(bn.moments(x, mask=cells).mean), (np.isnan(x) & cells).any(axis=0))
    with pytest.raises(ValueError, match="in channel"):
        bn.moments(x, mask=cells, nan_policy="raise")
    assert bn.moments(x, mask=cells & ~np.isnan(x), nan_policy="raise") == m
    with pytest.raises(ValueError, match=r"channel 1 has 1 "):
        bn.batch_norm(np.ones((3, 2)), mask=np.array([[True, True], [True, False], [False, False]]))
    with pytest.raises(ValueError, match=r"sample_weight says which positions count, for all channels alike"):
        bn.moments(x, sample_weight=np.ones(x.shape))
