"""Time forward + backward of PyTorch's layers, of the same accelerated, and of our modules; also with ReLU and add.

python benchmarks/run.py torch_layers
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

import batchnorm.torch as bnt
from batchnorm.bench.problem import Shape, read_shapes
from batchnorm.bench.timing import SETTLE
from batchnorm.files.progress import progress_on
from record import Document, document
from tables_layers import accelerated

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


def measured(problem: Problem, kind: str, repeats: int) -> dict[str, object]:
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


def keep_memory() -> None:
    """Ask glibc to keep freed memory up to its limit for blocks of its heap, 32 MiB: no page faults by luck."""
    M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(M_MMAP_THRESHOLD, 32 * 2**20)


def measure(shapes: Sequence[Shape] | None = None, repeats: int = 15) -> Document:
    """All shapes, layouts and kinds."""
    keep_memory()
    given = shapes if shapes is not None else read_shapes(HERE / "shapes" / "torch.txt")
    problems = [(Problem(s.name, s.sizes, layout), kind) for s in given for layout in s.layouts for kind in KINDS]
    rows = []
    with progress_on(sys.stderr, still=True) as progress:
        advance = progress("torch_layers", len(problems))
        for problem, kind in problems:
            rows.append(measured(problem, kind, repeats))
            advance(1)
    results = document(rows)
    results["machine"]["threads"] = torch.get_num_threads()
    return results


def measure_shortly() -> Document:
    """The same in a third of the time."""
    return measure(repeats=5)


def tables_of_another_machine(results: Document) -> dict[str, str]:
    return {"another-machine-layers": accelerated(results)}


def tables(results: Document) -> dict[str, str]:
    return {"layers-table": accelerated(results)}
