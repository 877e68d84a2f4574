"""Do two pools of threads cost anything? Batch norms between convolutions, and several callers at once.

    python benchmarks/run.py threads

Convolutions run on PyTorch's threads, which spin for a while after each; calls on arrays run on a pool of ours.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

import batchnorm as bn
import batchnorm.torch as bnt
from batchnorm.bench.timing import Runner
from batchnorm.bench.timing import measure as timed
from record import Document, Row, digits, document, machine, markdown, median, seconds, shape

TASKS = Path("/proc/self/task")
Step = Callable[[torch.Tensor], torch.Tensor]


class Sizes(NamedTuple):
    """Of the chain and of the callers' arrays, and how long to measure."""

    shape: tuple[int, ...] = (16, 64, 56, 56)
    layers: int = 4
    callers_shape: tuple[int, ...] = (16, 64, 28, 28)
    rounds: int = 21
    budget: float = 15.0  # seconds, for each number of threads
    callers_seconds: float = 1.5  # for each line


def measure(sizes: Sizes = Sizes()) -> Document:  # noqa: B008  # a tuple
    most = torch.get_num_threads()
    counts = sorted({1, most})
    rows: list[Row] = []
    callers: list[Row] = []
    for count in counts:
        with thread_count(count), torch.no_grad():
            rows.append({"threads": count, "times": chain(sizes)})
            callers += several_callers(sizes, count)
    return document(rows, sizes=sizes._asdict(), callers=callers)


@contextmanager
def thread_count(count: int) -> Iterator[None]:
    """So many threads for PyTorch, and for us."""
    before = torch.get_num_threads(), bn.get_num_threads()
    torch.set_num_threads(count)
    bn.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        bn.set_num_threads(before[1])


# --- between convolutions


def on_arrays(layer: torch.nn.BatchNorm2d) -> Step:
    """The layer's training forward by our function on arrays, without the running statistics."""
    weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()

    def call(x: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(bn.batch_norm(x.numpy(), weight, bias, eps=layer.eps)[0])

    return call


def chain(sizes: Sizes) -> dict[str, dict[str, Any]]:
    """Times of convolutions, of the batch norms that belong between them, and of both in turn."""
    torch.manual_seed(0)
    C = sizes.shape[1]
    x = torch.randn(sizes.shape)
    convolutions = [torch.nn.Conv2d(C, C, 3, padding=1, bias=False) for _ in range(sizes.layers)]
    layer = torch.nn.BatchNorm2d(C, track_running_stats=False)
    inputs = [x]
    for convolution in convolutions[:-1]:
        inputs.append(convolution(inputs[-1]))
    arrays = on_arrays(layer)
    norms: dict[str, tuple[Step, Any]] = {
        "torch": (layer, None), "ours on its threads": (layer, bnt.accelerate), "ours on arrays": (arrays, None)
    }  # fmt: skip

    def run(norm: Step | None) -> torch.Tensor:
        y = x
        for convolution in convolutions:
            y = convolution(y) if norm is None else norm(convolution(y))
        return y

    def alone(norm: Step) -> None:
        for each in inputs:
            norm(each)

    runners = {"convolutions": Runner(lambda: run(None), "torch")}
    results = {}
    for name, (norm, within) in norms.items():
        around = {} if within is None else {"within": within}
        pool = "" if norm is arrays else "torch"
        runners[f"{name}, alone"] = Runner(lambda norm=norm: alone(norm), pool, **around)
        runners[f"{name}, between"] = Runner(lambda norm=norm: run(norm), "torch", **around)
        with runners[f"{name}, between"].within():
            results[name] = run(norm)
    for name, result in results.items():
        off = float((result - results["torch"]).abs().max())
        if not off <= 1e-3:
            raise SystemExit(f"{name} is off by {off}")
    return seconds(timed(runners, sizes.rounds, sizes.budget))


# --- several callers


def several_callers(sizes: Sizes, count: int) -> list[Row]:
    """Calls a second by one Python thread, and by two at once; and how many threads the process has then."""
    arrays = [np.random.default_rng(i).normal(size=sizes.callers_shape).astype(np.float32) for i in range(2)]
    tensors = [torch.from_numpy(a) for a in arrays]
    layer = torch.nn.BatchNorm2d(sizes.callers_shape[1], track_running_stats=False)
    calls: dict[str, Callable[[int], object]] = {
        "ours on arrays": lambda i: bn.batch_norm(arrays[i]),
        "ours on PyTorch's threads": lambda i: layer(tensors[i]),
    }
    rows: list[Row] = []
    for name, call in calls.items():
        with bnt.accelerate():
            one, _ = rate(call, 1, sizes.callers_seconds)
            two, most = rate(call, 2, sizes.callers_seconds)
        rows.append({"what": name, "threads": count, "one": one, "two": two, "process_threads": most})
    return rows


def rate(call: Callable[[int], object], callers: int, least: float) -> tuple[float, int | None]:
    """Calls a second of all callers together, and the process's threads while they called."""
    done, stop = [0] * callers, threading.Event()
    call(0)

    def work(i: int) -> None:
        with torch.no_grad():
            while not stop.is_set():
                call(i)
                done[i] += 1

    workers = [threading.Thread(target=work, args=(i,)) for i in range(callers)]
    start = time.perf_counter()
    for worker in workers:
        worker.start()
    time.sleep(least)
    most = len(os.listdir(TASKS)) if TASKS.exists() else None
    stop.set()
    for worker in workers:
        worker.join()
    return sum(done) / (time.perf_counter() - start), most


# --- tables


def tables(results: Document) -> dict[str, str]:
    """What a batch norm adds to a convolution, beside what it takes alone; and the callers."""
    layers = results["sizes"]["layers"]
    head = ["threads", "a batch norm", "alone, ms", "between convolutions, ms", "a convolution, ms"]
    rows = []
    for row in results["rows"]:
        for key, words in NAMES.items():
            convolution = median(row, "convolutions")
            times = (median(row, f"{key}, alone"), median(row, f"{key}, between") - convolution, convolution)
            rows.append([str(row["threads"]), words, *(f"{t / layers * 1e3:.2f}" for t in times)])
    more = ["threads a call may use", "calls", "by one caller, 1/s", "by two at once, 1/s", "threads in the process"]
    callers = [
        [str(row["threads"]), row["what"], digits(row["one"]), digits(row["two"]), str(row["process_threads"] or "–")]
        for row in results["callers"]
    ]
    s = results["sizes"]
    note = (
        f"{shape(s['shape'])}; callers {shape(s['callers_shape'])}. {machine(results)}; medians of interleaved turns."
    )
    return {"threads": "\n\n".join((markdown(head, rows, 2), markdown(more, callers, 2), note))}


NAMES = {
    "torch": "PyTorch's",
    "ours on its threads": "ours, accelerated: on PyTorch's threads",
    "ours on arrays": "ours on arrays: on our own threads",
}
