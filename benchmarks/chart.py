"""The charts: how many times faster than PyTorch, for each type, layout, operation and shape; and of trainings."""

from __future__ import annotations

import sys
from pathlib import Path

from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from batchnorm.tools.bench.functions import ACCELERATED, PYTORCH
from batchnorm.tools.bench.problem import OPERATIONS
from batchnorm.tools.bench.results import Document
from batchnorm.tools.bench.table import mean, ratio
from render import WAYS, differences
from rows import LOSSES
from tables import FUSED, groups

sys.path.insert(0, str(Path(__file__).parent.parent / "docs" / "figures"))

from style import BLUE, GRAY, GREEN, INK, ORANGE, PALE, plt, save


def draw(document: Document, name: str = "performance") -> None:
    """A panel for each operation, a line for each type and layout, a dot for each shape; orange where we lose."""
    found = groups(document)
    figure, panels = plt.subplots(1, 3, figsize=(9.2, 0.6 + 0.34 * len(found)), sharex=True, sharey=True)
    for ax, operation in zip(panels, OPERATIONS, strict=True):
        for y, group in enumerate(found):
            if y % 2 == 0:
                ax.axhspan(y - 0.5, y + 0.5, color=PALE, linewidth=0, zorder=0)
            if ax is panels[0]:
                where = {"transform": ax.get_yaxis_transform(), "ha": "right", "va": "center", "fontsize": 8.5}
                ax.text(-0.03, y, f"{group['dtype']}, {group['layout']}", **where)
            ratios = [ratio(row, ACCELERATED, operation) for row in group["rows"]]
            ax.scatter(ratios, [y] * len(ratios), s=16, alpha=0.7, color=[BLUE if r >= 1 else ORANGE for r in ratios])
            ax.plot([mean(ratios)] * 2, [y - 0.3, y + 0.3], color=INK, linewidth=1.6)
        ax.axvline(1, color=INK, linewidth=1, linestyle=(0, (4, 3)))
        ax.set_title(operation, loc="left", fontsize=10)
        ax.set_ylim(len(found) - 0.5, -0.5)
        ax.yaxis.set_major_locator(NullLocator())
        ax.spines["left"].set_visible(False)
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(FixedLocator((0.5, 1, 2, 5, 10)))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ax.xaxis.set_minor_locator(NullLocator())
    panels[1].set_xlabel("times faster than PyTorch; a dot a shape (orange: slower), a bar for their geometric mean")
    figure.subplots_adjust(wspace=0.08)
    save(figure, name)


def draw_losses(document: Document, name: str = "trust") -> None:
    """The losses of the trainings upon each other, and how far each is from PyTorch's."""
    losses = {row["dtype"]: row["losses"] for row in document["rows"] if row["what"] == LOSSES}
    figure, (curves, gaps) = plt.subplots(1, 2, figsize=(9.2, 3.9), width_ratios=(1, 1.25))
    of = losses["float32"]
    steps = range(1, len(of[PYTORCH]) + 1)
    curves.plot(steps, of[PYTORCH], color=GRAY, linewidth=5, alpha=0.55, label=PYTORCH)
    looks = zip(WAYS, (BLUE, GREEN, ORANGE), ((0, (6, 6)), (2, (4, 8)), (6, (1.5, 3))), strict=True)
    for who, color, line in looks:
        curves.plot(steps, of[who], color=color, linewidth=1.3, linestyle=line, label=who)
    curves.set_title("Loss of each training, float32", loc="left", fontsize=10)
    curves.set_xlabel("steps after the checkpoint")
    curves.set_ylim(0, None)
    curves.legend(frameon=False)
    others = [who for who in of if who not in (PYTORCH, *WAYS)]
    lines = [("float32", who, GRAY, style) for who, style in zip(others, ("--", ":"), strict=True)]
    lines += [("float32", FUSED, BLUE, "-"), ("float64", FUSED, GREEN, "-")]
    for dtype, who, color, style in lines:
        ours = who == FUSED
        label = f"accelerated, converted, fused: {dtype}" if ours else f"{who}: {dtype}"
        found = [d or None for d in differences(losses[dtype], who)]  # a zero has no place on this axis
        gaps.plot(
            steps, found, style, color=color, linewidth=1.3, label=label, marker="." if ours else "", markersize=3
        )
    gaps.axhline(1e-7, color=INK, linewidth=0.8, linestyle=(0, (2, 3)))
    gaps.set_yscale("log")
    gaps.set_ylim(5e-17, 10)
    gaps.set_title("Distance from PyTorch's loss, as a part of it", loc="left", fontsize=10)
    gaps.set_xlabel("steps after the checkpoint")
    gaps.legend(frameon=False, fontsize=8, loc="center", bbox_to_anchor=(0.6, 0.37))
    figure.subplots_adjust(wspace=0.16)
    save(figure, name)
