"""tutorial-running.svg and tutorial-rates.svg: running statistics over batches, and accuracy over learning rates.

The second runs the tutorial's own network, from the blocks of docs/tutorial.md; needs what the page needs.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from style import BLUE, GRAY, GREEN, INK, ORANGE, plt, save

import batchnorm as bn

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests" / "house"), str(ROOT / "tests" / "support")]

from test_docs import blocks_of, run_python  # noqa: E402

PAGE = ROOT / "docs" / "tutorial.md"
RATES = np.geomspace(0.003, 30, 13)
SEEDS = range(5)


def draw_running() -> None:
    """Batches of 32 numbers, mean 3 and standard deviation 2."""
    rng = np.random.default_rng(1)
    layers = {a: bn.BatchNorm1d(1, momentum=a, dtype=np.float64) for a in (0.1, 0.01, None)}
    count = 300
    means, running = np.empty(count), {a: np.empty(count) for a in layers}
    for i in range(count):
        x = rng.normal(3.0, 2.0, size=(32, 1))
        means[i] = x.mean()
        for a, layer in layers.items():
            layer(x)
            running[a][i] = layer.running_mean[0]

    figure, ax = plt.subplots(figsize=(7.2, 3.2))
    batches = np.arange(1, count + 1)
    ax.plot(batches, means, ".", color=GRAY, markersize=3, alpha=0.7)
    ax.axhline(3.0, color=INK, linewidth=1, linestyle=(0, (4, 3)))
    for a, color, y in ((0.1, BLUE, 2.72), (0.01, ORANGE, 2.44), (None, GREEN, 3.0)):
        ax.plot(batches, running[a], color=color, linewidth=1.7)
        ax.text(count + 5, y, f"momentum {a}", color=color, va="center")
    ax.text(count + 5, 3.96, "dots: mean of each batch", color=GRAY, va="center")
    ax.text(count + 5, 3.68, "dashes: mean of all data", color=INK, va="center")
    ax.set_xlim(0, count)
    ax.set_ylim(0, 4.2)
    ax.set_xlabel("batches")
    ax.set_ylabel("running_mean")
    save(figure, "tutorial-running")


def names_of_page() -> dict[str, Any]:
    """What the page's blocks define."""
    names: dict[str, Any] = {"__name__": "__main__"}
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # the page writes files
        for block in blocks_of(PAGE):
            if block.language == "python":
                run_python(block, PAGE, names)
        os.chdir(before)
    return names


def draw_rates() -> None:
    trained = names_of_page()["trained"]
    figure, ax = plt.subplots(figsize=(7.2, 3.2))
    for normalize, label, color in ((False, "without", ORANGE), (True, "with batch normalization", BLUE)):
        found = np.array([[100 * trained(normalize, rate, seed)[1] for seed in SEEDS] for rate in RATES])
        for rate, each in zip(RATES, found, strict=True):
            print(f"{label:<24} {rate:8.3g}  {each.mean():5.1f}  ({each.min():.1f} to {each.max():.1f})")
        ax.fill_between(RATES, found.min(axis=1), found.max(axis=1), color=color, alpha=0.18, linewidth=0)
        ax.plot(RATES, found.mean(axis=1), "o-", color=color, markersize=4, linewidth=1.7, label=label)
    ax.axhline(10, color=GRAY, linewidth=1, linestyle=(0, (4, 3)))
    ax.text(RATES[0], 12, "guessing", color=GRAY, fontsize=8, va="bottom")
    ax.set_xscale("log")
    ax.set_ylim(0, 103)
    ax.set_xlabel("learning rate")
    ax.set_ylabel("test accuracy, %")
    ax.legend(frameon=False, loc="lower left", bbox_to_anchor=(0.0, 0.2))
    save(figure, "tutorial-rates")


def main() -> None:
    draw_running()
    draw_rates()


if __name__ == "__main__":
    main()
