"""Panels as pictures: SVG that comes out the same every time, told apart without colors too."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

Panel = dict[str, Any]  # as it stands in the JSON file

WIDTH, HEIGHT = 4.4, 3.5  # inches
ROW = 3  # panels beside each other, where several are in one picture
INK, GRAY = "#22303c", "#8795a1"
LOOK: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # matplotlib brings it
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": GRAY,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "xtick.color": INK,
    "ytick.color": INK,
    "svg.fonttype": "none",  # text stays text: small, and it can be searched
    "svg.hashsalt": "batchnorm",  # else every run names its clip paths anew
}


class Style(NamedTuple):
    """How one curve looks."""

    color: str
    line: str
    marker: str


#: Okabe and Ito's colors, which people with any color vision can tell apart; lines and markers differ as well.
STYLES = {
    "with": Style("#0072B2", "-", "o"),
    "without": Style("#D55E00", "--", "s"),
    "other": Style("#009E73", "-.", "^"),
    "fourth": Style("#CC79A7", ":", "D"),
    "fifth": Style("#555555", (0, (5, 1, 1, 1, 1, 1)), "v"),  # type: ignore[arg-type]  # dashes are a tuple
    "percentile15": Style("#0072B2", ":", ""),
    "percentile50": Style("#0072B2", "-", ""),
    "percentile85": Style("#D55E00", "--", ""),
}


def svg(panels: Sequence[Panel]) -> str:
    """Return one picture of the panels, in rows of three."""
    columns = min(len(panels), ROW)
    rows = -(-len(panels) // ROW)
    with matplotlib.rc_context(LOOK), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # text stays text: the browser's fonts have it
        figure = Figure(figsize=(WIDTH * columns, HEIGHT * rows), layout="constrained", facecolor="white")
        for i, panel in enumerate(panels):
            _draw(figure.add_subplot(rows, columns, i + 1), panel)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return text.getvalue().replace("'DejaVu Sans'", "'DejaVu Sans', Verdana, sans-serif")


def _draw(axes: Axes, panel: Panel) -> None:
    category = panel["x_scale"] == "category"
    many = len(panel["series"])
    for i, series in enumerate(panel["series"]):
        shift = 0.12 * (i - (many - 1) / 2) if category else 0.0
        places = [n + shift for n in range(len(series["x"]))] if category else series["x"]
        if panel["x_scale"] == "log2":
            places = [x * 2 ** (0.06 * (i - (many - 1) / 2)) for x in places]  # beside each other, not upon
        _curve(axes, places, series, band=panel["band"], joined=not category)
    _axis(axes, panel)
    axes.set_title(panel["title"])
    axes.set_xlabel(panel["x_label"])
    axes.set_ylabel(panel["y_label"])
    axes.grid(axis="y", color="#e3e8ec", linewidth=0.8)
    axes.set_axisbelow(True)
    short = sum(len(series["name"]) for series in panel["series"]) <= 30  # fits in one row of the legend
    axes.legend(
        loc="upper center", bbox_to_anchor=(0.5, -0.32 if category else -0.2), ncols=min(many, 3 if short else 2),
        frameon=False, fontsize=8.5, handlelength=2.6,
    )  # fmt: skip


def _curve(axes: Axes, places: Sequence[float], series: dict[str, Any], *, band: bool, joined: bool) -> None:
    style = STYLES[series["style"]]
    points = [
        point for point in zip(places, series["mean"], series["low"], series["high"], strict=True) if None not in point
    ]
    x, mean, low, high = ([p[i] for p in points] for i in range(4))
    line = style.line if joined else "none"
    if band:
        axes.fill_between(x, low, high, color=style.color, alpha=0.18, linewidth=0)
        marker = style.marker if len(x) <= 40 else ""
        axes.plot(x, mean, color=style.color, linestyle=line, marker=marker, markersize=3.2, label=series["name"])
        return
    down = [max(m - v, 0.0) for m, v in zip(mean, low, strict=True)]  # a mean is rounded: it may pass the ends
    up = [max(v - m, 0.0) for m, v in zip(mean, high, strict=True)]
    axes.errorbar(
        x, mean, yerr=[down, up], color=style.color, linestyle=line, marker=style.marker, markersize=4.5, capsize=3,
        elinewidth=1.1, label=series["name"],
    )  # fmt: skip


def _axis(axes: Axes, panel: Panel) -> None:
    places = panel["series"][0]["x"]
    if panel["x_scale"] == "category":
        labels = [str(place).replace(" ", "\n", 1) for place in places]
        axes.xaxis.set_major_locator(FixedLocator(list(range(len(places)))))
        axes.xaxis.set_major_formatter(FixedFormatter(labels))
        axes.set_xlim(-0.5, len(places) - 0.5)
    elif panel["x_scale"] == "log":
        axes.set_xscale("log")
    elif panel["x_scale"] == "log2":
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_locator(FixedLocator(places))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FixedFormatter([str(place) for place in places]))
    axes.set_yscale(panel["y_scale"])
    if panel["y_range"]:
        low, high = panel["y_range"]
        axes.set_ylim(low - 0.02 * (high - low), high + 0.02 * (high - low))
