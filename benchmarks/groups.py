"""PyTorch's functions and the same accelerated, by layout and type: the second of two calls in a row, and in turn.

    python benchmarks/run.py groups

"Warm": each contestant is called twice, and the second call counts, so that its own arrays are in the caches. "In
turn": each is called once, after the others, whose arrays have filled the caches. Networks are in between. Beside them,
in the same turns, reading and copying x: from these comes the least that any batch normalization takes here.
"""

from __future__ import annotations

import contextlib
import gc
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

import batchnorm.torch as bnt
from batchnorm import _native
from batchnorm.bench.ratios import mean
from batchnorm.files.progress import progress_on
from record import Document, Row, digits, document, machine, markdown
from record import shape as spelled
from roofline import floor
from torch_layers import keep_memory

IMAGES = (
    (16, 64, 64, 64), (16, 256, 32, 32), (16, 512, 16, 16), (16, 1024, 8, 8), (16, 2048, 4, 4), (64, 512, 7, 7),
    (32, 64, 56, 56), (32, 256, 56, 56),
)  # fmt: skip
TABLES = ((8192, 256), (65536, 64))
DTYPES = ("float32", "bfloat16", "float16")
OPERATIONS = ("forward", "backward", "evaluation")
LAYOUTS = ("contiguous", "channels-last", "(N, C)")
MODES = ("warm", "in turn")
Seconds = dict[str, float]  # of each operation


class Case(NamedTuple):
    """A tensor; what a group has in common is its layout and dtype."""

    shape: tuple[int, ...]
    layout: str
    dtype: str


def cases(images: Sequence[tuple[int, ...]] = IMAGES, tables: Sequence[tuple[int, ...]] = TABLES) -> list[Case]:
    shapes = dict(zip(LAYOUTS, (images, images, tables), strict=True))
    return [Case(shape, layout, dtype) for dtype in DTYPES for layout in LAYOUTS for shape in shapes[layout]]


# --- contestants: each call is one round of its operations, and returns what each took


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    result = call()
    return result, time.perf_counter() - start


def batch_norms(case: Case) -> Callable[[], tuple[Seconds, list[torch.Tensor]]]:
    """`torch.nn.functional.batch_norm` in training, its gradients, and evaluation."""
    generator = torch.Generator().manual_seed(0)
    x, g = (torch.randn(case.shape, generator=generator).to(getattr(torch, case.dtype)) for _ in range(2))
    if case.layout == "channels-last":
        x, g = (t.contiguous(memory_format=torch.channels_last) for t in (x, g))
    C = case.shape[1]
    leaves = (x.requires_grad_(), torch.ones(C, requires_grad=True), torch.zeros(C, requires_grad=True))
    mean_, var = torch.zeros(C), torch.ones(C)
    normalize = torch.nn.functional.batch_norm

    def call() -> tuple[Seconds, list[torch.Tensor]]:
        y, forward = timed(lambda: normalize(x, None, None, *leaves[1:], True))
        gradients, backward = timed(lambda: torch.autograd.grad(y, leaves, g))
        y = y.detach()
        with torch.no_grad():
            z, evaluation = timed(lambda: normalize(x, mean_, var, *leaves[1:], False))
        return dict(zip(OPERATIONS, (forward, backward, evaluation), strict=True)), [y, *gradients, z]

    return call


def memory(case: Case) -> Callable[[], tuple[Seconds, list[torch.Tensor]]]:
    """Reading x, and copying it into memory that exists, by memcpy and past the cache."""
    x = np.ones(int(np.prod(case.shape)) * torch.empty(0, dtype=getattr(torch, case.dtype)).element_size(), np.uint8)
    y = np.ones_like(x)

    def call() -> tuple[Seconds, list[torch.Tensor]]:
        took = {
            "read": timed(lambda: _native.read(x))[1],
            "memcpy": timed(lambda: _native.copy(y, x, False))[1],
            "streaming copy": timed(lambda: _native.copy(y, x, True))[1],
        }
        return took, []

    return call


def verify(case: Case, ours: list[torch.Tensor], stock: list[torch.Tensor]) -> None:
    """A fast wrong answer is not timed."""
    close = 1e-3 if case.dtype == "float32" else 5e-2
    for a, b in zip(ours, stock, strict=True):
        if not bool(((a - b).float().abs() <= close * b.float().abs().max()).all()):
            raise SystemExit(f"{case}: accelerated disagrees with stock")


