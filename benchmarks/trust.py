"""Reasons to trust: one training in every way, and what PyTorch gets wrong on a CPU beside the truth and ours."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm, cross_entropy
from torch.utils.checkpoint import checkpoint

import batchnorm.torch as bnt
from batchnorm.tools.bench.functions import ACCELERATED, PYTORCH
from batchnorm.tools.bench.problem import CHANNELS_LAST, Problem
from batchnorm.tools.bench.timing import Settings
from batchnorm.tools.why.data import load
from rows import LOSSES

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))
import oracle  # 60 digits, by the formulas

MODULE, CONVERTED, FUSED = "module", "converted", "fused"
ONE_THREAD, OTHER_LAYOUT = "PyTorch, one thread", "PyTorch, channels-last"
BEFORE, RATE = 20, 0.1  # steps before the checkpoint; of all trainings


def row_of(problem: Problem, settings: Settings) -> dict[str, Any]:
    """One row: a training, or one thing that PyTorch gets wrong."""
    return {"times": {}} | (trainings(problem, settings) if problem.what == LOSSES else WRONG[problem.what](problem))


# --- one checkpoint, every way


class Block(nn.Module):
    """A residual block, as networks have it: all that `fuse` looks for."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs)
        self.conv3, self.bn3 = nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(y)) + self.bn3(self.conv3(x)))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(Block(1, 16), Block(16, 32), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


def train(model: nn.Module, batch: int, steps: int, seed: int) -> list[float]:
    """Steps on the digits, and their losses. All that is random comes from the seed."""
    data, dtype = load("digits"), next(model.parameters()).dtype
    images, labels = torch.tensor(data.train_images).to(dtype)[:, None], torch.tensor(data.train_labels)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    random, losses = torch.Generator().manual_seed(seed), []
    for _ in range(steps):
        some = torch.randint(len(images), (batch,), generator=random)
        loss = cross_entropy(model(images[some]), labels[some])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def trainings(problem: Problem, settings: Settings) -> dict[str, Any]:
    """The losses of `settings.rounds` steps: PyTorch's, ours in three ways, and PyTorch's where nothing but rounding
    differs. All begin with the file of one short training; what each has learned goes back into PyTorch's model.
    """
    dtype = getattr(torch, problem.dtype)
    first, file = network().to(dtype), io.BytesIO()
    train(first, problem.shape[0], BEFORE, 1)
    torch.save(first.state_dict(), file)

    def loaded() -> nn.Module:
        file.seek(0)
        model = network().to(dtype)
        model.load_state_dict(torch.load(file))
        return model

    def losses(way: Callable[[nn.Module], nn.Module], threads: int = torch.get_num_threads()) -> list[float]:
        before, model = torch.get_num_threads(), way(loaded())
        torch.set_num_threads(threads)
        try:
            found = train(model, problem.shape[0], settings.rounds, 2)
        finally:
            torch.set_num_threads(before)
        loaded().load_state_dict(model.state_dict())  # strict: the same names and shapes
        return found

    found = {PYTORCH: losses(lambda model: model)}
    with bnt.accelerate():
        found[ACCELERATED] = losses(lambda model: model)
    found[CONVERTED] = losses(lambda model: bnt.convert(model, verbose=False))
    found[FUSED] = losses(lambda model: bnt.fuse(model, verbose=False))
    found[ONE_THREAD] = losses(lambda model: model, threads=1)
    if losses(lambda model: model) != found[PYTORCH]:
        raise SystemExit(f"{problem.title}: after accelerate() PyTorch does not give its own bits again")
    found[OTHER_LAYOUT] = losses(lambda model: model.to(memory_format=torch.channels_last))
    return {"losses": found}


# --- what PyTorch gets wrong


def compared(ways: dict[str, Callable[[], Any]], truth: Any) -> dict[str, Any]:
    """The truth where PyTorch is farthest from it, what each way has there, and the largest error of each."""
    exact, found, off = np.asarray(truth, np.float64), {}, {}
    for who, call in ways.items():
        with bnt.accelerate() if who == ACCELERATED else nullcontext():
            found[who] = np.asarray(call(), np.float64)
        off[who] = np.abs(found[who] - exact)
    at = np.unravel_index(np.argmax(off[PYTORCH]), exact.shape)
    return {
        "truth": float(exact[at]),
        "found": {who: float(values[at]) for who, values in found.items()},
        "off": {who: float(errors.max()) for who, errors in off.items()},
    }


def called(call: Callable[[], Tensor], truth: Any) -> dict[str, Any]:
    """The same call, of PyTorch's kernels and of ours."""
    return compared(dict.fromkeys((PYTORCH, ACCELERATED), lambda: call().detach().numpy()), truth)


def layers(call: Callable[[type[nn.BatchNorm1d]], Any], truth: Any) -> dict[str, Any]:
    """The same done with PyTorch's layer and with ours."""
    return compared({PYTORCH: lambda: call(nn.BatchNorm1d), MODULE: lambda: call(bnt.BatchNorm1d)}, truth)


def drawn(problem: Problem, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """Normal numbers, in the problem's layout."""
    x = (np.random.default_rng(0).standard_normal(problem.shape) * std + mean).astype(problem.dtype)
    t = torch.from_numpy(x)
    return t.to(memory_format=torch.channels_last) if problem.layout == CHANNELS_LAST else t


def specified(x: Tensor, **more: Any) -> oracle.Problem:
    return oracle.Problem(x.detach().numpy(), (1,), **more)


def output(problem: Problem, **data: float) -> dict[str, Any]:
    x = drawn(problem, **data)
    return called(lambda: batch_norm(x, None, None, training=True), oracle.forward(specified(x)).y)


def evaluated(problem: Problem) -> dict[str, Any]:
    x = drawn(problem, mean=1e6)
    mean, var = x.double().mean((0, 2, 3)).float(), torch.ones(x.shape[1])
    one = specified(x)
    truth = oracle.forward(one, oracle.given_statistics(one, [1.0] * len(var), mean.numpy(), var.numpy())).y
    return called(lambda: batch_norm(x, mean, var), truth)


def running(problem: Problem) -> dict[str, Any]:
    x = drawn(problem, mean=1e6)
    count, _, m2 = oracle.statistics(specified(x))
    channels = x.shape[1]

    def call() -> Tensor:
        mean, var = torch.zeros(channels), torch.ones(channels)
        batch_norm(x, mean, var, training=True, momentum=1.0)
        return var

    return called(call, oracle.to_float(m2 / (count - 1)).reshape(channels))


def gradient_of_bias(problem: Problem) -> dict[str, Any]:
    """The sum of the upstream gradient, which is 0.1 everywhere."""
    x, channels = drawn(problem), problem.shape[1]
    grad = torch.full_like(x, 0.1)

    def call() -> Tensor:
        bias = torch.zeros(channels, requires_grad=True)
        batch_norm(x, None, None, torch.ones(channels), bias, training=True).backward(grad)
        return bias.grad

    return called(call, [float(grad.flatten()[0]) * (x.numel() // channels)] * channels)


def gradient_of_weight(problem: Problem) -> dict[str, Any]:
    """Of x.unsqueeze(-1).transpose(1, 2), with a contiguous upstream gradient."""
    n, length, channels = problem.shape
    x = drawn(problem).unsqueeze(-1).transpose(1, 2)
    grad = torch.from_numpy(np.random.default_rng(1).standard_normal((n, channels, length, 1)).astype(np.float32))

    def call() -> Tensor:
        weight = torch.ones(channels, requires_grad=True)
        batch_norm(x, None, None, weight, None, training=True).backward(grad)
        return weight.grad

    one = specified(x, weight=np.ones(channels))
    return called(call, oracle.backward(one, grad.numpy(), oracle.statistics(one)).weight)


def shared_memory(problem: Problem) -> dict[str, Any]:
    """The running variance is the memory of the weight."""
    x = drawn(problem, mean=3.0, std=2.0)
    channels = x.shape[1]

    def call() -> Tensor:
        weight = torch.ones(channels)
        return batch_norm(x, torch.zeros(channels), weight, weight, None, training=True)

    return called(call, oracle.forward(specified(x)).y)


def third_derivative(problem: Problem) -> dict[str, Any]:
    """Of the sum of cubes of the output, along a direction; the oracle takes a difference quotient in 60 digits."""
    x, along = (torch.from_numpy(np.random.default_rng(i).standard_normal(problem.shape)) for i in (0, 1))
    one, ways = specified(x), oracle.exact(along.numpy())

    def exactly(t: Any) -> Any:
        return (oracle.forward_exact(one, oracle.exact(one.x) + t * ways) ** 3).sum()

    def call(layer: type[nn.BatchNorm1d]) -> float:
        at = x.clone().requires_grad_()
        value = layer(problem.shape[1]).double()(at).pow(3).sum()
        for _ in range(3):
            (gradient,) = torch.autograd.grad(value, at, create_graph=True)
            value = (gradient * along).sum()
        return value.item()

    return layers(call, float(oracle.MP.diff(exactly, 0, 3)))


def checkpointed(problem: Problem) -> dict[str, Any]:
    """A running mean after one step under gradient checkpointing: a tenth of the batch's mean."""
    x = drawn(problem, mean=5.0)

    def call(layer: type[nn.BatchNorm1d]) -> Any:
        one = layer(problem.shape[1])
        checkpoint(one, x.clone().requires_grad_(), use_reentrant=False).sum().backward()
        return one.running_mean.numpy()

    return layers(call, oracle.to_float(oracle.statistics(specified(x)).mean * oracle.MP.mpf("0.1"))[0])


def counted(problem: Problem) -> dict[str, Any]:
    """The batches a layer has seen after one that it refused."""

    def call(layer: type[nn.BatchNorm1d]) -> int:
        one = layer(problem.shape[1])
        try:
            one(torch.ones(problem.shape))
        except ValueError:
            return int(one.num_batches_tracked)
        raise SystemExit(f"{problem.title}: {layer} took a batch of one")

    return layers(call, 0)


def bits(problem: Problem) -> dict[str, Any]:
    """The part of the outputs that another memory layout changes."""
    x, other = drawn(problem), drawn(problem._replace(layout=CHANNELS_LAST))

    def call() -> Tensor:
        one, two = (batch_norm(t, None, None, training=True) for t in (x, other))
        return (one != two).double().mean()

    return called(call, 0.0)


WRONG: dict[str, Callable[[Problem], dict[str, Any]]] = {
    "mean 1e4": lambda problem: output(problem, mean=1e4),
    "mean 1e6": lambda problem: output(problem, mean=1e6),
    "values 1e20": lambda problem: output(problem, std=1e20),
    "evaluation": evaluated,
    "running_var": running,
    "bias gradient": gradient_of_bias,
    "weight gradient": gradient_of_weight,
    "shared memory": shared_memory,
    "third derivative": third_derivative,
    "checkpoint": checkpointed,
    "refused batch": counted,
    "layout": bits,
}
