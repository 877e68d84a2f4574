"""The page of `explain`, driven in a browser: its numbers are the library's, in every mode, language and width."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from chromium import Watched, chromium
from playwright.sync_api import Browser, Locator, Page

import batchnorm as bn
from batchnorm.tools.explain import EXAMPLE, digits, explain
from batchnorm.tools.explain.page import assembling
from batchnorm.tools.explain.page.contents import contents

PARTS = Path(assembling.__file__).parent
F = torch.nn.functional
Open = Callable[..., Page]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@contextmanager
def opened(browser: Browser, html: str, place: Path, **context: Any) -> Iterator[Page]:
    """The page from a file; whatever it complains about or loads fails the test."""
    context.setdefault("locale", "en-US")
    inside = browser.new_context(**context)
    watched = Watched(inside.new_page())
    file = place / "page.html"
    file.write_text(html, encoding="utf-8")
    watched.page.goto(file.as_uri())
    yield watched.page
    watched.assert_quiet(file.as_uri())
    inside.close()


@pytest.fixture
def example(browser: Browser, tmp_path: Path) -> Iterator[Page]:
    with opened(browser, explain(EXAMPLE, 2).to_html(), tmp_path) as page:
        yield page


HELD = "(() => { const {view, result} = batchnorm.numbers(); return [view.shape, [...view.values], [...result.y]]; })()"


# What a reader does


def take(page: Page, kind: str) -> None:
    page.locator(f"input[name=kind][value='{kind}']").check()


def show(page: Page, tensor: str) -> None:
    page.locator("#tensor").select_option(tensor)


def slide(page: Page, name: str, value: float) -> None:
    page.locator(f"#{name}").fill(str(value))


def point(page: Page, *index: int, side: str = "before") -> None:
    cell(page, *index, side=side).hover()


def cell(page: Page, *index: int, side: str = "before") -> Locator:
    name = "x" if side == "before" else "y"
    return page.locator(f"#{side} .cell[aria-label^='{name}[{', '.join(map(str, index))}] = ']")


def text(page: Page, name: str) -> str:
    return page.locator(f"#{name}").inner_text()


def results(page: Page) -> dict[str, str]:
    """The right ends of the formulas."""
    rows = page.locator("#formulas .formula")
    return {row.get_attribute("data-name") or "": row.locator(".result").inner_text() for row in rows.all()}


def seen(page: Page) -> tuple[np.ndarray, np.ndarray]:
    """x and y as the page holds them, in the shape in which it sees them."""
    shape, x, y = page.evaluate(HELD)
    return np.array(x, float).reshape(shape), np.array(y, float).reshape(shape)


def lit(page: Page, side: str = "before") -> set[tuple[int, ...]]:
    """The indices of the cells that are lit."""
    labels = [c.get_attribute("aria-label") or "" for c in page.locator(f"#{side} .cell.lit").all()]
    return {tuple(int(i) for i in re.findall(r"\d+", label[label.index("[") : label.index("]")])) for label in labels}


# The library on the same numbers


def library(kind: str, x: np.ndarray, *, axis: tuple[int, ...] = (), groups: int = 1, eps: float = 1e-5) -> np.ndarray:
    t = torch.from_numpy(x)
    if kind == "axis":
        return bn.normalize(x, bn.moments(x, axis), axis=axis, eps=eps)  # also where every value is alone
    if kind == "layer":
        return F.layer_norm(t, t.shape[1:], eps=eps).numpy()
    if kind == "group":
        return F.group_norm(t, groups, eps=eps).numpy()
    if kind == "instance":
        flat = t.reshape(*t.shape[:2], -1)
        return F.instance_norm(flat, eps=eps, use_input_stats=True).reshape(t.shape).numpy()
    layer = {"1d": bn.BatchNorm1d, "2d": bn.BatchNorm2d, "3d": bn.BatchNorm3d}[kind](x.shape[1], eps=eps, dtype=x.dtype)
    return layer(x)


def averaged_with(kind: str, shape: tuple[int, ...], index: tuple[int, ...], **how: Any) -> set[tuple[int, ...]]:
    """Every index that is averaged together with ``index``, by each normalization's definition."""
    together = {
        "layer": lambda i: i[0] == index[0],
        "instance": lambda i: i[:2] == index[:2],
        "group": lambda i: (
            i[0] == index[0] and i[1] * how["groups"] // shape[1] == index[1] * how["groups"] // shape[1]
        ),
        "axis": lambda i: all(i[a] == index[a] for a in how["axis"]),
    }.get(kind, lambda i: i[1] == index[1])
    return {i for i in np.ndindex(*shape) if together(i)}


