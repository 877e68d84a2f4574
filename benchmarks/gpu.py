"""Time forward + backward of layers on a GPU: PyTorch's, the same under `accelerate()`, and our modules.

python benchmarks/run.py gpu
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

import batchnorm.torch as bnt
from batchnorm.files.progress import progress_on
from record import Document, Row, digits, document, layout, markdown, shape

SHAPES = ((32, 64, 56, 56), (32, 256, 56, 56), (64, 512, 7, 7))
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
DTYPES = (torch.float32, torch.bfloat16)
CALLS = 30  # in a turn, so that waiting for the device once counts for little

Step = Callable[[], Sequence[torch.Tensor]]


class Stock(torch.nn.Module):
    """PyTorch's layer, and addition and ReLU as models write them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bn = torch.nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.relu(self.bn(x) + residual, inplace=True)


def steps(sizes: tuple[int, ...], kind: str, dtype: torch.dtype, device: str) -> dict[str, Step]:
    """Forward and backward, by way."""
    generator = torch.Generator().manual_seed(0)
    x, g, residual = (
        torch.randn(sizes, generator=generator).to(device, dtype).contiguous(memory_format=LAYOUTS[kind])
        for _ in range(3)
    )
    mask = (torch.rand(sizes[0], *sizes[2:], generator=generator) < 0.9).to(device)
    C = sizes[1]
    ways: dict[str, tuple[torch.nn.Module, Mapping[str, torch.Tensor]]] = {
        "stock": (torch.nn.BatchNorm2d(C), {}),
        "accelerated": (torch.nn.BatchNorm2d(C), {}),
        "module": (bnt.BatchNorm2d(C), {}),
        "module, mask": (bnt.BatchNorm2d(C), {"mask": mask}),
        "compiled module, mask": (bnt.BatchNorm2d(C), {"mask": mask}),
        "stock, add, ReLU": (Stock(C), {"residual": residual}),
        "module, add, ReLU": (bnt.BatchNorm2d(C, activation="relu"), {"residual": residual}),
    }

    def step(way: str, layer: torch.nn.Module, more: Mapping[str, torch.Tensor]) -> Step:
        layer.to(device)
        leaf = x.detach().requires_grad_()
        call = torch.compile(layer) if way.startswith("compiled") and device == "cuda" else layer

        def run() -> Sequence[torch.Tensor]:
            y = call(leaf, **more)
            return y, *torch.autograd.grad(y, [leaf, *layer.parameters()], g)

        return run

    torch.compiler.reset()
    return {way: step(way, *given) for way, given in ways.items()}


def verify(found: dict[str, Sequence[torch.Tensor]]) -> None:
    """A fast wrong answer is not timed."""
    pairs = [
        ("stock", "accelerated"),
        ("stock", "module"),
        ("module, mask", "compiled module, mask"),
        ("stock, add, ReLU", "module, add, ReLU"),
    ]
    for stock, way in pairs:
        for a, b in zip(found[stock], found[way], strict=True):
            assert (a.float() - b.float()).abs().max() <= 1e-2 * b.float().abs().max(), f"{way} disagrees with stock"


def measured(sizes: tuple[int, ...], kind: str, dtype: torch.dtype, device: str, rounds: int) -> Row:
    runs = steps(sizes, kind, dtype, device)
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    times: dict[str, list[float]] = {way: [] for way in runs}
    found = {}
    for turn in range(rounds + 1):  # the first warms up, and is verified
        for way, run in runs.items():
            with bnt.accelerate() if way == "accelerated" else contextlib.nullcontext():
                wait()
                start = time.perf_counter()
                for _ in range(CALLS if turn else 1):
                    found[way] = run()
                wait()
            if turn:
                times[way].append((time.perf_counter() - start) / CALLS)
        if not turn:
            verify(found)
        found.clear()
    return {
        "shape": list(sizes),
        "layout": kind,
        "dtype": str(dtype).removeprefix("torch."),
        "median_s": {way: float(np.median(t)) for way, t in times.items()},
        "quartiles_s": {way: [float(q) for q in np.percentile(t, [25, 75])] for way, t in times.items()},
    }


def measure(shapes: Sequence[tuple[int, ...]] = SHAPES, device: str = "cuda", rounds: int = 11) -> Document:
    """All shapes, layouts and dtypes."""
    if device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("gpu: PyTorch sees no CUDA device")
    problems = [(sizes, kind, dtype) for sizes in shapes for kind in LAYOUTS for dtype in DTYPES]
    rows = []
    with progress_on(sys.stderr, still=True) as progress:
        advance = progress("gpu", len(problems))
        for problem in problems:
            rows.append(measured(*problem, device, rounds))
            advance(1)
    found = document(rows)
    found["machine"]["gpu"] = torch.cuda.get_device_name() if device == "cuda" else device
    return found


def tables(results: Document) -> dict[str, str]:
    """PyTorch's times, and how many times faster the others are."""
    head = [
        "shape",
        "layout",
        "dtype",
        "stock, ms",
        "accelerated",
        "module",
        "module with a mask",
        "the same, compiled",
    ]
    head += ["stock, add, ReLU, ms", "module, all in one call"]
    table = []
    for row in results["rows"]:
        t: dict[str, Any] = row["median_s"]
        cells = [digits(t["stock"] * 1e3), *(f"{t['stock'] / t[way]:.2f}" for way in ("accelerated", "module"))]
        cells += [f"{t['stock'] / t[way]:.2f}" for way in ("module, mask", "compiled module, mask")]
        cells += [digits(t["stock, add, ReLU"] * 1e3)]
        cells += [f"{t['stock, add, ReLU'] / t['module, add, ReLU']:.2f}"]
        table.append([shape(row["shape"]), layout(row), row["dtype"], *cells])
    where = "{gpu}, PyTorch {torch}, commit {commit}".format(**results["machine"])
    return {"gpu": f"{markdown(head, table, 3)}\n\n{where}; medians, forward + backward."}
