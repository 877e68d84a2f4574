"""The figures of docs/performance.md, from benchmarks/results.

    python docs/figures/performance.py

It measures nothing: see benchmarks/README.md for how to do that. `python benchmarks/render.py` calls it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from style import BLUE, GREEN, GREY, INK, ORANGE, PALE, plt, save

from batchnorm.bench.document import read
from batchnorm.bench.ratios import by_shape, seconds

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

from record import RESULTS, Document, Row, shape  # noqa: E402
from tables import KINDS, by_size, mib  # noqa: E402
from tables_layers import KINDS as LAYERS  # noqa: E402
from tables_layers import grouped  # noqa: E402

FLOOR = {"forward": (1, 1.5), "evaluation": (0.985, 1.015), "backward": (1.5, 2.5)}  # in copies


def lines_of(ax: Axes, rows: list[Row], names: bool) -> None:
    """A line for each row; its shape, and its layout by colour."""
    for y, row in enumerate(rows):
        if y % 2 == 0:
            ax.axhspan(y - 0.5, y + 0.5, color=PALE, linewidth=0, zorder=0)
        if names:
            word = "" if row["layout"] == "contiguous" else ", channels-last"
            label = f"{shape(row['shape'])}{word}"
            ax.text(-0.03, y, label, transform=ax.get_yaxis_transform(), ha="right", va="center", fontsize=8.5)
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.yaxis.set_major_locator(NullLocator())
    ax.spines["left"].set_visible(False)


def log_axis(ax: Axes, ticks: tuple[float, ...]) -> None:
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(FixedLocator(ticks))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.xaxis.set_minor_locator(NullLocator())


def draw_functions(result: Document) -> None:
    rows = [row for row in by_size(result["rows"]) if mib(row) >= 1]
    figure, panels = plt.subplots(1, 3, figsize=(9.2, 3.9), sharex=True, sharey=True)
    for ax, kind in zip(panels, KINDS, strict=True):
        lines_of(ax, rows, names=ax is panels[0])
        for y, row in enumerate(rows):
            t = row["median_s"]
            ours, theirs = t[kind] / t["copy"], t[f"{kind} torch"] / t["copy"]
            ax.plot([ours, theirs], [y, y], color=GREY, linewidth=1)
            ax.plot(theirs, y, "o", color="white", markeredgecolor=ORANGE, markersize=5.5)
            ax.plot(ours, y, "o", color=BLUE, markersize=5.5)
        ax.axvspan(*FLOOR[kind], color=GREEN, alpha=0.3, linewidth=1.5)
        ax.set_title(kind, loc="left", fontsize=10)
        log_axis(ax, (0.5, 1, 2, 5, 10, 20))
    panels[1].set_xlabel("time, in copies of the tensor")
    key = [
        plt.Line2D([], [], marker="o", color="none", markerfacecolor=BLUE, markeredgecolor=BLUE, label="batchnorm"),
        plt.Line2D([], [], marker="o", color="none", markerfacecolor="white", markeredgecolor=ORANGE, label="PyTorch"),
        Patch(color=GREEN, alpha=0.3, linewidth=0, label="the floor, by the passes counted above"),
    ]
    figure.legend(handles=key, frameon=False, ncols=3, loc="lower left", bbox_to_anchor=(-0.09, -0.1))
    figure.subplots_adjust(wspace=0.08)
    save(figure, "performance-functions")


def draw_layers(result: Document) -> None:
    cases = grouped(by_size(result["rows"]))
    figure, panels = plt.subplots(1, 3, figsize=(9.2, 4.4), sharex=True, sharey=True)
    ways = {"module": (BLUE, 0.17, "our module"), "accelerated": (ORANGE, -0.17, "PyTorch's, accelerated")}
    for ax, kind in zip(panels, LAYERS, strict=True):
        lines_of(ax, [case[kind] for case in cases], names=ax is panels[0])
        for y, case in enumerate(cases):
            for way, (colour, shift, _) in ways.items():
                low, high = case[kind]["quartiles"][way]
                ax.plot([low, high], [y + shift, y + shift], color=colour, linewidth=1.4)
                ax.plot(case[kind]["times_faster"][way], y + shift, "o", color=colour, markersize=4.5)
        ax.axvline(1, color=INK, linewidth=1, linestyle=(0, (4, 3)))
        ax.set_title(kind, loc="left", fontsize=10)
        log_axis(ax, (0.7, 1, 2, 3, 5, 10))
    panels[1].set_xlabel("times faster than PyTorch's own layers")
    key = [plt.Line2D([], [], marker="o", color=colour, label=label) for colour, _, label in ways.values()]
    figure.legend(handles=key, frameon=False, ncols=2, loc="lower left", bbox_to_anchor=(-0.09, -0.05))
    figure.subplots_adjust(wspace=0.08)
    save(figure, "performance-layers")


# --- against size

CONTESTANTS = {  # (name, outputs): colour, line, marker, words
    ("onednn", "fresh"): (GREY, "-", "s", "oneDNN"),
    ("eager", "fresh"): (ORANGE, "-", "o", "PyTorch"),
    ("ours", "reused"): (BLUE, (0, (3, 2)), "", "batchnorm, out="),
    ("ours", "fresh"): (BLUE, "-", "o", "batchnorm"),
}
COLUMNS = {
    "contiguous": "contiguous (N, 64, 16, 16)",
    "channels_last": "channels-last (N, 64, 16, 16)",
    "table": "table (N, 256)",
}
COPIES = (1, 2, 5, 10, 20, 50, 100)


def column(row: Row) -> str:
    return "table" if len(row["shape"]) == 2 else str(row["layout"])


def copy_seconds(row: Row) -> float:
    """The faster of the two copies, into memory that exists."""
    return min(s for name in ("memcpy", "streaming copy") if (s := seconds(row, name, "reused")) is not None)


def draw_sizes(result: Document) -> None:
    figure, panels = plt.subplots(2, 3, figsize=(9.2, 5.6), sharex=True, sharey="row")
    for axes, operation in zip(panels, ("forward", "backward"), strict=True):
        for ax, (key, title) in zip(axes, COLUMNS.items(), strict=True):
            rows = [r for r in result["rows"] if (column(r), r["operation"]) == (key, operation)]
            curves(ax, sorted(rows, key=mib), operation)
            if operation == "forward":
                ax.set_title(title, loc="left", fontsize=10)
        axes[0].set_ylabel(f"{operation}, in copies")
    for ax in panels[1]:
        ax.xaxis.set_major_locator(FixedLocator([2**-4, 1, 16, 200]))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: "1/16" if x < 1 else f"{x:g}"))
        ax.xaxis.set_minor_locator(NullLocator())
    panels[1][1].set_xlabel("size of the tensor, MiB")
    figure.align_ylabels(panels[:, 0])
    key = [
        plt.Line2D([], [], label=words, **look(name, colour, line, marker))
        for (name, _), (colour, line, marker, words) in reversed(CONTESTANTS.items())
    ]
    key.append(Patch(color=GREEN, alpha=0.3, linewidth=0, label="the floor"))
    figure.legend(handles=key, frameon=False, ncols=5, loc="lower center", bbox_to_anchor=(0.5, -0.05))
    figure.subplots_adjust(wspace=0.08, hspace=0.12)
    save(figure, "performance-sizes")


def look(name: str, colour: str, line: object, marker: str) -> dict[str, object]:
    """Of a curve; hollow for PyTorch, so that it can be told from ours without colours, too."""
    face = "white" if name == "eager" else colour
    return {
        "color": colour, "linestyle": line, "marker": marker, "markersize": 5, "markerfacecolor": face,
        "linewidth": 1.4,
    }  # fmt: skip


def curves(ax: Axes, rows: list[Row], operation: str) -> None:
    """A curve for each contestant that was there."""
    ax.axhspan(*FLOOR[operation], color=GREEN, alpha=0.3, linewidth=0)
    for (name, outputs), (colour, line, marker, _) in CONTESTANTS.items():
        points = [(mib(r), s / copy_seconds(r)) for r in rows if (s := seconds(r, name, outputs)) is not None]
        if points:
            ax.plot(*zip(*points, strict=True), **look(name, colour, line, marker))
    ax.set_xscale("log")
    ax.set_xlim(2**-4 / 1.4, 200 * 1.4)
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(FixedLocator(COPIES))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.grid(axis="y", color=PALE, linewidth=1)
    ax.set_axisbelow(True)


def main() -> None:
    core, layers, sizes = (RESULTS / f"{name}.json" for name in ("core", "torch_layers", "sizes"))
    if core.exists():
        draw_functions(by_shape(read(core)))
    if layers.exists():
        draw_layers(json.loads(layers.read_text()))
    if sizes.exists():
        draw_sizes(read(sizes))


if __name__ == "__main__":
    main()
