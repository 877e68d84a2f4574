"""Time forward + backward of PyTorch's layers, of the same accelerated, and of our modules; also with ReLU and add.

python benchmarks/torch_layers.py --json benchmarks/results/torch_layers.json
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

import batchnorm.torch as bnt
from batchnorm.bench.contestants.pytorch import EAGER
from batchnorm.bench.machine import describe
from batchnorm.bench.problem import read_shapes
from batchnorm.bench.timing import SETTLE

HERE = Path(__file__).parent


class Problem(NamedTuple):
    """A named shape in one memory layout."""

    name: str
    shape: tuple[int, ...]
    layout: str


def random_tensor(problem: Problem, generator: torch.Generator) -> torch.Tensor:
    x = torch.randn(problem.shape, generator=generator)
    return x.contiguous(memory_format=torch.channels_last) if problem.layout == "channels_last" else x


KINDS = {  # name: (activation of ours, adds a residual)
    "batch norm": (None, False),
    "+ ReLU": ("relu", False),
    "+ add + ReLU": ("relu", True),
}
WAYS = ("stock", "accelerated", "module")


def layer_class(problem: Problem, ours: bool) -> type[torch.nn.Module]:
    name = "BatchNorm1d" if len(problem.shape) == 2 else "BatchNorm2d"
    return getattr(bnt if ours else torch.nn, name)


class Plain(torch.nn.Module):
    """torch.nn's batch norm, and what follows it as models write it."""

    def __init__(self, problem: Problem, activation: str | None) -> None:
        super().__init__()
        self.bn = layer_class(problem, ours=False)(problem.shape[1])
        self.relu = torch.nn.ReLU(inplace=True) if activation else None

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        y = self.bn(x)
        if residual is not None:
            y = y + residual
        return self.relu(y) if self.relu else y


def step(problem: Problem, way: str, kind: str) -> Callable[[], list[torch.Tensor]]:
    """One forward and backward; returns y and the gradients."""
    activation, adds = KINDS[kind]
    generator = torch.Generator().manual_seed(0)
    x, g, residual = (random_tensor(problem, generator) for _ in range(3))
    leaves = [x.requires_grad_(), residual.requires_grad_()] if adds else [x.requires_grad_()]
    ours = way == "module"
    if ours:
        layer = layer_class(problem, ours)(problem.shape[1], activation=activation)
    else:  # without the wrapper's call where there is nothing to wrap
        layer = Plain(problem, activation) if activation else layer_class(problem, ours)(problem.shape[1])
    extra = {"residual": residual} if adds else {}
    parameters = list(layer.parameters())

    def run() -> list[torch.Tensor]:
        y = layer(x, **extra)
        return [y, *torch.autograd.grad(y, [*leaves, *parameters], g)]

    return run


def verify(results: dict[str, list[torch.Tensor]]) -> None:
    """A fast wrong answer is not timed: all ways agree.

    Rounding may put a value on the other side of ReLU's corner: a few elements then differ, and sums a little.
    """
    for way in WAYS[1:]:
        for a, b in zip(results[way], results["stock"], strict=True):
            close = 1e-4 if a.dim() > 1 else 1e-2
            off = (a - b).abs() > close * b.abs().max()
            assert off.float().mean() < 1e-5, f"{way} disagrees with stock"


def timed(run: Callable[[], object], least: float, calls: int) -> float:
    """Seconds a call, after untimed calls that settle caches and PyTorch's threads."""
    until = time.perf_counter() + least
    while time.perf_counter() < until:
        run()
    start = time.perf_counter()
    for _ in range(calls):
        run()
    return (time.perf_counter() - start) / calls


def measure(problem: Problem, kind: str, repeats: int) -> dict[str, object]:
    runs = {way: step(problem, way, kind) for way in WAYS}
    context = {way: bnt.accelerate if way == "accelerated" else contextlib.nullcontext for way in WAYS}
    results = {}
    for way, run in runs.items():
        with context[way]():
            results[way] = [t.detach().clone() for t in run()]
    verify(results)
    del results
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    size = int(np.prod(problem.shape))
    calls = max(3, min(300, 3_000_000 // size))
    for _ in range(repeats):
        for way, run in runs.items():
            with context[way]():
                times[way].append(timed(run, SETTLE, calls))
    ratios = {way: np.array(times["stock"]) / np.array(times[way]) for way in WAYS}
    return {
        **problem._asdict(),
        "kind": kind,
        "median_s": {way: float(np.median(t)) for way, t in times.items()},
        "times_faster": {way: float(np.median(r)) for way, r in ratios.items()},
        "quartiles": {way: [float(q) for q in np.percentile(r, [25, 75])] for way, r in ratios.items()},
    }


def show(rows: list[dict], console: Console) -> None:
    table = Table(title="forward + backward of a layer: how many times faster than stock PyTorch (median, quartiles)")
    for heading in ("shape", "layout", "what", "stock ms", "accelerated", "module"):
        table.add_column(heading)
    for row in rows:
        cells = [
            f"{row['times_faster'][way]:.2f}  ({row['quartiles'][way][0]:.2f}-{row['quartiles'][way][1]:.2f})"
            for way in WAYS[1:]
        ]
        shape = "x".join(map(str, row["shape"]))
        table.add_row(shape, row["layout"], row["kind"], f"{row['median_s']['stock'] * 1e3:.3f}", *cells)
    console.print(table)


def keep_memory() -> None:
    """Ask glibc to keep freed memory up to its limit for blocks of its heap, 32 MiB: no page faults by luck."""
    M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(M_MMAP_THRESHOLD, 32 * 2**20)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--shapes", type=Path, default=HERE / "shapes" / "torch.txt")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_memory()
    console = Console(width=150)
    shapes = [Problem(s.name, s.sizes, layout) for s in read_shapes(options.shapes) for layout in s.layouts]
    problems = [(p, kind) for p in shapes for kind in KINDS]
    rows = [measure(p, kind, options.repeats) for p, kind in track(problems, "measuring", console=console)]
    machine = {**describe(EAGER, HERE.parent), "threads": options.threads}
    show(rows, console)
    console.print(machine)
    if options.json:
        options.json.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
