"""One look for every figure: colors, fonts, and SVG files that come out the same every time."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

HERE = Path(__file__).parent
INK, GRAY, PALE = "#22303c", "#8795a1", "#eef1f4"
BLUE, ORANGE, GREEN = "#1f6fb4", "#d9722a", "#2e8b6f"

plt.rcParams.update(
    {
        "font.family": "DejaVu Sans",
        "font.size": 9.5,
        "text.color": INK,
        "axes.edgecolor": GRAY,
        "axes.labelcolor": INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "xtick.color": INK,
        "ytick.color": INK,
        "figure.facecolor": "white",
        "savefig.facecolor": "white",
        "svg.fonttype": "none",  # text stays text: small files that can be searched
        "svg.hashsalt": "batchnorm",  # else every run names its clip paths anew
    }
)


def save(figure: Figure, name: str) -> None:
    """Write ``name``.svg beside the scripts, without the date."""
    figure.savefig(HERE / f"{name}.svg", bbox_inches="tight", pad_inches=0.12, metadata={"Date": None})
    plt.close(figure)
