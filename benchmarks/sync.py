"""Synchronized batch norm on two processes, beside PyTorch's plain layer with collectives of as many numbers.

PyTorch's own SyncBatchNorm refuses the CPU. What it would cost at least: its batch norm, and each way one all_reduce of
O(C) numbers. Each process has half of the batch and its share of the processors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from ranks import Failed, Ranks
from torch import Tensor, nn
from torch.nn.functional import batch_norm

import batchnorm.torch as bnt
from batchnorm.tools.bench.functions import PYTORCH
from batchnorm.tools.bench.problem import Problem, check
from batchnorm.tools.bench.timing import Contestant, Settings, Times, measure
from layers import STEP, of_rank, stepper, tensors

PROCESSES = 2
REDUCED, OURS, SYNCHRONIZED, REPRODUCIBLE = "PyTorch and all_reduce", "ours", "synchronized", "reproducible"


def row_of(problem: Problem, settings: Settings) -> dict[str, Any]:
    """Let two processes measure; the times are those of the slower one."""
    both, threads = Ranks(PROCESSES, []), max(1, torch.get_num_threads() // PROCESSES)
    try:
        first, second = both.run(measured, *([given] * PROCESSES for given in (threads, problem, settings)))
    finally:
        both.close()
    for failed in (result for result in (first, second) if isinstance(result, Failed)):
        raise failed
    slower = {
        who: {step: {mode: max(t, second[who][step][mode]) for mode, t in modes.items()} for step, modes in s.items()}
        for who, s in first.items()
    }
    return {"times": slower}


def measured(rank: int, threads: int, problem: Problem, settings: Settings) -> Times:
    """In one process: all make the same calls in the same order."""
    torch.set_num_threads(threads)
    x, g = (t.chunk(PROCESSES)[rank].detach() for t in tensors(problem, 2))
    steps = {who: stepper(layer, [x.requires_grad_()], g) for who, layer in layers(problem).items()}
    for who in (SYNCHRONIZED, REPRODUCIBLE):
        verify(steps[who](), problem, rank)
    return measure({who: Contestant({STEP: step}, "torch") for who, step in steps.items()}, settings)


class Exchanged(torch.autograd.Function):
    """Nothing, but for one all_reduce of 2 C + 1 numbers forward and one of 2 C backward, as synchronizing takes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        dist.all_reduce(torch.zeros(2 * x.shape[1] + 1))
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        dist.all_reduce(torch.zeros(2 * g.shape[1]))
        return g


def layers(problem: Problem) -> dict[str, Callable[[Tensor], Tensor]]:
    C = problem.shape[1]
    plain = of_rank(nn, problem)(C)
    return {
        PYTORCH: plain,
        REDUCED: lambda x: Exchanged.apply(plain(x)),
        OURS: of_rank(bnt, problem)(C),
        SYNCHRONIZED: bnt.SyncBatchNorm(C),
        REPRODUCIBLE: bnt.SyncBatchNorm(C, reproducible=True),
    }


def verify(results: Sequence[Tensor], problem: Problem, rank: int) -> None:
    """A rank's results are its part of those of one process with the whole batch."""
    x, g = (t.double() for t in tensors(problem, 2))
    whole = stepper(lambda x: batch_norm(x, None, None, training=True), [x.requires_grad_()], g)()
    for name, got, want in zip(("y", "the gradient"), results, whole, strict=True):
        part = want.detach().chunk(PROCESSES)[rank].numpy()
        check(f"synchronized, {problem.title}: {name} of rank {rank}", got.detach().numpy(), part, 1e-4)
