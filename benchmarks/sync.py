"""Synchronised batch norm on two processes, beside PyTorch's plain layer with collectives of as many numbers.

    python benchmarks/run.py sync

PyTorch's own SyncBatchNorm refuses the CPU. What it would cost at least: its batch norm, and each way one all_reduce of
O(C) numbers. Each process has half of the batch and its share of the processors.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, multiprocessing, nn

import batchnorm.torch as bnt
from batchnorm.bench.problem import Shape, read_shapes
from batchnorm.bench.timing import summary
from record import Document, Row, digits, document, layout, machine, markdown, median, seconds, shape

HERE = Path(__file__).parent
PROCESSES = 2
Step = Callable[[], Sequence[Tensor]]


class Settings(NamedTuple):
    """How long to measure, and on how many threads in each process."""

    rounds: int = 21
    calls: int = 3
    threads: int = max(1, torch.get_num_threads() // PROCESSES)


def measure(shapes: Sequence[Shape] | None = None, settings: Settings = Settings()) -> Document:  # noqa: B008
    given = shapes if shapes is not None else [s for s in read_shapes(HERE / "shapes" / "variants.txt")]
    context = multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    workers = multiprocessing.spawn(work, (free_port(), given, settings, results), PROCESSES, join=False)
    rows: list[Row] = []
    while not workers.join(timeout=0.1):
        while not results.empty():
            rows.append(results.get())
    while not results.empty():
        rows.append(results.get())
    return document(rows, processes=PROCESSES)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


# --- in each process


def work(rank: int, port: int, shapes: Sequence[Shape], settings: Settings, results: Any) -> None:
    torch.set_num_threads(settings.threads)
    store = dist.TCPStore("127.0.0.1", port, PROCESSES, is_master=rank == 0, timeout=timedelta(minutes=2))
    dist.init_process_group("gloo", store=store, rank=rank, world_size=PROCESSES, timeout=timedelta(minutes=2))
    try:
        for each in shapes:
            for stored in each.layouts:
                times = measured(rank, each.sizes, stored, settings)
                if rank == 0:
                    same = {"shape": list(each.sizes), "layout": stored, "threads": settings.threads}
                    results.put({**same, "times": seconds(times)})
    finally:
        dist.destroy_process_group()


def measured(rank: int, sizes: tuple[int, ...], stored: str, settings: Settings) -> dict[str, Any]:
    """Every rank makes the same calls in the same order; a turn is as long as the slowest rank's."""
    steps = ways(rank, sizes, stored)
    verify(steps["synchronised"](), sizes, stored, rank)
    times: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(settings.rounds):
        for name in list(steps) if number % 2 == 0 else reversed(list(steps)):
            steps[name]()
            dist.barrier()
            start = time.perf_counter()
            for _ in range(settings.calls):
                steps[name]()
            took = torch.tensor((time.perf_counter() - start) / settings.calls, dtype=torch.float64)
            dist.all_reduce(took, dist.ReduceOp.MAX)
            times[name].append(float(took))
    return {name: summary(t, [0.0]) for name, t in times.items()}


class Exchanged(torch.autograd.Function):
    """Nothing, but for one all_reduce of 2 C + 1 numbers forward and one of 2 C backward, as synchronising takes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        dist.all_reduce(torch.zeros(2 * x.shape[1] + 1))
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        dist.all_reduce(torch.zeros(2 * g.shape[1]))
        return g


def ways(rank: int, sizes: tuple[int, ...], stored: str) -> dict[str, Step]:
    C, kind = sizes[1], {2: "BatchNorm1d", 3: "BatchNorm1d", 4: "BatchNorm2d"}[len(sizes)]
    x, g = tensors(sizes, stored)
    x, g = (t.chunk(PROCESSES)[rank].detach() for t in (x, g))
    x.requires_grad_()
    plain, ours = getattr(nn, kind)(C), getattr(bnt, kind)(C)
    return {
        "plain": stepper(plain, x, g),
        "plain and all_reduce": stepper(lambda x: Exchanged.apply(plain(x)), x, g),
        "ours": stepper(ours, x, g),
        "synchronised": stepper(bnt.SyncBatchNorm(C), x, g),
        "reproducible": stepper(bnt.SyncBatchNorm(C, reproducible=True), x, g),
    }


def tensors(sizes: tuple[int, ...], stored: str) -> tuple[Tensor, Tensor]:
    """The whole batch and a gradient, the same in every process."""
    generator = torch.Generator().manual_seed(0)
    x, g = (torch.randn(sizes, generator=generator) for _ in range(2))
    if stored == "contiguous":
        return x, g
    x, g = (t.movedim(1, -1).contiguous().movedim(-1, 1) for t in (x, g))
    return x, g


def stepper(layer: Callable[[Tensor], Tensor], x: Tensor, g: Tensor) -> Step:
    def run() -> Sequence[Tensor]:
        y = layer(x)
        return [y, *torch.autograd.grad(y, [x], g)]

    return run


def verify(results: Sequence[Tensor], sizes: tuple[int, ...], stored: str, rank: int) -> None:
    """A rank's results are its part of those of one process with the whole batch."""
    x, g = tensors(sizes, stored)
    leaf = x.double().requires_grad_()
    y = nn.functional.batch_norm(leaf, None, None, training=True)
    whole = (y, *torch.autograd.grad(y, [leaf], g.double()))
    for name, got, want in zip(("y", "the gradient"), results, whole, strict=True):
        off = float((got.detach() - want.detach().chunk(PROCESSES)[rank]).abs().max())
        if not off <= 1e-4:
            raise SystemExit(f"synchronised {shape(sizes)} {stored}: {name} of rank {rank} is off by {off}")


# --- tables


def tables(results: Document) -> dict[str, str]:
    names = list(results["rows"][0]["times"])[1:]
    rows = [
        [shape(row["shape"]), layout(row), digits(median(row, "plain") * 1e3)]
        + [f"{median(row, name) / median(row, 'plain'):.2f}" for name in names]
        for row in results["rows"]
    ]
    head = ["shape, of all processes", "layout", "PyTorch's, plain, ms", *names]
    note = f"{results['processes']} processes over gloo, each: {machine(results)}. Forward + backward, as multiples of "
    note += "PyTorch's plain layer on each half alone; medians of interleaved turns of the slower process."
    return {"sync": f"{markdown(head, rows, 2)}\n\n{note}"}
