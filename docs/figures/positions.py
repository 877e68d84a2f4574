"""positions.svg: the positions of one channel in an array of shape (2, 3, 4), and in memory in two layouts."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from style import BLUE, GRAY, INK, PALE, plt, save

N, C, S = 2, 3, 4
LIT = 1
CELL = 0.46


def cell(ax: Axes, x: float, y: float, lit: bool, text: str) -> None:
    fill, ink = (BLUE, "white") if lit else (PALE, GRAY)
    ax.add_patch(Rectangle((x, y), CELL, CELL, facecolor=fill, edgecolor="white", linewidth=1.4))
    ax.text(x + CELL / 2, y + CELL / 2 - 0.01, text, ha="center", va="center", fontsize=6.8, color=ink)


def samples(ax: Axes, left: float, top: float) -> None:
    for n in range(N):
        x0 = left + n * (S * CELL + 0.45)
        ax.text(x0 + S * CELL / 2, top + 0.12, f"sample {n}", ha="center", va="bottom")
        for c, s in np.ndindex(C, S):
            cell(ax, x0 + s * CELL, top - (c + 1) * CELL, c == LIT, f"{n}{c}{s}")
    for c in range(C):
        color, weight = (BLUE, "bold") if c == LIT else (INK, "normal")
        y = top - (c + 0.5) * CELL
        ax.text(left - 0.15, y, f"channel {c}", ha="right", va="center", color=color, fontweight=weight)
    words = f"one mean, one variance\nover m = N·S = {N * S} positions"
    ax.text(left + N * S * CELL + 0.75, top - (LIT + 0.5) * CELL, words, color=BLUE, va="center")


def memory(ax: Axes, left: float, y: float, label: str, order: list[tuple[int, int, int]]) -> None:
    for i, (n, c, s) in enumerate(order):
        cell(ax, left + i * CELL, y, c == LIT, f"{n}{c}{s}")
    ax.text(left, y + CELL + 0.1, label, ha="left", va="bottom")


def main() -> None:
    figure, ax = plt.subplots(figsize=(8.6, 3.7))
    left = 1.0
    samples(ax, left + 1.1, 4.5)
    memory(ax, left, 1.7, "in memory, contiguous: a channel's positions stand in runs of S", list(np.ndindex(N, C, S)))
    last = [(n, c, s) for n, s, c in np.ndindex(N, S, C)]
    memory(ax, left, 0.4, "in memory, channels-last: one position of the channel in every C numbers", last)
    ax.set_xlim(left - 0.1, left + N * C * S * CELL + 0.1)
    ax.set_ylim(0.1, 5.1)
    ax.set_aspect("equal")
    ax.axis("off")
    save(figure, "positions")


if __name__ == "__main__":
    main()
