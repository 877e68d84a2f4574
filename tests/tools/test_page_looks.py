"""The page of `explain` for everybody: keys, touch, languages, widths, colors; names that try to break it."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from pages import MODES, PARTS, cell, go, opened, point, results, seen, show, take, text
from pairs import rest_slow
from playwright.sync_api import Browser, Page

from batchnorm.tools.explain import EXAMPLE, explain
from batchnorm.tools.explain.page.assembling import dictionary
from batchnorm.tools.explain.suspicions import TAGS as KINDS
from batchnorm.tools.text.words import PAGE


def test_a_kind_that_does_not_take_the_tensor_shows_one_it_takes(example: Page) -> None:
    take(example, "3d")
    assert text(example, "moved") == (
        "BatchNorm3d takes five axes (N, C, D, H, W), so the page shows two small volumes instead."
    )
    assert seen(example)[0].ndim == 5
    take(example, "2d")
    assert seen(example)[0].ndim == 4
    take(example, "group")
    assert text(example, "moved") == ""  # group norm takes images
    assert text(example, "code") == "torch.nn.GroupNorm(1, 1)(x)" or "GroupNorm" in text(example, "code")


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
    example.mouse.move(0, 0)  # away from the cells, which choose themselves below it
    reached = []
    for _ in range(40):
        example.keyboard.press("Tab")
        reached.append(example.evaluate("document.activeElement.id || document.activeElement.dataset.i || ''"))
    wanted = {"language", "tensor", "blocks", "batch", "gamma", "beta", "eps", "reset"}
    assert wanted <= set(reached)
    assert "0" in reached  # one cell of a drawing; arrows do the rest


def test_a_keyboard_user_sees_the_focus(example: Page) -> None:
    example.keyboard.press("Tab")
    width = example.evaluate("getComputedStyle(document.activeElement).outlineWidth")
    assert width == "3px"


def test_what_is_lit_is_told_by_more_than_color(example: Page) -> None:
    on, off = cell(example, 1, 0), cell(example, 1, 1)
    look = "(e) => { const s = getComputedStyle(e); return [s.fontWeight, s.borderTopColor]; }"
    weight, border = on.evaluate(look)
    assert int(weight) >= 600
    assert [weight, border] != off.evaluate(look)
    assert "averaged together" in (on.get_attribute("aria-label") or "")
    assert "averaged together" not in (off.get_attribute("aria-label") or "")


@pytest.mark.parametrize(("locale", "title", "language"), rest_slow([
    ("en-GB", "Batch normalization, number by number", "en"),
    ("de-DE", "Batch normalization, number by number", "en"),
    ("zh-CN", "批归一化：逐个数字看", "zh-CN"),
    ("zh-TW", "批归一化：逐个数字看", "zh-CN"),
], 1, 3))  # fmt: skip
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


def test_every_word_that_the_page_asks_for_is_in_the_dictionary() -> None:
    known = dictionary()["en"]
    asked = set(re.findall(r'data-word="([\w-]+)"', (PARTS / "page.html").read_text("utf-8")))
    for script in PARTS.glob("*.js"):
        asked |= set(re.findall(r'fill\("([\w-]+)"', script.read_text("utf-8")))
    assert len(asked) > 60
    assert asked <= set(known)
    built = re.compile(r"(kind|axes|order|distances|between|alike|scale|compare|do_not_compare)_|float|bfloat")
    words = set(re.findall(r"[\w-]+", (PARTS / "page.html").read_text("utf-8")))
    words |= {word for script in PARTS.glob("*.js") for word in re.findall(r"[\w-]+", script.read_text("utf-8"))}
    idle = {key for key in PAGE if not built.match(key) and key not in words}
    named_by_the_data = {*KINDS, "overflow", "outlier", "sequences", "images", "volumes"}
    assert idle == named_by_the_data - words


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


@pytest.mark.parametrize(
    ("width", "scheme"), rest_slow([(320, "light"), (390, "dark"), (768, "light"), (1440, "dark")], 0, 1), ids=str
)
def test_nothing_overflows_the_screen(browser: Browser, tmp_path: Path, width: int, scheme: str) -> None:
    names = ["a name that is longer than any column has room for", "b", "c"]
    x = np.random.default_rng(0).normal(size=(9, 3))
    html = explain(x, names=names).to_html()
    with opened(browser, html, tmp_path, viewport={"width": width, "height": 800}, color_scheme=scheme) as page:
        for tensor in ("yours", "table", "sequences", "images", "volumes"):
            show(page, tensor)
            assert page.evaluate("document.documentElement.scrollWidth") <= width, tensor
            if tensor == "table" and width >= 390:  # the worked example is seen whole
                for place in ("before", "after"):
                    assert page.locator(f"#{place}").evaluate("e => e.scrollWidth <= e.clientWidth"), place
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(18, 23, 28)"
        assert dark == (scheme == "dark")


# Every color as the browser resolves it, drawn over the nearest background; WCAG's relative luminance and contrast.
CONTRASTS = """() => {
  const context = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
  const drawn = (...colors) => {
    context.clearRect(0, 0, 1, 1);
    for (const color of colors) { context.fillStyle = color; context.fillRect(0, 0, 1, 1); }
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


def test_names_cannot_break_out_of_the_page(browser: Browser, tmp_path: Path) -> None:
    nasty = [
        "</script><script>document.title='broken'</script>",
        "<img src=x onerror=\"document.title='broken'\">",
        "{{data}}",
    ]
    with opened(browser, explain(np.eye(3), names=nasty, source=nasty[1]).to_html(), tmp_path) as page:
        assert page.title() == "batchnorm explain"
        assert page.locator("#channels td").first.inner_text() == nasty[0]
        assert page.locator("img").count() == 0


def test_a_notebook_shows_it_in_a_frame(browser: Browser, tmp_path: Path) -> None:
    html = f"<!doctype html><title>notebook</title><p>above</p>{explain(np.eye(3))._repr_html_()}"
    with opened(browser, html, tmp_path) as page:
        frame = page.frame_locator("iframe")
        frame.locator("#before .cell").nth(4).hover()
        assert frame.locator("#before .cell.lit").count() == 3
        assert frame.locator("#formulas .result").first.inner_text() == "0.33333"
