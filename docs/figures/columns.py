"""columns.svg: three of the five columns of the example, before and after."""

from __future__ import annotations

import numpy as np
from style import BLUE, GRAY, GREEN, INK, ORANGE, plt, save

import batchnorm as bn


def main() -> None:
    before = np.arange(1.0, 6.0)[:, None] + np.arange(5.0)
    after, _ = bn.batch_norm(before)
    figure, panels = plt.subplots(1, 2, figsize=(8.2, 2.7))
    samples = np.arange(5)
    for column, color, size in ((0, BLUE, 11), (2, GREEN, 7.5), (4, ORANGE, 4)):
        panels[0].plot(samples, before[:, column], "o-", color=color, markersize=5, linewidth=1.4)
        panels[0].text(4.35, before[4, column], f"column {column}", color=color, va="center")
        panels[1].plot(samples, after[:, column], "o", color=color, markersize=size)
    panels[1].plot(samples, after[:, 0], color=GRAY, linewidth=1, zorder=0)
    panels[1].text(4.35, after[4, 0], "all of them", color=INK, va="center")
    for panel, title in zip(panels, ("before", "after"), strict=True):
        panel.set_title(title, loc="left", fontsize=10)
        panel.set_xticks(samples)
        panel.set_xlabel("sample")
        panel.set_xlim(-0.3, 4.3)
    panels[1].set_yticks([-1.4142, -0.7071, 0, 0.7071, 1.4142])
    figure.subplots_adjust(wspace=0.75)
    save(figure, "columns")


if __name__ == "__main__":
    main()
