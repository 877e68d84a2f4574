"""Measure the error of the normalized output and of its gradient, ours beside PyTorch's, for the documents.

    python docs/figures/accuracy.py            # prints the tables
    python docs/figures/accuracy.py --write    # also writes them between their markers, and accuracy.svg

Needs PyTorch 2.13 and mpmath; the figure needs matplotlib. Our errors do not depend on the machine; PyTorch's change a
little with its number of threads (fixed to 2 here).
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

import ml_dtypes
import mpmath
import numpy as np
import torch

import batchnorm as bn

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "support"))
import distributions  # the kinds of data that the tests check

SHAPE = (32, 16, 28, 28)
EPS = 1e-5
OFFSETS = (0.0, 1e2, 1e4, 1e6)
SCALES = (1e-30, 1e-10, 1.0, 1e10, 1e30)
SEEDS = range(4)
DOCS = Path(__file__).parent.parent
PAGES = {DOCS.parent / "README.md": "en", DOCS.parent / "README.zh-CN.md": "zh", DOCS / "numerics.md": "en"}

Array = np.ndarray
Row = list[str]


# --- what is measured


def batch(seed: int, offset: float, scale: float) -> Array:
    """Float32 data of standard deviation ``scale``, whose mean is ``offset`` standard deviations away from 0."""
    return ((np.random.default_rng(seed).normal(size=SHAPE) + offset) * scale).astype(np.float32)


def exact(x: Array, grad: Array) -> tuple[Array, Array]:
    """y and dx of a float32 batch (weight 1, bias 0), in float64 with exactly rounded means.

    Good to some 1e-10 standard deviations at an offset of 1e6, a thousandth of what is measured.
    """
    y, dx = np.empty(x.shape), np.empty(x.shape)
    for i in range(x.shape[1]):
        v, g = x[:, i].astype(np.float64), grad[:, i].astype(np.float64)
        m = v.size
        mean = math.fsum(v.ravel()) / m
        var = math.fsum(((v - mean) ** 2).ravel()) / m
        std = math.sqrt(var + EPS)
        y[:, i] = (v - mean) / std
        dx[:, i] = (g - math.fsum(g.ravel()) / m - y[:, i] * (math.fsum((g * y[:, i]).ravel()) / m)) / std
    return y, dx


def channels_last(x: Array) -> Array:
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)


def ours(x: Array, grad: Array) -> tuple[Array, Array]:
    y, m = bn.batch_norm(x, eps=EPS)
    return y, bn.batch_norm_backward(grad, x, m, eps=EPS).x


def pytorch(x: Array, grad: Array) -> tuple[Array, Array]:
    t = torch.from_numpy(x).requires_grad_()  # strides, and so channels-last, are kept
    y = torch.nn.functional.batch_norm(t, None, None, training=True, eps=EPS)
    y.backward(torch.from_numpy(grad))
    return y.detach().numpy(), t.grad.numpy()


def worst_errors(offset: float, scale: float) -> dict[str, tuple[float, ...]]:
    """The largest errors of each implementation in each layout.

    Three of them: |y - y*| / max(1, |y*|), |y - y*| / max |y*| and |dx - dx*| / max |dx*|.
    """
    worst: dict[str, tuple[float, ...]] = {}
    for seed in SEEDS:
        x, grad = batch(seed, offset, scale), batch(seed + 100, 0.0, 1.0)
        y_exact, dx_exact = exact(x, grad)
        for name, run in (("ours", ours), ("pytorch", pytorch)):
            for layout, to_layout in (("contiguous", np.ascontiguousarray), ("channels-last", channels_last)):
                y, dx = run(to_layout(x), to_layout(grad))
                off = np.abs(y - y_exact)
                found = (
                    float((off / np.maximum(1, np.abs(y_exact))).max()),
                    float(off.max() / np.abs(y_exact).max()),
                    float(np.abs(dx - dx_exact).max() / np.abs(dx_exact).max()),
                )
                before = worst.get(f"{name} {layout}", found)
                worst[f"{name} {layout}"] = tuple(map(max, before, found))
    return worst


def float64_error(offset: float) -> tuple[float, float]:
    """Largest errors of y, relative to max(1, |y*|), and of dx, relative to max |dx*|: float64, against 60 digits."""
    rng = np.random.default_rng(5)
    x, g = rng.normal(size=(3000, 1)) + offset, rng.normal(size=(3000, 1))
    y, m = bn.batch_norm(x, eps=EPS)
    dx = bn.batch_norm_backward(g, x, m, eps=EPS).x
    with mpmath.workdps(60):
        v, h = [mpmath.mpf(float(t)) for t in x[:, 0]], [mpmath.mpf(float(t)) for t in g[:, 0]]
        mean = mpmath.fsum(v) / len(v)
        std = mpmath.sqrt(mpmath.fsum((t - mean) ** 2 for t in v) / len(v) + mpmath.mpf(EPS))
        hat = [(t - mean) / std for t in v]
        h_mean, slope = mpmath.fsum(h) / len(h), mpmath.fsum(a * b for a, b in zip(h, hat, strict=True)) / len(h)
        dx_exact = [(a - h_mean - b * slope) / std for a, b in zip(h, hat, strict=True)]
        y_error = max(abs(float(a) - b) / max(1, abs(b)) for a, b in zip(y[:, 0], hat, strict=True))
        dx_error = max(abs(float(a) - b) for a, b in zip(dx[:, 0], dx_exact, strict=True)) / max(map(abs, dx_exact))
    return float(y_error), float(dx_error)


def half_units(dtype: type, offset: float) -> tuple[float, float]:
    """For 16-bit data: the largest error in units of the last place, and the share of results not the nearest."""
    x = batch(0, offset, 1.0).astype(dtype)
    y_exact, _ = exact(x.astype(np.float32), np.ones(SHAPE, np.float32))
    y, _ = bn.batch_norm(x, eps=EPS)
    info = ml_dtypes.finfo(dtype)
    unit = np.maximum(2.0 ** np.floor(np.log2(np.abs(y_exact))), float(info.smallest_normal)) * float(info.eps)
    return float((np.abs(y.astype(np.float64) - y_exact) / unit).max()), float((y != y_exact.astype(dtype)).mean())


GROUPS = {
    "normal, uniform, integers; offsets up to 1e6 std": (
        "normal",
        "offset",
        "uniform",
        "float noise",
        "time",
        "integers",
    ),
    "sorted, drifting, falling; random walks": ("sorted", "drift", "random walk", "falls"),
    "clusters in turn or in parts": ("two",),
    "sparse, one-hot, few values": ("after a ReLU", "1 %", "one-hot", "three values", "spikes"),
    "outliers, first, last and regular": ("first", "last", "every 16th"),
    "heavy tails: lognormal, Student, Cauchy, Pareto": ("lognormal", "Student", "Cauchy", "Pareto"),
}


def of_distributions() -> dict[str, tuple[float, float]]:
    """For each group of kinds the largest error of y, relative to max(1, |y*|), in short columns and in long ones."""
    worst = dict.fromkeys(GROUPS, (0.0, 0.0))
    for lengths, columns, which in ((16, 32, 64, 100, 128, 256), 64, 0), ((2048, 40_000), 4, 1):
        for seed in range(8):
            rng = np.random.default_rng(seed)
            for m in lengths:
                values, names = distributions.draw(rng, m, columns)
                x = values.astype(np.float32)
                wide = x.astype(np.longdouble)
                mean = wide.mean(0)
                mean = mean + (wide - mean).mean(0)
                d = wide - mean
                y = d / np.sqrt((d * d).mean(0) + np.longdouble(EPS))
                off = (np.abs(bn.batch_norm(x, eps=EPS)[0] - y) / np.maximum(1, np.abs(y))).max(0)
                for group, kinds in GROUPS.items():
                    found = [float(e) for e, name in zip(off, names, strict=True) if name.startswith(kinds)]
                    errors = list(worst[group])
                    errors[which] = max(errors[which], *found)
                    worst[group] = (errors[0], errors[1])
    return worst


# --- tables

NAMES = ("ours contiguous", "ours channels-last", "pytorch contiguous", "pytorch channels-last")
HEADS = {
    "en": [f"{who}, {layout}" for who in ("batchnorm", "PyTorch 2.13") for layout in ("contiguous", "channels-last")],
    "zh": [f"{who}，{layout}" for who in ("batchnorm", "PyTorch 2.13") for layout in ("连续布局", "通道在后")],
}
WORDS = {
    "en": {"mean / std": "mean / std", "scale": "all values × 1e30"},
    "zh": {"mean / std": "均值 / 标准差", "scale": "所有数值 × 1e30"},
}


def number(value: float) -> str:
    return "NaN" if math.isnan(value) else f"{value:.1e}".replace("e-0", "e-").replace("e+0", "e+").replace("e+0", "")


def power(value: float) -> str:
    text = "0" if value == 0 else f"1e{round(math.log10(value))}" if value != 1 else "1"
    return text.replace("-", "−")  # a minus sign: a line can break after a hyphen


def markdown(head: Row, rows: list[Row]) -> str:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def tables(language: str, ladder: dict, scales: dict, doubles: dict, halves: dict, kinds: dict) -> dict[str, str]:
    words, heads = WORDS[language], HEADS[language]

    def compared(first: str, errors: dict, which: int) -> list[Row]:
        return [
            [first, *heads],
            *([power(at), *(number(e[name][which]) for name in NAMES)] for at, e in errors.items()),
        ]

    forward = compared(words["mean / std"], ladder, 0)
    result = {"accuracy-table": [*forward, [words["scale"], *(number(scales[1e30][name][0]) for name in NAMES)]]}
    if language == "en":
        result["ladder"] = forward
        result["gradients"] = compared("mean / std", ladder, 2)
        result["scales"] = compared("scale", scales, 1)
        result["float64"] = [["mean / std", "y", "dx"], *([power(o), *map(number, e)] for o, e in doubles.items())]
        result["distributions"] = [["data", "16 … 256 values a channel", "2048 and 40 000"]]
        result["distributions"] += [[group, *map(number, errors)] for group, errors in kinds.items()]
        result["16-bit"] = [["type", "mean / std", "worst error, in units of the last place", "not the nearest"]]
        for (kind, offset), (units, share) in halves.items():
            result["16-bit"].append([kind, power(offset), f"{units:.4f}", f"{100 * share:.3f} %"])
    return {name: markdown(rows[0], rows[1:]) for name, rows in result.items()}


def replace_tables(text: str, found: dict[str, str]) -> str:
    """Put each table between ``<!-- name -->`` and ``<!-- /name -->``, where the text has these."""
    for name, table in found.items():
        begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        if begin in text:
            before, rest = text.split(begin, 1)
            text = f"{before}{begin}\n\n{table}\n\n{end}{rest.split(end, 1)[1]}"
    return text


def draw(ladder: dict) -> None:
    from style import BLUE, GRAY, GREEN, ORANGE, plt, save

    figure, ax = plt.subplots(figsize=(6.6, 3.5))
    at = np.arange(len(ladder))
    styles = {
        "pytorch channels-last": ("PyTorch 2.13, channels-last", ORANGE, "s-"),
        "pytorch contiguous": ("PyTorch 2.13, contiguous", GREEN, "^-"),
        "ours contiguous": ("batchnorm, both layouts", BLUE, "o-"),
    }
    for name, (label, color, marks) in styles.items():
        values = [errors[name][0] for errors in ladder.values()]
        ax.plot(at, values, marks, color=color, linewidth=1.6, markersize=5)
        ax.text(at[-1] + 0.12, values[-1], label, color=color, va="center")
    ax.axhline(2.5e-7, color=GRAY, linewidth=1, linestyle=(0, (4, 3)))
    ax.text(2, 3.1e-7, "the bound, N1", color=GRAY, fontsize=8, ha="center", va="bottom")
    ax.set_yscale("log")
    ax.set_ylim(4e-8, 30)
    ax.set_xlim(-0.25, len(ladder) - 0.75)
    ax.set_xticks(at, ["0", *(f"$10^{{{round(math.log10(o))}}}$" for o in ladder if o)])
    ax.set_xlabel("mean / standard deviation of the data")
    ax.set_ylabel("worst error of the output")
    save(figure, "accuracy")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the tables into the documents, and the figure")
    write = parser.parse_args().write
    torch.set_num_threads(2)
    ladder = {o: worst_errors(o, 1.0) for o in OFFSETS}
    scales = {s: worst_errors(0.0, s) for s in SCALES}
    doubles = {o: float64_error(o) for o in OFFSETS}
    halves = {(d.__name__, o): half_units(d, o) for d in (np.float16, ml_dtypes.bfloat16) for o in (0.0, 1e1, 1e2)}
    kinds = of_distributions()
    for name, table in tables("en", ladder, scales, doubles, halves, kinds).items():
        print(f"{name}\n\n{table}\n")
    if write:
        draw(ladder)
        for page, language in PAGES.items():
            page.write_text(replace_tables(page.read_text(), tables(language, ladder, scales, doubles, halves, kinds)))


if __name__ == "__main__":
    main()
