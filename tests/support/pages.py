"""The page of `explain` as its tests use it: opened in a browser, read and played with, and what the library says."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from chromium import Watched
from playwright.sync_api import Browser, Locator, Page

import batchnorm as bn
from batchnorm.tools.explain.page import assembling

PARTS = Path(assembling.__file__).parent
F = torch.nn.functional


@contextmanager
def opened(browser: Browser, html: str, place: Path, **context: Any) -> Iterator[Page]:
    """The page from a file; whatever it complains about or loads fails the test.

    A context of its own is a process of its own, so the usual one is shared: a page keeps nothing from the one before.
    """
    watched = Watched(browser.new_context(**{"locale": "en-US"} | context).new_page()) if context else _usual(browser)
    file = place / "page.html"
    file.write_text(html, encoding="utf-8")
    watched.page.goto(file.as_uri())
    yield watched.page
    watched.assert_quiet(file.as_uri())
    if context:
        watched.page.context.close()


@functools.cache
def _usual_page(browser: Browser) -> Watched:
    return Watched(browser.new_context(locale="en-US").new_page())


def _usual(browser: Browser) -> Watched:
    """Empty, the mouse in the corner, nothing heard yet."""
    watched = _usual_page(browser)
    watched.page.goto("about:blank")
    watched.page.mouse.move(0, 0)
    watched.complaints.clear()
    watched.requests.clear()
    return watched


def parts_in(browser: Browser, *names: str) -> Page:
    """An empty page in which parts of ours have been read."""
    page = browser.new_page()
    page.add_script_tag(content="\n".join((PARTS / f"{name}.js").read_text("utf-8") for name in names))
    return page


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
    each = "rows => rows.map(r => [r.dataset.name, r.querySelector('.result').innerText])"
    return dict(page.locator("#formulas .formula").evaluate_all(each))


def seen(page: Page) -> tuple[np.ndarray, np.ndarray]:
    """x and y as the page holds them, in the shape in which it sees them."""
    shape, x, y = page.evaluate(HELD)
    return np.array(x, float).reshape(shape), np.array(y, float).reshape(shape)


def lit(page: Page, side: str = "before") -> set[tuple[int, ...]]:
    """The indices of the cells that are lit."""
    return set(indices(page, f"#{side} .cell.lit"))


def drawn(page: Page) -> list[tuple[int, ...]]:
    """The indices of all cells before normalization, in their order on the page."""
    return indices(page, "#before .cell")


def indices(page: Page, cells: str) -> list[tuple[int, ...]]:
    """What the labels of cells say where they stand, asked for in one go."""
    labels = page.locator(cells).evaluate_all("cells => cells.map(c => c.getAttribute('aria-label'))")
    return [tuple(map(int, re.findall(r"\d+", label[label.index("[") : label.index("]")]))) for label in labels]


def rows_of(page: Page) -> list[list[str]]:
    """The table of channels, without its head."""
    each = "rows => rows.slice(1).map(r => [...r.querySelectorAll('td')].map(d => d.innerText))"
    return page.locator("#channels tr").evaluate_all(each)


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
