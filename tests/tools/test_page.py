"""The page of `explain`, driven in a browser: its numbers are the library's, in every mode."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from pages import (
    MODES,
    averaged_with,
    cell,
    drawn,
    go,
    library,
    lit,
    opened,
    parts_in,
    point,
    results,
    rows_of,
    seen,
    show,
    slide,
    take,
    text,
)
from pairs import rest_slow
from playwright.sync_api import Browser, Page

import batchnorm as bn
from batchnorm.tools.explain import EXAMPLE, digits, explain
from batchnorm.tools.explain.page.contents import contents

EACH_KIND_AND_TENSOR = (0, 1, 3, 5, 6, 8, 9, 11, 17)


@pytest.mark.parametrize(("tensor", "kind", "how"), rest_slow(MODES, *EACH_KIND_AND_TENSOR), ids=str)
def test_every_mode_computes_and_lights_what_it_should(example: Page, tensor: str, kind: str, how: Any) -> None:
    go(example, tensor, kind, **how)
    x, y = seen(example)
    assert np.allclose(y, library(kind, x, **how), rtol=1e-11, atol=1e-12)
    cells = drawn(example)
    assert len(cells) == x.size  # the small tensors are drawn whole
    for index in (cells[0], cells[len(cells) // 2], cells[-1]):
        point(example, *index)
        together = averaged_with(kind, x.shape, index, **how)
        assert lit(example) == lit(example, "after") == together
        values = np.array([x[i] for i in together])
        shown = results(example)
        assert float(shown["mean"]) == pytest.approx(values.mean(), rel=5.1e-5, abs=1e-15)  # five digits
        assert float(shown["var"]) == pytest.approx(values.var(), rel=5.1e-5, abs=1e-15)
        assert shown["x̂"] == shown["y"] == digits.normal(y[index])
        assert f" {len(values)} value" in text(example, "lit")


def test_the_worked_example_is_the_start(example: Page) -> None:
    assert example.locator("input[name=kind][value='1d']").is_checked()
    before = example.locator("#before .cell").all_inner_texts()
    after = example.locator("#after .cell").all_inner_texts()
    assert before == [str(k + c) for k in range(1, 6) for c in range(5)]
    assert after == [t for t in ("-1.4142", "-0.7071", "0", "0.7071", "1.4142") for _ in range(5)]
    assert results(example) == {"mean": "3", "var": "2", "x̂": "-1.4142", "y": "-1.4142"}
    assert "so it is called biased: 2." in text(example, "divides")
    assert "unbiased variance 2.5," in text(example, "divides")


def test_what_is_kept_and_lost_is_what_the_explanation_counts(example: Page) -> None:
    e = explain(EXAMPLE, 2)
    b = e.between
    assert text(example, "order").startswith("kept the order inside a column\n")
    assert f"none of the {e.inside.pairs // 5} pairs of values in column 0 changed its order." in text(example, "order")
    assert text(example, "between").startswith("lost comparisons between columns\n")
    assert f"{digits.percent(b.changed / b.pairs, 2)} of these comparisons come out differently" in text(
        example, "between"
    )
    point(example, 4, 2)
    assert "Before, 9 was greater than 5. Now both are 1.4142." in text(example, "between")
    point(example, 1, 0)
    place = "Before, 2 was 25\N{NO-BREAK SPACE}% of the way from 1 to 5. Now -0.7071 is 25\N{NO-BREAK SPACE}%"
    assert place in text(example, "distances")
    assert len(example.locator("#slopes-inside .slope").all()) == 5


def test_a_negative_weight_turns_the_order_round_and_zero_ends_it(example: Page) -> None:
    slide(example, "gamma", -1)
    assert "10 of 10 pairs of values in column 0 changed their order" in text(example, "order")
    assert text(example, "order").startswith("changed ")
    assert "mirrors the histogram" in text(example, "shape")
    slide(example, "gamma", 0)
    assert "all values have become equal" in text(example, "order")
    assert "no shape to compare" in text(example, "shape")


def test_weight_and_bias_can_undo_it(example: Page) -> None:
    point(example, 0, 3)
    example.locator("#undo").click()
    x, y = seen(example)
    assert np.allclose(y[:, 3], x[:, 3], atol=1e-12)
    assert "bias = mean = 6, column 3 becomes 4, 5, 6, 7, 8 again." in text(example, "conclusion")


@pytest.mark.parametrize(
    ("gamma", "beta", "eps"), rest_slow([(2.5, -1.2, 1e-5), (-0.7, 3, 10), (1, 0, 1e-10), (0, 0.4, 1)], 1, 3)
)
def test_sliders_are_the_layers_parameters(example: Page, gamma: float, beta: float, eps: float) -> None:
    show(example, "images")
    for name, value in (("gamma", gamma), ("beta", beta), ("eps", math.log10(eps))):
        slide(example, name, value)
    x, y = seen(example)
    expected, _ = bn.batch_norm(x, np.full(3, float(gamma)), np.full(3, float(beta)), eps=eps)
    assert np.allclose(y, expected, rtol=1e-11, atol=1e-12)
    point(example, 1, 2, 3, 0)
    assert results(example)["y"] == digits.normal(float(y[1, 2, 3, 0]))
    assert (
        cell(example, 1, 2, 3, 0, side="after")
        .get_attribute("aria-label", timeout=1000)
        .startswith(f"y[1, 2, 3, 0] = {digits.short(float(y[1, 2, 3, 0]))}")
    )
    assert text(example, "eps-out") == digits.short(eps)
    example.locator("#reset").click()
    assert np.allclose(seen(example)[1], library("2d", x), rtol=1e-11, atol=1e-12)


def test_batch_size_takes_the_first_samples(example: Page) -> None:
    for batch in (4, 2, 1):
        slide(example, "batch", batch)
        x, y = seen(example)
        assert x.tolist() == EXAMPLE[:batch, 0, :, 0].tolist()
        if batch > 1:
            assert np.allclose(y, library("1d", x), rtol=1e-11)
    assert "refuses such a batch" in text(example, "lit")  # one value in each column
    assert seen(example)[1].tolist() == [[0.0] * 5]
    assert "a layer in training refuses it" in text(example, "no-running")
    slide(example, "batch-again", 3)  # the same slider, in the part on training
    assert seen(example)[0].shape == (3, 5)
    assert example.locator("#batch").input_value() == "3"


def test_histograms_count_the_values_averaged_together(example: Page) -> None:
    show(example, "images")
    point(example, 0, 1, 2, 2)
    x, y = seen(example)
    for side, values in (("before", x[:, 1].ravel()), ("after", y[:, 1].ravel())):
        bars = [float(b.get_attribute("height") or 0) for b in example.locator(f"#histogram-{side} .bar").all()]
        counts, _ = np.histogram(values, bins=len(bars))
        assert len(bars) >= 5
        assert np.allclose(bars, counts * (max(bars) / counts.max()), atol=1e-9)
        shown = example.locator(f"#histogram-{side} .mean-text").text_content() or ""
        mean, std = map(float, re.findall(r"-?\d+\.?\d*", shown))
        assert (mean, std) == pytest.approx((values.mean(), values.std()), abs=6e-4 * max(1, abs(values.mean())))


def test_the_histogram_keeps_its_shape(browser: Browser, tmp_path: Path) -> None:
    """Also where values stand on the edge of a bar, and whatever the colors say: the same heights and the skewness."""
    x = np.random.default_rng(0).integers(0, 11, (125, 2)).astype(np.float32)  # ten bars, an integer on every edge
    x[:, 1] *= 1e3
    e = explain(x, names=["a", "b"])
    assert e.distribution is not None
    with opened(browser, e.to_html(), tmp_path) as page:
        heights = [
            [float(bar.get_attribute("height") or 0) for bar in page.locator(f"#histogram-{side} .bar").all()]
            for side in ("before", "after")
        ]
        assert heights[0] == pytest.approx(heights[1], abs=1e-9)
        counts = np.array(e.distribution.before.counts)
        assert heights[0] == pytest.approx(counts * (max(heights[0]) / counts.max()))
        skewness = f"{e.distribution.before.skewness:.3g}"
        assert f"the skewness was {skewness} before and is {skewness} now" in text(page, "shape")
        assert "do not make the values of column 'a' normally distributed" in text(page, "shape")


def test_an_outlier_is_pointed_out(browser: Browser, tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(30, 2))
    x[7, 1] = 900
    e = explain(x, names=["a", "b"])
    with opened(browser, e.to_html(), tmp_path) as page:
        assert [row[-1] for row in rows_of(page)] == ["", "An outlier squeezes the others."]
        assert "900 (column 'b', row 7) lies far from the other values," in text(page, "outliers")


def test_the_code_shown_computes_what_is_shown(example: Page) -> None:
    for tensor, kind, how in MODES:
        if how == {"axis": (0, 2)}:
            continue  # every value alone: batch_norm refuses it
        go(example, tensor, kind, **how)
        x, y = seen(example)
        code = text(example, "code")
        data = x if code.startswith("bn") else torch.from_numpy(x).float()
        with torch.no_grad():
            computed = np.asarray(eval(code, {"bn": bn, "torch": torch, "x": data}))
        assert np.allclose(y, computed, rtol=1e-5, atol=1e-6), code  # layers of float32 parameters


# Training and evaluation


def trained(x: np.ndarray, batch: int, momentum: float | None, steps: int, kind: str, correction: int) -> Any:
    name = {"1d": bn.BatchNorm1d, "2d": bn.BatchNorm2d, "3d": bn.BatchNorm3d}[kind]
    layer = name(x.shape[1], momentum=momentum, running_correction=correction, dtype=np.float64)
    for t in range(steps):
        layer(np.stack([x[(t * batch + k) % len(x)] for k in range(batch)]))
    return layer


@pytest.mark.parametrize(
    ("tensor", "kind", "batch", "momentum", "steps", "at"),
    [
        ("table", "1d", 5, 0.1, 40, (0, 0)),
        ("table", "1d", 2, 0.3, 13, (1, 4)),
        ("images", "2d", 2, 0.05, 100, (0, 2, 1, 1)),
        ("images", "2d", 1, None, 3, (0, 1, 0, 0)),
        ("volumes", "3d", 2, 1, 1, (1, 1, 2, 2, 2)),
    ],
)
def test_running_statistics_are_those_of_a_layer(
    example: Page, tensor: str, kind: str, batch: int, momentum: float | None, steps: int, at: tuple[int, ...]
) -> None:
    go(example, tensor, kind)
    x, _ = seen(example)
    slide(example, "batch", batch)
    if momentum is None:
        example.locator("#cumulative").check()
        assert example.locator("#momentum").is_disabled()
    else:
        slide(example, "momentum", momentum)
    slide(example, "steps", steps)
    point(example, *at)
    unbiased, biased = (trained(x, batch, momentum, steps, kind, c) for c in (1, 0))
    c = at[1]
    assert text(example, "mean-caption") == f"running_mean = {digits.short(unbiased.running_mean[c])}"
    values = [digits.short(layer.running_var[c]) for layer in (unbiased, biased)]
    assert text(example, "var-caption") == f"running_var = {values[0]} (unbiased), {values[1]} (biased)"
    unbiased.eval()
    rows = [row.locator(".result").inner_text() for row in example.locator("#evaluation .formula").all()]
    inside = x[:batch]
    assert rows == [digits.normal(library(kind, inside)[at]), digits.normal(unbiased(inside)[at])]
    points = (example.locator("#running-var .line.biased").get_attribute("points") or "").split()
    assert len(points) == steps + 1
    assert len(example.locator("#running-mean .batch").all()) == steps


@pytest.mark.parametrize(
    ("kind", "how", "says"),
    [
        ("layer", {}, "LayerNorm has no running statistics"),
        ("group", {}, "GroupNorm has no running statistics"),
        ("axis", {"axis": (0, 2)}, "no channel outlives its batch"),
    ],
)
def test_what_has_no_running_statistics_says_so(example: Page, kind: str, how: Any, says: str) -> None:
    go(example, "images", kind, **how)
    assert says in text(example, "no-running")
    assert not example.locator("#running-mean").is_visible()


# The reader's own data


OWN = {
    "table": (np.random.default_rng(1).normal(5, 2, (20, 4)), 1),
    "float32": (np.random.default_rng(2).normal(5e3, 2, (6, 3, 5, 5)).astype(np.float32), 1),
    "float16": (np.random.default_rng(3).normal(5, 2, (6, 3, 5)).astype(np.float16), 1),
    "bfloat16": (np.random.default_rng(3).normal(5, 2, (6, 3, 5)).astype(ml_dtypes.bfloat16), 1),
    "integers": (np.arange(24).reshape(8, 3) ** 2, 1),
    "channels last": (np.random.default_rng(4).normal(size=(4, 5, 5, 3)), -1),
    "two axes kept": (np.random.default_rng(5).normal(size=(4, 3, 5)), (1, 2)),
    "one axis": (np.arange(7.0), ()),
    "six axes": (np.random.default_rng(6).normal(size=(2, 3, 2, 2, 2, 2)), 1),
    "offset": (np.random.default_rng(7).normal(1e6, 1, (50, 2)), 1),
    "strided": (np.random.default_rng(8).normal(size=(10, 8))[::2, ::-2], 1),
    "big-endian": (np.random.default_rng(9).normal(size=(10, 3)).astype(">f8"), 1),
}


@pytest.mark.parametrize("name", rest_slow([*OWN], 0, 1, 3, 6, 10))
def test_the_readers_numbers_are_the_librarys(browser: Browser, tmp_path: Path, name: str) -> None:
    x, axis = OWN[name]
    e = explain(x, axis)
    wide = x.astype(
        np.float32 if x.dtype.itemsize == 2 else np.float64 if x.dtype.kind in "iu" else x.dtype.newbyteorder("=")
    )
    with opened(browser, e.to_html(), tmp_path) as page:
        held, y = seen(page)
        assert held.tolist() == wide.astype(float).tolist()
        expected, m = bn.batch_norm(wide, axis=axis)
        step = 1.2e-7 if wide.dtype == np.float32 else 1e-9 if name == "offset" else 1e-12
        assert np.allclose(y, expected, rtol=step, atol=step)
        first = np.atleast_1d(m.mean).ravel()[0]
        assert float(results(page)["mean"]) == pytest.approx(first, rel=5.1e-5, abs=1e-15)
        table = rows_of(page)
        for row, told in zip(table, e.channels.rows(), strict=True):
            for shown, key in zip(
                row[1:5] + row[6:8], ("mean", "std", "minimum", "maximum", "mean_after", "std_after"), strict=True
            ):
                assert float(shown) == pytest.approx(told[key], rel=1e-3, abs=6e-5)


def test_missing_values_are_in_no_mean(browser: Browser, tmp_path: Path) -> None:
    x = np.random.default_rng(1).normal(5, 2, (20, 4))
    x[[3, 4], 0] = x[7, 2] = np.nan
    with opened(browser, explain(x, nan_policy="omit").to_html(), tmp_path) as page:
        y, m = bn.batch_norm(x, nan_policy="omit")
        assert np.allclose(seen(page)[1], y, atol=1e-12, equal_nan=True)
        assert float(results(page)["mean"]) == pytest.approx(m.mean[0], rel=5.1e-5)
        assert "NaN" not in text(page, "order") + text(page, "between")
        assert "nan" not in page.locator("body").inner_text().lower()
        assert cell(page, 3, 0).inner_text() == cell(page, 3, 0, side="after").inner_text() == "–"
        point(page, 3, 0)
        assert set(results(page)) == {"mean", "var"}


def test_of_a_large_array_the_page_holds_the_corner_and_says_so(browser: Browser, tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(3, 2, (40, 20, 30, 30)).astype(np.float32)
    e = explain(x)
    k = e.excerpt.values.shape[0]
    corner = x[:k, :k, :k, :k]
    assert not e.excerpt.whole
    assert e.excerpt.values.tolist() == corner.tolist()
    with opened(browser, e.to_html(), tmp_path) as page:
        assert f"This page holds the corner {corner.shape} of your array {x.shape}" in text(page, "cut")
        assert np.allclose(seen(page)[1], bn.batch_norm(corner)[0], atol=2.5e-7)
        row = rows_of(page)[0]
        assert float(row[1]) == pytest.approx(x[:, 0].mean(), rel=1e-3)  # the table is the whole array's
        assert "The page draws a corner" in text(page, "cut")


AWKWARD = {
    "constant": np.full((4, 3), 7.0),
    "nan and inf": np.array([[1.0, np.nan], [2.0, np.inf], [3.0, 1.0]]),
    "all nan": np.full((3, 2), np.nan),
    "one row": np.ones((1, 3)),
    "one value": np.ones((1, 1)),
    "huge and tiny": np.array([[1e200, 1e-200], [-1e200, 3e-200]]),
    "tiny": np.array([[1e-30], [2e-30]]),
    "ones": np.arange(5.0)[:, None, None],
}


@pytest.mark.parametrize("name", rest_slow([*AWKWARD], 0, 1, 5))
def test_awkward_data_breaks_nothing(browser: Browser, tmp_path: Path, name: str) -> None:
    x = AWKWARD[name]
    with opened(browser, explain(x).to_html(), tmp_path) as page:
        for kind in ("1d", "layer", "group", "instance", "axis"):
            take(page, kind)
            show(page, "yours")
        assert page.locator("#before .cell").count() == x.size
        y = seen(page)[1]
        with np.errstate(all="ignore"):
            expected = bn.normalize(x, bn.moments(x)).reshape(y.shape)
        assert np.allclose(y, expected, equal_nan=True, atol=1e-12)


def test_suspicions_stand_in_the_table(browser: Browser, tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(8, 3))
    x[:, 1] = 4.0
    with opened(
        browser,
        explain(x, names=["a", "b", "c"], source="t.csv", remarks=["two rows were empty"]).to_html(),
        tmp_path,
    ) as page:
        rows = rows_of(page)
        assert [r[0] for r in rows] == ["a", "b", "c"]
        assert [r[-1] for r in rows] == ["", "constant: the output is the bias", ""]
        assert "t.csv" in text(page, "whole-source")
        assert page.locator("#remarks").inner_text() == "Note: two rows were empty."
        assert page.locator("#tensor option").first.inner_text() == "t.csv"


def test_the_page_holds_a_copy(browser: Browser, tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(6, 2))
    e = explain(x)
    before = e.to_html()
    x[:] = 0
    assert e.to_html() == before


# The parts


def test_numbers_are_written_as_in_the_terminal(browser: Browser) -> None:
    rng = np.random.default_rng(0)
    values = [*(rng.normal(size=300) * 10.0 ** rng.integers(-12, 13, 300)), *rng.integers(-500, 500, 100) / 64.0]
    values += [
        0.0,
        -0.0,
        1e-5,
        0.03125,
        -0.03125,
        0.00005,
        123456.5,
        1e7,
        9999999.0,
        1e22,
        -1e300,
        5e-324,
        2.5,
        99999.5,
    ]
    page = parts_in(browser, "numbers")
    shown = page.evaluate(
        "(values) => values.map((v) => [short(v), short(v, 3), normal(v), decimals(v)])", [float(v) for v in values]
    )
    for value, texts in zip(values, shown, strict=True):
        v = float(value)
        assert texts == [digits.short(v), digits.short(v, 3), digits.normal(v), digits.decimals(v)], v
    page.close()


def test_the_data_is_strict_json_and_small() -> None:
    data = contents(explain(np.array([[1.0, np.nan], [np.inf, 2.0]])))
    json.dumps(data, allow_nan=False)
    assert len(explain(EXAMPLE, 2).to_html()) < 100_000