def measured(case: Case, repeats: int) -> Row:
    call, yardsticks = batch_norms(case), memory(case)
    ways = {"stock": contextlib.nullcontext, "accelerated": bnt.accelerate, "memory": contextlib.nullcontext}
    runs = {"stock": call, "accelerated": call, "memory": yardsticks}
    first = {}
    for way in ("stock", "accelerated"):
        with ways[way]():
            first[way] = call()[1]
    verify(case, first["accelerated"], first["stock"])
    first.clear()
    repeats *= 3 if np.prod(case.shape) < 3_000_000 else 1
    times: dict[str, dict[str, list[Seconds]]] = {mode: {way: [] for way in runs} for mode in MODES}
    gc.disable()
    for mode in MODES:
        for _ in range(repeats):
            for way, run in runs.items():
                with ways[way]():
                    if mode == "warm":
                        run()
                    times[mode][way].append(run()[0])
    gc.enable()
    median = {mode: medians(of) for mode, of in times.items()}
    return {**case._asdict(), "shape": list(case.shape), "median_s": median}


def medians(turns: dict[str, list[Seconds]]) -> dict[str, dict[str, float]]:
    """Way and operation: the median of its turns."""
    return {way: {name: float(np.median([t[name] for t in of])) for name in of[0]} for way, of in turns.items()}


def measure(given: Sequence[Case] | None = None, repeats: int = 9) -> Document:
    keep_memory()
    rows, todo = [], list(cases() if given is None else given)
    with progress_on(sys.stderr, still=True) as progress:
        advance = progress("groups", len(todo))
        for case in todo:
            rows.append(measured(case, repeats))
            advance(1)
    results = document(rows)
    results["machine"]["threads"] = torch.get_num_threads()
    return results


# --- tables


def ratio(row: Row, mode: str, operation: str) -> float:
    """How many times faster than PyTorch."""
    of = row["median_s"][mode]
    return float(of["stock"][operation] / of["accelerated"][operation])


def above_the_least(row: Row, mode: str, operation: str) -> float:
    """Our time in multiples of the least that reading and writing takes, by the same turns."""
    memory_ = row["median_s"][mode]["memory"]
    copy = min(memory_["memcpy"], memory_["streaming copy"])
    least = floor({"times": {name: {"median_s": t} for name, t in memory_.items()}})
    forward, backward = least.near if row["layout"] == "contiguous" else least.far
    passes = {"forward": forward, "backward": backward, "evaluation": 1.0}[operation]
    return float(row["median_s"][mode]["accelerated"][operation] / (passes * copy))


def tables(results: Document) -> dict[str, str]:
    rows = results["rows"]
    return {"groups": summary(rows) + f"\n\n{machine(results)}; geometric means.", "groups-rows": each(rows)}


def summary(rows: list[Row]) -> str:
    """A line for each layout and dtype: times faster than PyTorch, and the worst row."""
    head = [
        "dtype",
        "layout",
        "shapes",
        *(f"{operation}, {mode}" for mode in MODES for operation in OPERATIONS),
        "worst",
    ]
    lines = []
    for dtype in DTYPES:
        for layout in LAYOUTS:
            group = [row for row in rows if (row["dtype"], row["layout"]) == (dtype, layout)]
            if not group:
                continue
            cells = [f"{mean([ratio(r, mode, o) for r in group]):.2f}" for mode in MODES for o in OPERATIONS]
            worst, r, o = min((ratio(r, "warm", o), spelled(r["shape"]), o) for r in group for o in OPERATIONS)
            lines.append([dtype, layout, str(len(group)), *cells, f"{worst:.2f} ({r} {o})"])
    return markdown(head, lines, 2)


def each(rows: list[Row]) -> str:
    """A line for each tensor: ours in milliseconds, times faster than PyTorch, multiples of the least possible."""
    head = ["dtype", "layout", "shape", *(f"{o}, {what}" for o in OPERATIONS for what in ("ms", "faster", "least"))]
    lines = []
    for row in rows:
        cells = []
        for o in OPERATIONS:
            took = row["median_s"]["warm"]["accelerated"][o]
            cells += [digits(took * 1e3), f"{ratio(row, 'warm', o):.2f}", f"{above_the_least(row, 'warm', o):.2f}"]
        lines.append([row["dtype"], row["layout"], spelled(row["shape"]), *cells])
    return markdown(head, lines, 3)
