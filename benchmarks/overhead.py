"""Microseconds that a call takes beyond its kernel, on inputs so small that little else is left.

    python benchmarks/run.py overhead

The kernel is the call of `_native` that the function itself made, recorded and repeated with the same arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch

import batchnorm as bn
import batchnorm.torch as bnt
from batchnorm import _usual, functional
from batchnorm.bench.timing import Runner
from batchnorm.bench.timing import measure as timed
from record import Document, Row, document, machine, markdown, median, seconds, shape

Call = Callable[[], Any]


class Sizes(NamedTuple):
    """What is called on, and how long to measure."""

    shapes: tuple[tuple[int, int], ...] = ((5, 5), (32, 64))
    rounds: int = 101
    budget: float = 30.0  # seconds, for each shape and front end


def measure(sizes: Sizes = Sizes()) -> Document:  # noqa: B008  # a tuple
    rows: list[Row] = []
    for each in sizes.shapes:
        arrays = numpy_calls(each)
        runners = {}
        for name, call in arrays.items():
            runners[name] = Runner(call, "")
            runners[f"{name}, kernel"] = Runner(kernel_of(call), "")
        rows.append(_row("NumPy", each, runners, sizes))
        rows.append(_row("PyTorch", each, torch_runners(each), sizes))
    return document(rows, threads=torch.get_num_threads())


def _row(front: str, sizes: tuple[int, int], runners: dict[str, Runner], settings: Sizes) -> Row:
    times = seconds(timed(runners, settings.rounds, settings.budget))
    return {"front": front, "shape": list(sizes), "threads": torch.get_num_threads(), "times": times}


# --- on arrays


def numpy_calls(sizes: tuple[int, int]) -> dict[str, Call]:
    rng = np.random.default_rng(0)
    x, g = (rng.normal(size=sizes).astype(np.float32) for _ in range(2))
    weight, bias = (rng.uniform(0.5, 1.5, sizes[1]).astype(np.float32) for _ in range(2))
    m = bn.moments(x)
    layer = bn.BatchNorm1d(sizes[1])
    layer(x)
    return {
        "batch_norm": lambda: bn.batch_norm(x, weight, bias),
        "normalize": lambda: bn.normalize(x, m, weight, bias),
        "batch_norm_backward": lambda: bn.batch_norm_backward(g, x, m, weight, bias),
        "layer": lambda: layer(x),
        "layer.backward": lambda: layer.backward(g),
    }


class Recorder:
    """Stands in for `_native` and keeps the last call that went to one of its kernels."""

    def __init__(self, native: Any) -> None:
        self.native = native
        self.last: tuple[Callable[..., Any], tuple[Any, ...]] | None = None

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.native, name)
        if name not in ("forward", "backward"):
            return found

        def recorded(*arguments: Any) -> Any:
            self.last = found, arguments
            return found(*arguments)

        return recorded


@contextmanager
def recording() -> Iterator[Recorder]:
    """Record kernels. Usual calls are checked and computed in one native step, so here none is usual: then functions
    go the long way, whose last step is the kernel alone.
    """
    native: Any = functional._native
    usual = _usual._forward, _usual._backward
    recorder: Any = Recorder(native)
    functional._native = recorder
    _usual._forward = _usual._backward = lambda *_: False
    try:
        yield recorder
    finally:
        functional._native = native
        _usual._forward, _usual._backward = usual


def kernel_of(call: Call) -> Call:
    """The call of the kernel that a function makes."""
    with recording() as recorder:
        call()
    if recorder.last is None:
        raise SystemExit("no kernel was called: the functions no longer find it in functional._native")
    kernel, arguments = recorder.last
    # A result's statistics are locked once the function has them; here they are written in every repetition.
    mine = [a.copy() if isinstance(a, np.ndarray) and not a.flags.writeable else a for a in arguments]
    return lambda: kernel(*mine)


# --- through PyTorch


def torch_runners(sizes: tuple[int, int]) -> dict[str, Runner]:
    """PyTorch's layer and function; the same accelerated; our module."""
    generator = torch.Generator().manual_seed(0)
    x, g = (torch.randn(sizes, generator=generator) for _ in range(2))
    leaf = x.clone().requires_grad_()
    C = sizes[1]
    mean, var = torch.zeros(C), torch.ones(C)
    weight, bias = torch.ones(C), torch.zeros(C)

    def function() -> torch.Tensor:
        with torch.no_grad():
            return torch.nn.functional.batch_norm(x, mean, var, weight, bias, training=True)

    def trained(layer: torch.nn.Module) -> Call:
        parameters = [leaf, *layer.parameters()]
        return lambda: torch.autograd.grad(layer(leaf), parameters, g)

    stock, ours = trained(torch.nn.BatchNorm1d(C)), trained(bnt.BatchNorm1d(C))
    return {
        "F.batch_norm": Runner(function, "torch"),
        "F.batch_norm, accelerated": Runner(function, "torch", bnt.accelerate),
        "layer, forward + backward": Runner(stock, "torch"),
        "layer, forward + backward, accelerated": Runner(stock, "torch", bnt.accelerate),
        "layer, forward + backward, our module": Runner(ours, "torch"),
    }


# --- tables


def tables(results: Document) -> dict[str, str]:
    arrays, layers = [], []
    for row in results["rows"]:
        for name in row["times"]:
            micro = median(row, name) * 1e6
            if row["front"] == "NumPy" and not name.endswith(", kernel"):
                kernel = median(row, f"{name}, kernel") * 1e6
                cells = (f"{micro:.1f}", f"{kernel:.1f}", f"{micro - kernel:.1f}")
                arrays.append([shape(row["shape"]), f"`{name}`", *cells])
            if row["front"] == "PyTorch":
                stock = median(row, ", ".join(p for p in name.split(", ") if p not in ("accelerated", "our module")))
                layers.append([shape(row["shape"]), name, f"{micro:.1f}", f"{stock * 1e6 / micro:.2f}"])
    text = [
        markdown(["array", "call", "µs", "kernel, µs", "beyond it, µs"], arrays, 2),
        markdown(["tensor", "call", "µs", "times faster"], layers, 2),
        f"{machine(results, results['threads'])}; medians.",
    ]
    return {"overhead": "\n\n".join(text)}
