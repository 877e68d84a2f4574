"""What docs/performance.md shows of benchmarks/results: two figures, and the tables between its marks.

    python docs/figures/performance.py

It measures nothing: see benchmarks/README.md for how to do that.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from style import BLUE, GREEN, GREY, INK, ORANGE, PALE, plt, save

from batchnorm.bench.document import read
from batchnorm.bench.ratios import by_shape

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "performance.md"
KINDS = ("forward", "evaluation", "backward")
LAYERS = ("batch norm", "+ ReLU", "+ add + ReLU")
LAYOUTS = ("contiguous", "channels_last")
FLOOR = {"forward": (1, 1.5), "evaluation": (0.985, 1.015), "backward": (1.5, 2.5)}  # in copies
REGIMES = (("16 MiB and more", 16.0, math.inf), ("1 to 16 MiB", 1.0, 16.0), ("below 1 MiB", 0.0, 1.0))

Row = dict[str, Any]


def mib(row: Row) -> float:
    """Size of one float32 tensor of the row."""
    return math.prod(row["shape"]) * 4 / 2**20


def shape(row: Row) -> str:
    return "×".join(map(str, row["shape"]))


def layout(row: Row) -> str:
    return row["layout"].replace("_", "-")


def by_size(rows: list[Row]) -> list[Row]:
    """Largest first; shapes of one size stay together."""
    return sorted(rows, key=lambda row: (-mib(row), row["shape"], row["layout"] != "contiguous"))


# --- text between marks


def markdown(head: list[str], rows: list[list[str]], words: int) -> str:
    """A table whose first `words` columns are texts and the others numbers."""
    rule = ["---"] * words + ["---:"] * (len(head) - words)
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, rule, *rows))


def machine(result: dict[str, Any]) -> str:
    return "{cpu}, {threads} threads, {kernels} kernels, PyTorch {torch}, commit {commit}".format(**result["machine"])


def summary(rows: list[Row]) -> str:
    table = []
    for name, least, most in REGIMES:
        for kind in LAYOUTS:
            some = [row for row in rows if row["layout"] == kind and least <= mib(row) < most]
            if some:
                faster = [np.log([r["median_s"][f"{k} torch"] / r["median_s"][k] for r in some]) for k in KINDS]
                means = [f"{math.exp(np.mean(logs)):.1f}" for logs in faster]
                table.append([name, kind.replace("_", "-"), str(len(some)), *means])
    return markdown(["a tensor has", "layout", "shapes", *KINDS], table, 2)


def digits(value: float) -> str:
    return f"{value:#.3g}".rstrip(".")


def functions_table(result: dict[str, Any]) -> str:
    head = ["shape", "layout", "forward", "`out=`", "evaluation", "backward", "`out=`"]
    table = []
    for row in by_size(result["rows"]):
        copies = {name: digits(value / row["median_s"]["copy"]) for name, value in row["median_s"].items()}
        cells = []
        for kind in KINDS:
            cells += [f"{copies[kind]} / {copies[f'{kind} torch']}"]
            cells += [copies[f"{kind} out"]] if f"{kind} out" in copies else []
        table.append([shape(row), layout(row), *cells])
    return f"{markdown(head, table, 2)}\n\n{machine(result)}; medians."


def grouped(rows: list[Row]) -> list[dict[str, Row]]:
    """For each shape and layout, the row of each kind of layer."""
    found: dict[tuple, dict[str, Row]] = {}
    for row in by_size(rows):
        found.setdefault((*row["shape"], row["layout"]), {})[row["kind"]] = row
    return list(found.values())


def layers_table(result: dict[str, Any]) -> str:
    head = ["shape", "layout", *(name for kind in LAYERS for name in (f"{kind}, ms", "accel."))]
    table = []
    for kinds in grouped(result["rows"]):
        first = kinds["batch norm"]
        pairs = [(kinds[k]["median_s"]["stock"] * 1e3, kinds[k]["times_faster"]["accelerated"]) for k in LAYERS]
        table.append([shape(first), layout(first), *(cell for ms, x in pairs for cell in (digits(ms), f"{x:.2f}"))])
    return f"{markdown(head, table, 2)}\n\n{machine(result)}; medians of interleaved repeats."


def losses(functions: dict[str, Any], layers: dict[str, Any]) -> str:
    """Every measured case in which PyTorch is faster by more than 5 %."""
    found: dict[str, list[tuple[float, str]]] = {}
    for row in by_size(functions["rows"]):
        for kind in KINDS:
            ratio = row["median_s"][f"{kind} torch"] / row["median_s"][kind]
            found.setdefault(f"function, {kind}", []).append((ratio, f"{shape(row)} {layout(row)}"))
    for row in by_size(layers["rows"]):
        for way in ("accelerated", "module"):
            what = f"layer, {way}, {row['kind']}".replace(", batch norm", "")
            found.setdefault(what, []).append((row["times_faster"][way], f"{shape(row)} {layout(row)}"))
    table = []
    for what, cases in found.items():
        lost = sorted(case for case in cases if case[0] < 0.95)
        if lost:
            table.append([what, "; ".join(f"{name}: {ratio:.2f}" for ratio, name in lost)])
    return markdown(["what", "shape"], table, 2)


def fill(text: str, parts: dict[str, str]) -> str:
    for name, part in parts.items():
        begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        before, rest = text.split(begin)
        text = f"{before}{begin}\n\n{part}\n\n{end}{rest.split(end)[1]}"
    return text


# --- figures


def lines_of(ax: Axes, rows: list[Row], names: bool) -> None:
    """A line for each row; its shape, and its layout by colour."""
    for y, row in enumerate(rows):
        if y % 2 == 0:
            ax.axhspan(y - 0.5, y + 0.5, color=PALE, linewidth=0, zorder=0)
        if names:
            word = "" if row["layout"] == "contiguous" else ", channels-last"
            label = f"{shape(row)}{word}"
            ax.text(-0.03, y, label, transform=ax.get_yaxis_transform(), ha="right", va="center", fontsize=8.5)
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.yaxis.set_major_locator(NullLocator())
    ax.spines["left"].set_visible(False)


def log_axis(ax: Axes, ticks: tuple[float, ...]) -> None:
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(FixedLocator(ticks))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.xaxis.set_minor_locator(NullLocator())


def draw_functions(result: dict[str, Any]) -> None:
    rows = [row for row in by_size(result["rows"]) if mib(row) >= 1]
    figure, panels = plt.subplots(1, 3, figsize=(9.2, 3.9), sharey=True)
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
        log_axis(ax, (1, 2, 5, 10, 20))
        ax.set_xlim(0.65, 26)
    panels[1].set_xlabel("time, in copies of the tensor")
    key = [
        plt.Line2D([], [], marker="o", color="none", markerfacecolor=BLUE, markeredgecolor=BLUE, label="batchnorm"),
        plt.Line2D([], [], marker="o", color="none", markerfacecolor="white", markeredgecolor=ORANGE, label="PyTorch"),
        Patch(color=GREEN, alpha=0.3, linewidth=0, label="the floor, by the passes counted above"),
    ]
    figure.legend(handles=key, frameon=False, ncols=3, loc="lower left", bbox_to_anchor=(-0.09, -0.1))
    figure.subplots_adjust(wspace=0.08)
    save(figure, "performance-functions")


def draw_layers(result: dict[str, Any]) -> None:
    cases = grouped(result["rows"])
    figure, panels = plt.subplots(1, 3, figsize=(9.2, 4.4), sharey=True)
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
        log_axis(ax, (0.75, 1, 1.5, 2, 3))
        ax.set_xlim(0.66, 3.6)
    panels[1].set_xlabel("times faster than PyTorch's own layers")
    key = [plt.Line2D([], [], marker="o", color=colour, label=label) for colour, _, label in ways.values()]
    figure.legend(handles=key, frameon=False, ncols=2, loc="lower left", bbox_to_anchor=(-0.09, -0.05))
    figure.subplots_adjust(wspace=0.08)
    save(figure, "performance-layers")


def main() -> None:
    functions = by_shape(read(RESULTS / "core.json"))
    layers = json.loads((RESULTS / "torch_layers.json").read_text())
    draw_functions(functions)
    draw_layers(layers)
    parts = {
        "functions-summary": summary(functions["rows"]),
        "functions-table": functions_table(functions),
        "layers-table": layers_table(layers),
        "losses": losses(functions, layers),
    }
    PAGE.write_text(fill(PAGE.read_text(encoding="utf-8"), parts), encoding="utf-8")


if __name__ == "__main__":
    main()
