"""What the choice of moments costs: masks, weights and ghost batches, beside the plain batch norm of the same array.

python benchmarks/run.py variants
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import batchnorm as bn
from batchnorm import _reference
from batchnorm.bench.data import Data
from batchnorm.bench.problem import Problem, Shape, read_shapes
from batchnorm.bench.timing import Runner
from batchnorm.bench.timing import measure as timed
from record import Document, Row, digits, document, layout, machine, markdown, median, seconds, shape

HERE = Path(__file__).parent
GHOSTS = 4  # parts of the batch


class Settings(NamedTuple):
    """How long to measure."""

    rounds: int = 15
    budget: float = 2.0  # seconds, for each shape, layout and direction


def measure(shapes: Sequence[Shape] | None = None, settings: Settings = Settings()) -> Document:  # noqa: B008
    rows = []
    for each in shapes if shapes is not None else read_shapes(HERE / "shapes" / "variants.txt"):
        for stored in each.layouts:
            rows += measured(Data(Problem(each.name, each.sizes, stored, "float32", "forward", 1)), settings)
    return document(rows)


def choices(x: np.ndarray) -> dict[str, dict[str, Any]]:
    """The arguments of each variant. Half of the positions count: at random, or the first of each sample."""
    N, _, *others = x.shape
    rng = np.random.default_rng(0)
    chance = rng.random((N, *others)) < 0.5
    chance.reshape(-1)[:2] = True
    if others:  # sequences that end at different places, on the last axis
        lengths = rng.integers(1, others[-1] + 1, (N, *[1] * (len(others) - 1), 1))
        padding = np.broadcast_to(np.arange(others[-1]) < lengths, (N, *others)).copy()
    else:
        padding = np.arange(N) < max(2, N // 2)
    return {
        "plain": {},
        "mask, random": {"mask": chance},
        "mask, padding": {"mask": padding},
        "weights": {"weights": rng.random((N, *others), dtype=np.float32)},
        "ghost batches": {"virtual_batch_size": -(-N // GHOSTS)},
    }


def measured(data: Data, settings: Settings) -> list[Row]:
    """Forward and backward; each variant's result is compared with the specification first."""
    forward, backward = {}, {}
    for name, options in choices(data.x).items():
        y, m = bn.batch_norm(data.x, data.weight, data.bias, **options)
        verify(name, data, y, options)
        forward[name] = Runner(lambda o=options: bn.batch_norm(data.x, data.weight, data.bias, **o), "")
        backward[name] = Runner(
            lambda o=options, m=m: bn.batch_norm_backward(data.grad, data.x, m, data.weight, data.bias, **o), ""
        )
    same = {"shape": list(data.x.shape), "layout": data.layout, "threads": bn.get_num_threads()}
    return [
        {**same, "operation": operation, "times": seconds(timed(runners, settings.rounds, settings.budget))}
        for operation, runners in (("forward", forward), ("backward", backward))
    ]


def verify(name: str, data: Data, y: np.ndarray, options: dict[str, Any]) -> None:
    """Ghosts are batches of their own; a position counts with its weight."""
    size = options.get("virtual_batch_size", len(data.x))
    selected = options.get("mask", options.get("weights"))
    for start in range(0, len(data.x), size):
        part = slice(start, start + size)
        x = _reference.arrange(data.x[part], 1)
        w = None if selected is None else selected[part].reshape(-1).astype(np.float64)
        _, mean, var = _reference.moments(x, w)
        _, z = _reference.normalize(x, mean, var, data.weight.astype(float), data.bias.astype(float), 1e-5)
        off = float(np.max(np.abs(_reference.arrange(y[part], 1) - z) / np.maximum(1, np.abs(z))))
        if not off <= 1e-6:
            raise SystemExit(f"{name} on {shape(data.x.shape)}: y is off by {off}")


def tables(results: Document) -> dict[str, str]:
    rows = []
    for row in results["rows"]:
        plain = median(row, "plain")
        names = [name for name in row["times"] if name != "plain"]
        factors = [f"{median(row, name) / plain:.2f}" for name in names]
        rows.append([shape(row["shape"]), layout(row), row["operation"], digits(plain * 1e3), *factors])
    head = ["shape", "layout", "operation", "plain, ms", *names]
    note = f"{machine(results)}; medians of interleaved turns; variants as multiples of the plain time."
    return {"variants": f"{markdown(head, rows, 3)}\n\n{note}"}
