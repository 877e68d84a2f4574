"""What `explain` says is true: every number against NumPy, every count against a loop over all pairs."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
import tracemalloc
from pathlib import Path
from unicodedata import east_asian_width

import ml_dtypes
import numpy as np
import pytest
from columns import columns_of, normalized

import batchnorm as bn
from batchnorm import _blocks as blocks
from batchnorm.tools.explain import EXAMPLE, Explanation, sampling
from batchnorm.tools.explain.drawing import Grid, Stack

X_HAT = [-1.4142, -0.7071, 0.0, 0.7071, 1.4142]

SHAPES = [
    ((5, 1, 5, 1), 2),
    ((150, 4), 1),
    ((150, 4), 0),
    ((6, 3, 4, 5), 1),
    ((6, 4, 5, 3), -1),
    ((6, 3, 4, 5), (1, 3)),
    ((9,), ()),
    ((9,), 0),
    ((4, 70, 3), 1),
]


# The worked example


@pytest.fixture(scope="module")
def example() -> Explanation:
    return bn.explain(EXAMPLE, 2, source="the worked example")


def test_the_example_is_the_one_of_the_design() -> None:
    assert EXAMPLE.shape == (5, 1, 5, 1)
    assert EXAMPLE[:, 0, :, 0].tolist() == [[k + i for i in range(5)] for k in range(1, 6)]


def test_plan_of_the_example(example: Explanation) -> None:
    assert (example.plan.C, example.plan.m, example.plan.axis, example.plan.reduced) == (5, 5, (2,), (0, 1, 3))


def test_drawing_of_the_example_holds_both_matrices(example: Explanation) -> None:
    drawing = example.drawing
    assert isinstance(drawing, Grid)
    assert np.array_equal(drawing.before, EXAMPLE[:, 0, :, 0])
    assert np.allclose(drawing.after, np.repeat(np.array(X_HAT)[:, None], 5, axis=1), atol=5e-5)


def test_formulas_of_the_example(example: Explanation) -> None:
    f = example.formulas
    assert (f.m, f.x, f.last, f.mean, f.var, f.var_running) == (5, (1, 2, 3, 4, 5), None, 3, 2, 2.5)
    assert np.allclose(f.xhat, X_HAT, atol=5e-5)
    assert f.std == pytest.approx(2**0.5, abs=1e-15)
    assert (f.weight, f.bias) == (np.sqrt(2 + 1e-5), 3)
    assert f.y == pytest.approx([1, 2, 3, 4, 5], abs=1e-15)  # the weight and the bias undo it


def test_text_of_the_example_says_it_all(example: Explanation) -> None:
    text = example.to_text()
    for part in (
        "mean = (1 + 2 + 3 + 4 + 5) / 5 = 3\n",
        "var  = ((1 - 3)² + (2 - 3)² + (3 - 3)² + (4 - 3)² + (5 - 3)²) / 5 = 2\n",
        "(1 - 3) / √(2 + 1e-5) = -1.4142",
        "2 → -0.7071,  3 → 0,  4 → 0.7071,  5 → 1.4142",
        "│ -1.4142 │ -1.4142  -1.4142  -1.4142  -1.4142\n",
        "5/4 · 2 = 2.5",
        "√2 = 1.4142",
        "1.4142 · (-1.4142) + 3 = 1   std and mean undo it\n",
        "before  █████  from 1 to 5\n",
        "after   █████  from -1.4142 to 1.4142\n",
    ):
        assert part in text
    text = " ".join(text.split())
    for part in (
        "The array has the shape (5, 1, 5, 1). Axis 2 is kept and holds 5 columns; axes 0, 1 and 3 are averaged over",
        "none of the 50 pairs of values in the same column changed its order.",
        "Before, 5 (column 4, row 0) was greater than 1 (column 0, row 0). Now both are -1.4142.",
        "46 % of these comparisons come out differently now.",
        "the skewness was 0 before and is 0 now.",
        "column 0 becomes 1, 2, 3, 4, 5 again.",
    ):
        assert part in text


def test_print_shows_the_text_in_the_language_asked_for(example: Explanation, monkeypatch: pytest.MonkeyPatch) -> None:
    assert str(example) == example.to_text().rstrip()
    chinese = bn.explain(EXAMPLE, 2, lang="zh")
    assert "每一列都有自己的均值和方差" in str(chinese)
    assert chinese.to_text(lang="en") == bn.explain(EXAMPLE, 2).to_text()
    monkeypatch.setenv("LC_ALL", "zh_CN.UTF-8")
    assert str(bn.explain(EXAMPLE, 2)) == str(chinese)
    assert "lang" not in chinese.to_dict()
    with pytest.raises(ValueError, match="lang must be"):
        bn.explain(EXAMPLE, 2, lang="de")


# Numbers, against NumPy


@pytest.mark.parametrize(("shape", "axis"), SHAPES)
@pytest.mark.parametrize("block", [7, 1 << 22])
def test_statistics_of_every_channel(
    shape: tuple[int, ...],
    axis: int | tuple[int, ...],
    block: int,
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(blocks, "BLOCK", block)
    x = rng.normal(3, 2, shape)
    t = bn.explain(x, axis).channels
    table = columns_of(x, axis)
    y = normalized(table)
    for name, expected in (
        ("mean", table.mean(0)),
        ("var", table.var(0)),
        ("std", table.std(0)),
        ("mean_after", y.mean(0)),
        ("std_after", y.std(0)),
    ):
        assert np.allclose(getattr(t, name), expected, rtol=1e-12, atol=1e-12), name
    assert np.array_equal(t.minimum, table.min(0))
    assert np.array_equal(t.maximum, table.max(0))
    assert not t.nans.any()
    assert not t.infinities.any()


@pytest.mark.parametrize("order", ["C", "F"])
def test_statistics_of_a_transposed_array(
    order: str, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "BLOCK", 50)
    x = np.asarray(rng.normal(size=(8, 3, 9)), order=order).transpose(2, 0, 1)
    assert np.allclose(bn.explain(x, 2).channels.mean, x.mean(axis=(0, 1)), rtol=1e-13)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_after_is_measured_on_the_output_in_the_datas_own_precision(dtype: type, rng: np.random.Generator) -> None:
    x = rng.normal(5, 2, (300, 3)).astype(dtype)
    e = bn.explain(x)
    y, _ = bn.batch_norm(x)
    y = y.astype(np.float64)
    assert np.allclose(e.channels.mean_after, y.mean(0), atol=1e-15)
    assert np.allclose(e.channels.std_after, y.std(0), rtol=1e-14)
    assert e.dtype == e.working_dtype == np.dtype(dtype).name
    assert e.formulas.xhat == tuple(y[:5, 0])


def test_integers_are_converted_and_that_is_said() -> None:
    e = bn.explain(np.array([[1, 200], [3, 255]], dtype=np.uint8))
    assert (e.dtype, e.working_dtype) == ("uint8", "float64")
    assert e.channels.mean.tolist() == [2.0, 227.5]
    assert e.remarks == ("uint8 was converted to float64",)
    assert "Note: uint8 was converted to float64.\n" in e.to_text()
    large = bn.explain(np.array([[2**60], [2**60 + 1]]))
    assert large.remarks == ("int64 was converted to float64, which rounds integers beyond 2^53",)


def test_byte_swapped_data_has_the_numbers_it_would_have_had(rng: np.random.Generator) -> None:
    x = rng.normal(size=(20, 3)).astype(np.float32)
    assert bn.explain(x.astype(">f4")).to_json() == bn.explain(x).to_json()


def test_formulas_of_a_long_channel_show_the_first_values_and_the_last(rng: np.random.Generator) -> None:
    x = rng.normal(size=(4, 3, 5))
    f = bn.explain(x, channel=2).formulas
    flat = x[:, 2].ravel()
    assert f.x == tuple(flat[:5])
    assert f.last == flat[-1]
    assert f.m == 20
    y = normalized(columns_of(x, 1))[:, 2]
    assert np.allclose(f.xhat, y[:5], atol=1e-14)
    assert f.xhat_last == pytest.approx(y[-1], abs=1e-14)


def test_formulas_of_several_kept_axes_count_channels_row_by_row(rng: np.random.Generator) -> None:
    x = rng.normal(size=(4, 3, 2, 5))
    e = bn.explain(x, (1, 3), channel=7)
    assert e.formulas.mean == pytest.approx(x[:, 1, :, 2].mean(), abs=1e-15)
    assert e.labels.of(7) == "channel (1, 2)"


# Drawings


def test_a_table_is_a_grid_of_its_own_numbers(rng: np.random.Generator) -> None:
    x = rng.normal(size=(150, 64))
    drawing = bn.explain(x, channel=20).drawing
    assert isinstance(drawing, Grid)
    assert drawing.rows == (0, 1, 2, None, 149)
    assert drawing.columns == (0, 1, 2, None, 20, None, 63)
    shown = np.ix_([0, 1, 2, 149], [0, 1, 2, 20, 63])
    assert np.array_equal(drawing.before, x[shown])
    assert np.allclose(drawing.after, normalized(x)[shown], atol=1e-13)


def test_channels_last_is_a_grid_with_a_row_per_position(rng: np.random.Generator) -> None:
    x = rng.normal(size=(4, 3, 5, 2))
    drawing = bn.explain(x, -1).drawing
    assert isinstance(drawing, Grid)
    assert drawing.row_indices == ((0, 0, 0), (0, 0, 1), (0, 0, 2), (3, 2, 4))
    assert drawing.before[3] == tuple(x[3, 2, 4])


def test_samples_with_channels_are_a_stack(rng: np.random.Generator) -> None:
    e = bn.explain(rng.normal(size=(32, 9, 4, 5)), channel=4)
    assert e.drawing == Stack((0, 1, 2, None, 31), (0, 1, 2, None, 4, None, 8), (4, 5), 4)
    text = e.to_text()
    assert "channel 4  █████████  █████████  █████████  …  █████████\n" in text
    assert "channel 8  ░░░░░░░░░  ░░░░░░░░░  ░░░░░░░░░  …  ░░░░░░░░░\n" in text
    assert "4 · 5 = 20 values" in text


# What is kept and lost, against a loop over all pairs


def sign(a: float, b: float) -> int:
    return int(a > b) - int(a < b)


def count_pairs(x: np.ndarray, y: np.ndarray) -> dict[str, int]:
    """Compare every value of a table with every other, before and after."""
    n = dict.fromkeys(
        ("inside", "inside_changed", "pairs", "reversed", "made_equal", "made_different", "beside", "beside_changed"), 0
    )
    cells = list(np.ndindex(*x.shape))
    for a, b in itertools.combinations(cells, 2):
        before, after = sign(x[a], x[b]), sign(y[a], y[b])
        if a[1] == b[1]:
            n["inside"] += 1
            n["inside_changed"] += before != after
            continue
        n["pairs"] += 1
        n["reversed"] += before * after < 0
        n["made_equal"] += before != 0 and after == 0
        n["made_different"] += before == 0 and after != 0
        n["beside"] += a[0] == b[0]
        n["beside_changed"] += a[0] == b[0] and before != after
    return n


@pytest.mark.parametrize("values", ["example", "normal", "few integers", "alike", "float32 with an offset"])
def test_counts_of_pairs(values: str, rng: np.random.Generator) -> None:
    x = {
        "example": EXAMPLE[:, 0, :, 0],
        "normal": rng.normal(size=(20, 5)) * [1, 10, 0.1, 3, 1] + [0, 1, 5, -2, 0],
        "few integers": rng.integers(0, 4, (30, 4)).astype(float) * [1, 2, 1, 3],
        "alike": np.tile(rng.normal(size=(12, 1)), (1, 3)),
        "float32 with an offset": (rng.normal((0, 1000, 1), size=(30, 3))).astype(np.float32),
    }[values]
    e = bn.explain(x)
    y, _ = bn.batch_norm(x)
    expected = count_pairs(x, y)
    between = {
        name: getattr(e.between, name)
        for name in ("pairs", "reversed", "made_equal", "made_different", "beside", "beside_changed")
    }
    assert between == {name: expected[name] for name in between}
    assert (e.inside.pairs, e.inside.reversed, e.inside.made_equal) == (
        expected["inside"],
        0,
        expected["inside_changed"],
    )
    assert e.inside.complete
    assert e.between.complete


def test_columns_that_are_alike_stay_comparable(rng: np.random.Generator) -> None:
    e = bn.explain(np.tile(rng.normal(size=(12, 1)), (1, 3)))
    assert e.between.changed == 0
    assert e.between.example is None
    assert "these columns were alike already" in " ".join(e.to_text().split())


def test_the_example_pair_is_in_the_data(rng: np.random.Generator) -> None:
    x = (
        rng.normal(size=(6, 3, 4, 2)) * np.array([1.0, 10.0, 0.1])[:, None, None]
        + np.array([0.0, 5.0, 1.0])[:, None, None]
    )
    e = bn.explain(x)
    p = e.between.example
    assert p is not None
    table = columns_of(x, 1)
    y = normalized(table)
    assert (p.a, p.b) == (table[p.position_a, p.channel_a], table[p.position_b, p.channel_b])
    assert p.a > p.b
    assert p.a_after <= p.b_after
    assert p.a_after == pytest.approx(y[p.position_a, p.channel_a], abs=1e-13)
    position = np.unravel_index(p.position_a, (6, 4, 2))
    index = (position[0], p.channel_a, *position[1:])
    assert e.labels.element(p.position_a, p.channel_a) == f"x[{', '.join(str(int(i)) for i in index)}]"
    assert x[index] == p.a


def test_every_position_of_a_long_channel_is_looked_at(rng: np.random.Generator) -> None:
    """More than the 8192 numbers that NumPy takes at once."""
    x = rng.normal(size=(10, 2, 40, 50)).astype(np.float32)
    e, table = bn.explain(x), columns_of(x, 1)
    y = columns_of(bn.batch_norm(x)[0], 1)
    lost = sum(len(np.unique(table[:, c])) - len(np.unique(y[:, c])) for c in range(2))
    assert e.inside.values == 20_000
    assert (e.inside.made_equal > 0) == (lost > 0)
    assert e.inside.example is not None
    assert (e.inside.example.low, e.inside.example.high) == (table[:, 0].min(), table[:, 0].max())
    p = e.between.example
    assert p is not None
    assert p.a == table[p.position_a, p.channel_a]


def test_relative_distances_against_every_value(rng: np.random.Generator) -> None:
    x = rng.normal(size=(200, 3)).astype(np.float32)
    e = bn.explain(x)
    y, _ = bn.batch_norm(x)

    def place(v: np.ndarray) -> np.ndarray:
        v = v.astype(float)
        return (v - v.min(0)) / (v.max(0) - v.min(0))

    assert e.inside.moved == pytest.approx(abs(place(x) - place(y)).max(), abs=1e-15)
    assert 0 < e.inside.moved <= e.inside.tolerance < 1e-5
    p = e.inside.example
    assert p is not None
    assert p.fraction == pytest.approx((p.value - p.low) / (p.high - p.low), abs=1e-15)
    assert p.fraction_after == pytest.approx(p.fraction, abs=1e-6)


def test_rounding_that_makes_values_equal_is_counted() -> None:
    x = np.array([[0.0, 1e-12, 2e-12, 1e4]], dtype=np.float32).T  # after: the first three are the same float32
    e = bn.explain(x)
    assert e.inside.made_equal == 3
    assert "Rounding made 3 pairs equal." in " ".join(e.to_text().split())


def test_a_wrong_order_would_be_reported() -> None:
    """The verdicts come from the sample, not from what is expected of it."""
    x = np.array([[1.0], [2.0], [3.0], [4.0]])
    sample = sampling.Sample(x, np.array([[1.0], [3.0], [2.0], [4.0]]), np.arange(4), np.arange(1), complete=True)
    from batchnorm.tools.explain.comparing import compare_inside

    inside = compare_inside(sample, np.dtype(float), 0)
    assert inside.reversed == 1
    assert inside.moved == pytest.approx(1 / 3)
    assert inside.moved > inside.tolerance


@pytest.mark.parametrize(("count", "most"), [(10, 20), (100, 7), (1 << 20, 4096), (2, 1), (3, 2)])
def test_spread_gives_different_numbers_in_order(count: int, most: int) -> None:
    numbers = sampling.spread(count, most)
    assert len(numbers) == min(count, most)
    assert (np.diff(numbers) > 0).all()
    assert numbers[0] >= 0
    assert numbers[-1] < count


def test_many_values_are_sampled_always_the_same(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "ALL", 1000)
    monkeypatch.setattr(sampling, "SAMPLE", 600)
    x = rng.normal(size=(50, 6, 8)) * np.arange(1.0, 7)[:, None]
    e = bn.explain(x, channel=5)
    assert not e.inside.complete
    assert (e.inside.channels, e.inside.values) == (6, 100)
    assert e.inside.reversed == 0
    assert "sampled pairs" in " ".join(e.to_text().split())
    assert e.to_json() == bn.explain(x, channel=5).to_json()


def test_more_channels_than_are_sampled_include_the_one_explained(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "ALL", 1000)
    monkeypatch.setattr(sampling, "CHANNELS", 10)
    x = rng.normal(size=(20, 100))
    for channel in (0, 41, 99):
        e = bn.explain(x, channel=channel)
        assert e.inside.channels in (10, 11)
        assert e.inside.example is not None
        assert e.inside.example.low == x[:, channel].min()


# Forms


def strictly(text: str) -> dict:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_json_is_strict_and_complete(rng: np.random.Generator) -> None:
    x = rng.normal(size=(10, 3))
    x[0, 1] = np.nan
    e = bn.explain(x, names=["a", "b", "c"], source="somewhere")
    d = strictly(e.to_json())
    assert d == e.to_dict()
    assert d["plan"]["m"] == 10
    assert d["plan"]["axis"] == [1]
    assert d["source"] == "somewhere"
    assert [c["name"] for c in d["channels"]] == ["a", "b", "c"]
    assert d["channels"][1]["mean"] == "nan"
    assert d["channels"][0]["mean"] == e.channels.mean[0] == pytest.approx(x[:, 0].mean(), abs=1e-15)
    assert d["formulas"]["mean"] == e.formulas.mean
    assert set(d) >= {"drawing", "formulas", "suspicions", "inside", "between", "eps", "dtype", "unit", "remarks"}


def test_json_for_a_stream_without_unicode() -> None:
    text = bn.explain(EXAMPLE, 2, source="Beispiel für alle").to_json(ascii_only=True)
    assert text.isascii()
    assert strictly(text)["source"] == "Beispiel für alle"


def display_width(line: str) -> int:
    return sum(2 if east_asian_width(c) in "WF" else 1 for c in line)


AWKWARD = {
    "large numbers": (np.array([[1e300, -1e-300], [-1.23456789e300, 2e-300], [3e300, 0.0]]), {}),
    "a large offset": (np.array([[1e12 + 1, -1e12], [1e12 + 2, -1e12 - 0.5], [1e12, 3.0]]), {}),
    "long names": (np.arange(12.0).reshape(4, 3), {"names": ["a name far too long for any table" * 3, "b", "c"]}),
    "wide names": (
        np.arange(12.0).reshape(4, 3),
        {"names": ["花萼长度（厘米）花萼长度（厘米）花萼长度（厘米）", "花", "瓣"]},
    ),
    "control characters": (
        np.arange(4.0).reshape(2, 2),
        {"names": ["\x1b[31mred", "line\nbreak"], "source": "a\tb\x07.csv"},
    ),
    "many channels": (np.random.default_rng(0).normal(size=(2, 12345, 3)), {"channel": 12344}),
    "nothing finite": (np.full((3, 2), np.nan), {}),
    "many samples": (np.random.default_rng(0).normal(size=(12345, 2, 3)), {}),
}


@pytest.mark.parametrize("case", AWKWARD)
@pytest.mark.parametrize("lang", ["en", "zh"])
def test_text_stays_within_its_width(case: str, lang: str) -> None:
    x, options = AWKWARD[case]
    e = bn.explain(x, **options, lang=lang)
    for width in (60, 80, 100):
        is_within(e.to_text(width), width)


def is_within(text: str, width: int) -> None:
    assert max(map(display_width, text.splitlines())) <= width
    assert all(c == "\n" or c.isprintable() for c in text)
    assert not any(line.endswith(" ") for line in text.splitlines())


@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_text_of_every_shape(shape: tuple[int, ...], axis: int | tuple[int, ...], rng: np.random.Generator) -> None:
    text = bn.explain(rng.normal(size=shape), axis).to_text()
    assert max(map(len, text.splitlines())) <= 80
    headings = [line for line in text.splitlines() if re.match(r" \d  ", line)]
    assert [heading[1] for heading in headings] == [*"12345"]


def test_repr_is_short(example: Explanation) -> None:
    assert repr(example) == "Explanation(shape=(5, 1, 5, 1), axis=(2,), channels=5, m=5, eps=1e-05)"


def test_explanations_are_frozen(example: Explanation) -> None:
    with pytest.raises(AttributeError):
        example.eps = 1.0  # type: ignore[misc]


# Refusals


@pytest.mark.parametrize(
    ("x", "options", "kind", "message"),
    [
        (
            np.ones((4, 3)),
            {"channel": 3},
            ValueError,
            "channel 3 does not exist; shape (4, 3) has 3 channels on axis 1, counted from 0 to 2",
        ),
        (np.ones((4, 3)), {"channel": -1}, ValueError, "channel -1 does not exist"),
        (np.ones((4, 3)), {"axis": 2}, ValueError, "axis 2 does not exist"),
        (np.ones((4, 3)), {"axis": (1, 1)}, ValueError, "names each axis of the channels once"),
        (np.ones((0, 3)), {}, ValueError, "nothing to average in an array of shape (0, 3)"),
        (np.float64(3), {}, ValueError, "nothing to average in an array of shape ()"),
        (np.ones((4, 3)), {"eps": 0.0}, ValueError, "eps must be positive"),
        (np.ones((4, 3)), {"eps": np.nan}, ValueError, "eps must be positive"),
        (np.ones((4, 3)), {"names": ["a"]}, ValueError, "one name for each of the 3 channels; got 1"),
        (
            np.ones((4, 3), complex),
            {},
            TypeError,
            "real numbers; got complex data (shape (4, 3), dtype complex128)",
        ),
        (np.array([["a", "b"]]), {}, TypeError, "must hold real numbers"),
        (np.ones((4, 3), np.clongdouble).real, {}, TypeError, "must hold real numbers"),
        ([[1.0, 2.0], [3.0]], {}, TypeError, "must be an array of real numbers; got list"),
        (np.ma.masked_array(np.ones((4, 3)), False), {}, TypeError, "mask would be lost"),
    ],
)
def test_refusals(x: np.ndarray, options: dict, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind) as refusal:
        bn.explain(x, **options)
    assert message in str(refusal.value)
    assert str(refusal.value).startswith("explain: ")


# Cost


def test_the_model_needs_numpy_only() -> None:
    code = (
        "import sys, numpy as np, batchnorm as bn; bn.explain(np.eye(3)).to_text(); "
        "print(*({'rich', 'pyarrow', 'torch', 'matplotlib', 'pandas', 'ml_dtypes'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_import_of_the_package_does_not_import_the_explanation() -> None:
    code = "import sys, batchnorm; print(*[m for m in sys.modules if m.startswith(tuple(sys.argv[1:]))])"
    parts = ["batchnorm.tools.explain", "batchnorm.tools.files", "batchnorm.tools.cli"]
    done = subprocess.run([sys.executable, "-c", code, *parts], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


@pytest.mark.parametrize("dtype", [np.float32, np.int16])
def test_a_memory_map_is_not_copied(dtype: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK", 1 << 21)
    path = tmp_path / "large.npy"
    x = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=(64, 16, 128, 256))  # sparse: no disk is used
    x[0, :, 0, :16] = np.arange(16)
    del x
    tracemalloc.start()
    try:
        e = bn.explain(np.load(path, mmap_mode="r"))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert e.channels.maximum[0] == 15
    assert peak < 6 * 8 * blocks.BLOCK  # six blocks in float64, however large the file
