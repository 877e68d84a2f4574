"""What `explain` says to look at twice: suspicions, outliers, the shape of a distribution."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
from columns import columns_of, normalized

import batchnorm as bn
from batchnorm import _blocks as blocks
from batchnorm.tools.explain import Explanation, sampling


def kinds(e: Explanation) -> dict[str, tuple[int, ...]]:
    return {s.kind: s.channels for s in e.suspicions}


def test_ordinary_data_is_not_suspicious(rng: np.random.Generator) -> None:
    assert kinds(bn.explain(rng.normal(size=(100, 3)))) == {}


def test_constant_channel() -> None:
    x = np.array([[4.0, 1.0, 0.1], [4.0, 3.0, 0.1], [4.0, 2.0, 0.1]])
    e = bn.explain(x)
    assert kinds(e) == {"constant": (0, 2)}
    assert e.suspicions[0].values == (4.0, 0.1)
    text = " ".join(e.to_text().split())
    assert "Column 0 is 4 everywhere, so its variance is 0" in text
    assert "The same is true of column 2." in text


def test_one_value() -> None:
    e = bn.explain(np.array([[1.0, 2.0]]))
    assert kinds(e) == {"one value": (0, 1)}
    assert math.isnan(e.formulas.var_running)
    assert "A layer in training refuses such a batch" in " ".join(e.to_text().split())


def test_variance_near_eps_says_by_how_much(rng: np.random.Generator) -> None:
    x = rng.normal(size=(500, 2)) * [1e-3, 1]
    e = bn.explain(x)
    assert kinds(e) == {"near eps": (0,)}
    var = x[:, 0].var()
    assert e.suspicions[0].values[0] == pytest.approx(var / (var + 1e-5), rel=1e-12)
    assert e.channels.std_after[0] == pytest.approx(np.sqrt(var / (var + 1e-5)), rel=1e-9)
    assert kinds(bn.explain(x, eps=1e-12)) == {}
    assert kinds(bn.explain(x, eps=var / 90)) == {"near eps": (0,)}, "more than 1 % is lost"
    assert kinds(bn.explain(x, eps=var / 110)) == {}


def test_non_finite_values_are_counted_per_channel(rng: np.random.Generator) -> None:
    x = rng.normal(size=(10, 3, 4))
    x[1, 0, 2] = np.nan
    x[2:4, 2, 1] = [np.inf, -np.inf]
    e = bn.explain(x)
    assert e.channels.nans.tolist() == [1, 0, 0]
    assert e.channels.infinities.tolist() == [0, 0, 2]
    assert kinds(e) == {"non-finite": (0, 2)}
    assert e.inside.without_order == 2
    finite = np.where(np.isfinite(x), x, np.nan)
    assert np.array_equal(e.channels.maximum, np.nanmax(finite, axis=(0, 2)))
    assert "Channel 0 holds 1 NaN among its 40 values" in " ".join(e.to_text().split())
    assert e.between.pairs == 0
    assert "Fewer than two channels are free of NaN and infinity" in " ".join(e.to_text().split())
    x[:, 1] = np.inf
    assert bn.explain(x).channels.infinities.tolist() == [0, 40, 2]  # without a warning


def test_sixteen_bit_range() -> None:
    e = bn.explain(np.array([[1.0, 0.0], [7e4, 1.0], [-3.0, 2.0]]))
    assert kinds(e) == {"float16 range": (0,)}
    assert "Column 0 reaches 70000, but float16 ends at 65504" in " ".join(e.to_text().split())


@pytest.mark.parametrize(("offset", "expected"), [(5, []), (50, ["bfloat16"]), (500, ["float16", "bfloat16"])])
def test_sixteen_bit_steps(offset: float, expected: list[str], rng: np.random.Generator) -> None:
    x = rng.normal(size=(1000, 1)) + offset
    found = kinds(bn.explain(x))
    assert list(found) == [f"{name} steps" for name in expected]
    for name in expected:  # the step is the distance to the next number of that format
        kind = np.dtype(getattr(ml_dtypes, name, getattr(np, name, None)))
        at = x.mean().astype(kind)
        step = float(np.nextafter(at, kind.type(1e4)).astype(float) - at.astype(float))
        s = next(s for s in bn.explain(x).suspicions if s.kind.startswith(name))
        assert s.values[0] == pytest.approx(step / x.std(), rel=1e-9)


def test_data_whose_own_precision_does_not_resolve_it() -> None:
    x = (np.arange(200.0)[:, None] % 3 + 1e7).astype(np.float32)
    assert "float32 steps" in kinds(bn.explain(x))


def test_squares_beyond_float64() -> None:
    e = bn.explain(np.array([[1e200, 1.0], [-1e200, 2.0]]))
    assert kinds(e)["overflow"] == (0,)
    assert "whose square float64 cannot hold" in " ".join(e.to_text().split())


def test_suspicious_channels_are_shown_though_others_are_hidden(rng: np.random.Generator) -> None:
    x = rng.normal(size=(10, 100))
    x[:, 90] = 7
    text = bn.explain(x, channel=55).to_text()
    assert "88 more are not shown. --rows all shows every one" in text
    rows = [line.split()[0] for line in text.splitlines() if " │  " in line and "." in line and line.startswith("    ")]
    assert rows[-12:] == ["90", *map(str, range(10)), "55"]
    every = bn.explain(x).to_text(rows=None)
    assert "more are not shown" not in every
    assert all(f"\n    {c}  " in every for c in range(100))


# The distribution, and what squeezes it


@pytest.mark.parametrize("dtype", [np.float64, np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize("values", ["exponential", "few integers", "an offset"])
def test_the_distribution_keeps_its_shape(values: str, dtype: type, rng: np.random.Generator) -> None:
    x = {
        "exponential": rng.exponential(3, (4, 2, 100)),
        "few integers": rng.integers(0, 11, (4, 2, 100)).astype(float),
        "an offset": rng.gamma(2, 3, (4, 2, 100)) + 100,
    }[values].astype(dtype)
    d = bn.explain(x, channel=1).distribution
    assert d is not None
    before, after = columns_of(x, 1)[:, 1], columns_of(bn.batch_norm(x)[0], 1)[:, 1]
    for side, v in ((d.before, before), (d.after, after)):
        assert (side.low, side.high) == (v.min(), v.max())
        assert side.skewness == pytest.approx(((v - v.mean()) ** 3).mean() / v.std() ** 3, abs=1e-6)
        assert sum(side.counts) == 400
        if values == "exponential" and dtype is np.float64:
            assert side.counts == tuple(np.histogram(v, len(side.counts))[0])
    if dtype is not ml_dtypes.bfloat16 or values == "few integers":
        assert d.before.counts == d.after.counts
        assert d.is_kept
    text = " ".join(bn.explain(x, channel=1).to_text().split())
    assert f"the skewness was {d.before.skewness:.3g} before" in text


def test_a_shape_that_rounding_spoils_is_not_called_kept() -> None:
    x = np.array([[0.0, 1e-4, 2e-4, 3e-4, 4e-4, 5e-4, 1.0]] * 40, dtype=np.float16).reshape(-1, 1) + np.float16(64)
    d = bn.explain(np.append(x, [[np.float16(90)]], axis=0)).distribution
    assert d is not None
    from batchnorm.tools.explain.distribution import Distribution, Side

    assert not Distribution(0, Side(0, 1, (3, 1), 0.5), Side(0, 1, (1, 3), 0.5)).is_kept
    assert not Distribution(0, Side(0, 1, (3, 1), 0.5), Side(0, 1, (3, 1), 0.6)).is_kept


def test_an_outlier_is_pointed_out(rng: np.random.Generator) -> None:
    x = rng.normal(size=(40, 3))
    x[17, 1] = 250
    e = bn.explain(x, names=["a", "income", "c"])
    (o,) = e.outliers
    others = np.delete(x[:, 1], 17)
    y = np.delete(normalized(x)[:, 1], 17)
    assert (o.channel, o.position, o.value, o.count) == (1, 17, 250, 1)
    assert (o.low, o.high) == (others.min(), others.max())
    assert o.share == pytest.approx((others.max() - others.min()) / (250 - others.min()))
    assert (o.low_after, o.high_after) == pytest.approx((y.min(), y.max()))
    text = " ".join(e.to_text().split())
    assert "250 (column 'income', row 17) lies far from the other values, which take up only" in text
    assert "you have an outlier" in text
    assert "income" in next(row for row in e.to_text().splitlines() if row.endswith("outlier"))


def test_several_outliers_on_both_sides_of_an_array(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    x = rng.normal(size=(10, 2, 6, 10))
    x[3, 1, 2, 4], x[9, 1, 5, 9], x[0, 1, 0, 0] = 900, -700, 899
    for many in (False, True):
        if many:
            monkeypatch.setattr(sampling, "ALL", 100)
            monkeypatch.setattr(blocks, "BLOCK", 100)
        (o,) = bn.explain(x).outliers
        assert (o.channel, o.count, o.value) == (1, 3, 900)
        assert np.unravel_index(o.position, (10, 6, 10)) == (3, 2, 4)
    assert "900 (x[3, 1, 2, 4]) and 2 more lie far" in " ".join(bn.explain(x).to_text().split())


def test_two_outliers_of_a_short_column(rng: np.random.Generator) -> None:
    x = rng.normal(size=(60, 1))
    x[3], x[9] = 400, -380
    (o,) = bn.explain(x).outliers
    assert (o.position, o.count) == (3, 2)


@pytest.mark.parametrize(("far", "found"), [(11.0, True), (9.0, False)])
def test_an_outlier_leaves_a_fifth_of_the_range_at_most(far: float, found: bool) -> None:
    x = np.append(np.linspace(0, 2, 39), far)[:, None]
    assert bool(bn.explain(x).outliers) == found


def test_ordinary_values_are_no_outliers(rng: np.random.Generator) -> None:
    for x in (
        rng.normal(size=(200, 50)),
        rng.normal(size=(20, 400)),
        rng.normal(size=(6, 20)).round(1),
        rng.uniform(size=(20, 50)),
        rng.exponential(size=(1000, 20)),
        np.eye(30),  # one in thirty is 1, and the others are alike
        np.array([[1.0, 5.0], [2.0, 900.0]]),
    ):
        assert bn.explain(x).outliers == ()
    x = rng.normal(size=(30, 1))
    x[3], x[4] = 400, np.nan
    assert [o.position for o in bn.explain(x, nan_policy="omit").outliers] == [3]
    assert bn.explain(x).outliers == ()


def test_a_missing_value_is_drawn_as_a_dash() -> None:
    x = np.array([[1.0, np.nan], [2.0, 5.0], [3.0, 7.0]])
    omitted, spread_out = bn.explain(x, nan_policy="omit").to_text(), bn.explain(x).to_text()
    assert "nan" not in omitted
    assert "    0 │ 1 │ –      │ -1.2247 │" in omitted
    assert "    0 │ 1 │ NaN      │ -1.2247 │ NaN" in spread_out