MODES = [
    ("table", "1d", {}),
    ("table", "2d", {}),
    ("table", "axis", {"axis": (0,)}),
    ("table", "axis", {"axis": (0, 2)}),
    ("table", "axis", {"axis": ()}),
    ("table", "layer", {}),
    ("sequences", "1d", {}),
    ("sequences", "layer", {}),
    ("sequences", "group", {"groups": 3}),
    ("sequences", "instance", {}),
    ("sequences", "axis", {"axis": (1, 2)}),
    ("images", "2d", {}),
    ("images", "layer", {}),
    ("images", "group", {"groups": 3}),
    ("images", "group", {"groups": 1}),
    ("images", "instance", {}),
    ("images", "axis", {"axis": (3,)}),
    ("volumes", "3d", {}),
    ("volumes", "group", {"groups": 2}),
    ("volumes", "axis", {"axis": (0, 1, 4)}),
]


def go(page: Page, tensor: str, kind: str, axis: tuple[int, ...] | None = None, groups: int | None = None) -> None:
    show(page, tensor)
    take(page, kind)
    if axis is not None:
        for a in range(page.locator("#axes input").count()):
            page.locator("#axes input").nth(a).set_checked(a in axis)
    if groups is not None:
        page.locator("#blocks").select_option(str(groups))


@pytest.mark.parametrize(("tensor", "kind", "how"), MODES, ids=str)
def test_every_mode_computes_and_lights_what_it_should(example: Page, tensor: str, kind: str, how: Any) -> None:
    go(example, tensor, kind, **how)
    x, y = seen(example)
    assert np.allclose(y, library(kind, x, **how), rtol=1e-11, atol=1e-12)
    drawn = [tuple(json.loads(c)) for c in example.evaluate(INDICES)]
    assert len(drawn) == x.size  # the small tensors are drawn whole
    for index in (drawn[0], drawn[len(drawn) // 2], drawn[-1]):
        point(example, *index)
        together = averaged_with(kind, x.shape, index, **how)
        assert lit(example) == lit(example, "after") == together
        values = np.array([x[i] for i in together])
        shown = results(example)
        assert float(shown["mean"]) == pytest.approx(values.mean(), rel=5.1e-5, abs=1e-15)  # five digits
        assert float(shown["var"]) == pytest.approx(values.var(), rel=5.1e-5, abs=1e-15)
        assert shown["x̂"] == shown["y"] == digits.normal(y[index])
        assert f" {len(values)} value" in text(example, "lit")


INDICES = (
    """[...document.querySelectorAll('#before .cell')].map((c) => c.getAttribute('aria-label').match(/\\[.*\\]/)[0])"""
)


def test_the_worked_example_is_the_start(example: Page) -> None:
    assert example.locator("input[name=kind][value='1d']").is_checked()
    before = [c.inner_text() for c in example.locator("#before .cell").all()]
    after = [c.inner_text() for c in example.locator("#after .cell").all()]
    assert before == [str(k + c) for k in range(1, 6) for c in range(5)]
    assert after == [t for t in ("-1.4142", "-0.7071", "0", "0.7071", "1.4142") for _ in range(5)]
    assert results(example) == {"mean": "3", "var": "2", "x̂": "-1.4142", "y": "-1.4142"}
    assert "biased, 2." in text(example, "divides")
    assert "unbiased 2.5," in text(example, "divides")


def test_what_is_kept_and_lost_is_what_the_explanation_counts(example: Page) -> None:
    e = explain(EXAMPLE, 2)
    b = e.between
    assert f"of {e.inside.pairs // 5} pairs in column 0, none changed sides" in text(example, "order")
    assert f"of {b.pairs} pairs" in text(example, "between")
    assert f"{b.changed} compare differently now ({b.reversed} changed sides, {b.made_equal} became equal" in text(
        example, "between"
    )
    point(example, 4, 2)
    assert "Before, 9 > 5. After, both are 1.4142." in text(example, "between")
    assert len(example.locator("#slopes-inside .slope").all()) == 5


def test_a_negative_weight_turns_the_order_round_and_zero_ends_it(example: Page) -> None:
    slide(example, "gamma", -1)
    assert "of 10 pairs in column 0, 10 changed sides. The weight is negative." in text(example, "order")
    slide(example, "gamma", 0)
    assert "10 became equal" in text(example, "order")


@pytest.mark.parametrize(("gamma", "beta", "eps"), [(2.5, -1.2, 1e-5), (-0.7, 3, 10), (1, 0, 1e-10), (0, 0.4, 1)])
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


# Switches, keys, languages, widths


def test_a_kind_that_does_not_take_the_tensor_shows_one_it_takes(example: Page) -> None:
    take(example, "3d")
    assert text(example, "moved") == ("BatchNorm3d takes five axes (N, C, D, H, W). Shown instead: two small volumes.")
    assert seen(example)[0].ndim == 5
    take(example, "2d")
    assert seen(example)[0].ndim == 4
    take(example, "group")
    assert text(example, "moved") == ""  # group norm takes images
    assert text(example, "code") == "torch.nn.GroupNorm(1, 1)(x)" or "GroupNorm" in text(example, "code")


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


def test_keys_move_the_choice_and_change_the_kind(example: Page) -> None:
    example.locator("#before .cell").first.focus()
    for key, now in (("ArrowRight", 1), ("ArrowDown", 6), ("ArrowDown", 11), ("ArrowLeft", 10), ("ArrowUp", 5)):
        example.keyboard.press(key)
        focused = example.evaluate("Number(document.activeElement.dataset.i)")
        assert focused == example.evaluate("batchnorm.state.chosen") == now
    example.keyboard.press("ArrowLeft")
    assert example.evaluate("batchnorm.state.chosen") == 5  # the edge
    example.locator("input[name=kind][value='1d']").focus()
    example.keyboard.press("ArrowRight")
    assert example.evaluate("batchnorm.state.kind") == "2d"
    example.locator("#gamma").focus()
    example.keyboard.press("ArrowRight")
    assert example.evaluate("batchnorm.state.gamma") == pytest.approx(1.1)


def test_everything_is_reached_by_the_tab_key(example: Page) -> None:
    take(example, "group")
    reached = []
    for _ in range(40):
        example.keyboard.press("Tab")
        reached.append(example.evaluate("document.activeElement.id || document.activeElement.dataset.i || ''"))
    wanted = {"language", "tensor", "blocks", "batch", "gamma", "beta", "eps", "reset"}
    assert wanted <= set(reached)
    assert {"0"} <= set(reached)  # one cell of a drawing; arrows do the rest


def test_a_keyboard_user_sees_the_focus(example: Page) -> None:
    example.keyboard.press("Tab")
    width = example.evaluate("getComputedStyle(document.activeElement).outlineWidth")
    assert width == "3px"


def test_what_is_lit_is_told_by_more_than_colour(example: Page) -> None:
    on, off = cell(example, 1, 0), cell(example, 1, 1)
    look = "(e) => { const s = getComputedStyle(e); return [s.fontWeight, s.borderTopColor]; }"
    weight, border = on.evaluate(look)
    assert int(weight) >= 600
    assert [weight, border] != off.evaluate(look)
    assert "averaged together" in (on.get_attribute("aria-label") or "")
    assert "averaged together" not in (off.get_attribute("aria-label") or "")


@pytest.mark.parametrize(("locale", "title", "language"), [
    ("en-GB", "Batch normalization, number by number", "en"),
    ("de-DE", "Batch normalization, number by number", "en"),
    ("zh-CN", "批归一化：逐个数字看", "zh-CN"),
    ("zh-TW", "批归一化：逐个数字看", "zh-CN"),
])  # fmt: skip
def test_the_page_speaks_the_readers_language(
    browser: Browser, tmp_path: Path, locale: str, title: str, language: str
) -> None:
    with opened(browser, explain(EXAMPLE, 2).to_html(), tmp_path, locale=locale) as page:
        assert page.locator("h1").inner_text() == title
        assert page.evaluate("document.documentElement.lang") == language
        page.locator("#language").click()
        other = "en" if language == "zh-CN" else "zh-CN"
        assert page.evaluate("document.documentElement.lang") == other
        assert page.locator("h1").inner_text() != title
        point(page, 2, 3)
        assert results(page)["mean"] == "6"


def parts_in(browser: Browser, *names: str) -> Page:
    """An empty page in which parts of ours have been read."""
    page = browser.new_page()
    page.add_script_tag(content="\n".join((PARTS / f"{name}.js").read_text("utf-8") for name in names))
    return page


def test_both_languages_say_everything(browser: Browser) -> None:
    page = parts_in(browser, "words")
    words = page.evaluate("WORDS")
    assert list(words["en"]) == list(words["zh"])
    for key, english in words["en"].items():
        chinese = words["zh"][key]
        assert sorted(set(re.findall(r"\{\w+\}", english))) == sorted(set(re.findall(r"\{\w+\}", chinese))), key
        assert not re.search(r"[\u4e00-\u9fff][,:;]", chinese), key  # full-width signs between characters
    used = set(re.findall(r'data-word="([\w-]+)"', (PARTS / "page.html").read_text("utf-8")))
    assert used <= set(words["en"])
    page.close()


def test_the_whole_page_is_in_the_language(browser: Browser, tmp_path: Path) -> None:
    """In Chinese no sentence of the page stays English, whatever is shown."""
    x = np.ones((6, 3))
    x[0, 1], x[:, 2] = np.nan, np.arange(6)
    english = re.compile(r"\b(the|of|and|values|column|batch(es)?|before|after|with)\b", re.IGNORECASE)
    with opened(browser, explain(x).to_html(), tmp_path, locale="zh-CN") as page:
        for tensor, kind, how in [("yours", "1d", {}), *MODES]:
            go(page, tensor, kind, **how)
            shown = page.locator("body").inner_text()
            code = text(page, "code")
            assert not english.search(shown.replace(code, "")), (tensor, kind)


@pytest.mark.parametrize(("width", "scheme"), [(320, "light"), (390, "dark"), (768, "light"), (1440, "dark")], ids=str)
def test_nothing_overflows_the_screen(browser: Browser, tmp_path: Path, width: int, scheme: str) -> None:
    names = ["a name that is longer than any column has room for", "b", "c"]
    x = np.random.default_rng(0).normal(size=(9, 3))
    html = explain(x, names=names).to_html()
    with opened(browser, html, tmp_path, viewport={"width": width, "height": 800}, color_scheme=scheme) as page:
        for tensor in ("yours", "table", "sequences", "images", "volumes"):
            show(page, tensor)
            assert page.evaluate("document.documentElement.scrollWidth") <= width, tensor
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(18, 23, 28)"
        assert dark == (scheme == "dark")


# Every colour as the browser resolves it, drawn over the nearest background; WCAG's relative luminance and contrast.
CONTRASTS = """() => {
  const context = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
  const drawn = (...colours) => {
    context.clearRect(0, 0, 1, 1);
    for (const colour of colours) { context.fillStyle = colour; context.fillRect(0, 0, 1, 1); }
    return [...context.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const light = (rgb) => rgb.map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (e) => (e === null ? [] : [...behind(e.parentElement), getComputedStyle(e).backgroundColor]);
  const own = (e) => [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
  return [...document.querySelectorAll('body *')].filter((e) => own(e) && e.getClientRects().length).map((e) => {
    const style = getComputedStyle(e), ground = behind(e);
    const [a, b] = [drawn(...ground), drawn(...ground, e.ownerSVGElement ? style.fill : style.color)].map(light);
    const what = `${e.tagName}.${e.getAttribute('class')} ${e.textContent.slice(0, 30)}`;
    return [what, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)];
  });
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_stands_out(browser: Browser, tmp_path: Path, scheme: str) -> None:
    """The contrast that WCAG 2 asks of text, 4.5, wherever text stands."""
    with opened(browser, explain(EXAMPLE, 2).to_html(), tmp_path, color_scheme=scheme) as page:
        for tensor in ("table", "images"):
            show(page, tensor)
            found = page.evaluate(CONTRASTS)
            assert len(found) > 100
            assert not [(what, round(contrast, 2)) for what, contrast in found if contrast < 4.5]


def test_a_touch_chooses(browser: Browser, tmp_path: Path) -> None:
    with opened(browser, explain(EXAMPLE, 2).to_html(), tmp_path, has_touch=True, is_mobile=True) as page:
        cell(page, 3, 2).tap()
        assert results(page)["mean"] == "5"


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


@pytest.mark.parametrize("name", OWN)
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
        table = [row.locator("td").all_inner_texts() for row in page.locator("#channels tr").all()[1:]]
        for row, told in zip(table, e.channels.rows(), strict=True):
            for shown, key in zip(
                row[1:5] + row[6:8], ("mean", "std", "minimum", "maximum", "mean_after", "std_after"), strict=True
            ):
                assert float(shown) == pytest.approx(told[key], rel=1e-3, abs=6e-5)


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
        row = page.locator("#channels tr").nth(1).locator("td").all_inner_texts()
        assert float(row[1]) == pytest.approx(x[:, 0].mean(), rel=1e-3)  # the table is the whole array's
        assert "Drawn is a corner" in text(page, "cut")


@pytest.mark.parametrize(
    "x",
    [
        np.full((4, 3), 7.0),
        np.array([[1.0, np.nan], [2.0, np.inf], [3.0, 1.0]]),
        np.full((3, 2), np.nan),
        np.ones((1, 3)),
        np.ones((1, 1)),
        np.array([[1e200, 1e-200], [-1e200, 3e-200]]),
        np.array([[1e-30], [2e-30]]),
        np.arange(5.0)[:, None, None],
    ],
    ids=["constant", "nan and inf", "all nan", "one row", "one value", "huge and tiny", "tiny", "ones"],
)
def test_awkward_data_breaks_nothing(browser: Browser, tmp_path: Path, x: np.ndarray) -> None:
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
        rows = [row.locator("td").all_inner_texts() for row in page.locator("#channels tr").all()[1:]]
        assert [r[0] for r in rows] == ["0 a", "1 b", "2 c"]
        assert [r[-1] for r in rows] == ["", "constant: the output is the bias", ""]
        assert "t.csv" in text(page, "whole-source")
        assert page.locator("#remarks").inner_text() == "two rows were empty"
        assert page.locator("#tensor option").first.inner_text() == "t.csv"


def test_names_cannot_break_out_of_the_page(browser: Browser, tmp_path: Path) -> None:
    nasty = [
        "</script><script>document.title='broken'</script>",
        "<img src=x onerror=\"document.title='broken'\">",
        "{{data}}",
    ]
    with opened(browser, explain(np.eye(3), names=nasty, source=nasty[1]).to_html(), tmp_path) as page:
        assert page.title() == "batchnorm explain"
        assert page.locator("#channels td").first.inner_text() == f"0 {nasty[0]}"
        assert page.locator("img").count() == 0


def test_the_page_holds_a_copy(browser: Browser, tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(6, 2))
    e = explain(x)
    before = e.to_html()
    x[:] = 0
    assert e.to_html() == before


def test_a_notebook_shows_it_in_a_frame(browser: Browser, tmp_path: Path) -> None:
    html = f"<!doctype html><title>notebook</title><p>above</p>{explain(np.eye(3))._repr_html_()}"
    with opened(browser, html, tmp_path) as page:
        frame = page.frame_locator("iframe")
        frame.locator("#before .cell").nth(4).hover()
        assert frame.locator("#before .cell.lit").count() == 3
        assert frame.locator("#formulas .result").first.inner_text() == "0.33333"


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
