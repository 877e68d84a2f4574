"""Reasons to trust: one training in every way, and what PyTorch gets wrong on a CPU beside the truth and ours."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import nullcontext, suppress
from decimal import Decimal
from functools import partial
from typing import Any

import numpy as np
import oracle  # 100 digits, by the formulas
import torch
from mobile import conv_bn
from torch import Tensor, nn
from torch.nn.functional import batch_norm, cross_entropy
from torch.utils.checkpoint import checkpoint

import batchnorm.torch as bnt
from batchnorm.tools.bench.functions import ACCELERATED, PYTORCH
from batchnorm.tools.bench.problem import CHANNELS_LAST, Problem, in_layout
from batchnorm.tools.bench.timing import Settings
from batchnorm.tools.why.data import load
from rows import LOSSES

MODULE, CONVERTED, FUSED = "module", "converted", "fused"
ONE_THREAD, OTHER_LAYOUT = "PyTorch, one thread", "PyTorch, channels-last"
BEFORE, RATE = 20, 0.1  # steps before the checkpoint; of all trainings

Case = tuple[Callable[..., Any], Any]


def row_of(problem: Problem, settings: Settings) -> dict[str, Any]:
    """One row: a training, or one thing that PyTorch gets wrong."""
    if problem.what == LOSSES:
        return {"times": {}, "losses": trainings(problem, settings)}
    if problem.what in FUNCTIONS:
        call, truth = FUNCTIONS[problem.what](problem)
        return {"times": {}, **compared(dict.fromkeys((PYTORCH, ACCELERATED), call), truth)}
    call, truth = LAYERS[problem.what](problem)
    ways = {PYTORCH: nn.BatchNorm1d, MODULE: bnt.BatchNorm1d}
    return {"times": {}, **compared({who: partial(call, layer) for who, layer in ways.items()}, truth)}


# --- one checkpoint, every way


class Block(nn.Module):
    """A residual block, as networks have it: all that `fuse` looks for."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv_bn(inputs, outputs, 3)
        self.conv2, self.bn2 = conv_bn(outputs, outputs, 3)
        self.conv3, self.bn3 = conv_bn(inputs, outputs, 1)
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


def trainings(problem: Problem, settings: Settings) -> dict[str, list[float]]:
    """The losses of `settings.rounds` steps: PyTorch's, ours in three ways, and PyTorch's where nothing but rounding
    differs. All begin with the file of one short training; what each has learned goes back into PyTorch's model.
    """
    dtype, file = getattr(torch, problem.dtype), io.BytesIO()
    first = network().to(dtype)
    train(first, problem.shape[0], BEFORE, 1)
    torch.save(first.state_dict(), file)

    def loaded() -> nn.Module:
        file.seek(0)
        model = network().to(dtype)
        model.load_state_dict(torch.load(file))
        return model

    def losses(way: Callable[[nn.Module], nn.Module] = lambda model: model) -> list[float]:
        model = way(loaded())
        found = train(model, problem.shape[0], settings.rounds, 2)
        loaded().load_state_dict(model.state_dict())  # strict: the same names and shapes
        return found

    found = {PYTORCH: losses()}
    with bnt.accelerate():
        found[ACCELERATED] = losses()
    found[CONVERTED] = losses(lambda model: bnt.convert(model, verbose=False))
    found[FUSED] = losses(lambda model: bnt.fuse(model, verbose=False))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    found[ONE_THREAD] = losses()
    torch.set_num_threads(threads)
    if losses() != found[PYTORCH]:
        raise SystemExit(f"{problem.title}: after accelerate() PyTorch does not give its own bits again")
    found[OTHER_LAYOUT] = losses(lambda model: model.to(memory_format=torch.channels_last))
    return found


# --- what PyTorch gets wrong: of each a call, and the truth


def compared(ways: dict[str, Callable[[], Any]], truth: Any) -> dict[str, Any]:
    """The truth where PyTorch is farthest from it, what each way has there, and the largest error of each."""
    exact, found = np.asarray(truth, np.float64), {}
    for who, call in ways.items():
        with bnt.accelerate() if who == ACCELERATED else nullcontext():
            found[who] = np.asarray(call(), np.float64)
    off = {who: np.abs(values - exact) for who, values in found.items()}
    at = np.unravel_index(np.argmax(off[PYTORCH]), exact.shape)
    return {
        "truth": float(exact[at]),
        "found": {who: float(values[at]) for who, values in found.items()},
        "off": {who: float(errors.max()) for who, errors in off.items()},
    }


def drawn(problem: Problem, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """Normal numbers, in the problem's layout."""
    x = (np.random.default_rng(0).standard_normal(problem.shape) * std + mean).astype(problem.dtype)
    return torch.from_numpy(in_layout(x, problem.layout))


def specified(x: Tensor, **more: Any) -> oracle.Problem:
    return oracle.Problem(x.detach().numpy(), (1,), **more)


def output(problem: Problem, **data: float) -> Case:
    x = drawn(problem, **data)
    return lambda: batch_norm(x, None, None, training=True), oracle.forward(specified(x)).y


def evaluated(problem: Problem) -> Case:
    x, one = drawn(problem, mean=1e6), torch.ones(problem.shape[1])
    mean, exact = x.double().mean((0, 2, 3)).float(), specified(x)
    given = oracle.given_statistics(exact, one.tolist(), mean.numpy(), one.numpy())
    return lambda: batch_norm(x, mean, one), oracle.forward(exact, given).y


def running(problem: Problem) -> Case:
    x, channels = drawn(problem, mean=1e6), problem.shape[1]
    count, _, m2 = oracle.statistics(specified(x))

    def call() -> Tensor:
        var = torch.ones(channels)
        batch_norm(x, torch.zeros(channels), var, training=True, momentum=1.0)
        return var

    return call, oracle.to_float(m2 / (count - 1)).reshape(channels)


def gradient(x: Tensor, grad: Tensor, number: int) -> Tensor:
    """Of the weight, or of the bias."""
    leaves = [make(x.shape[1], requires_grad=True) for make in (torch.ones, torch.zeros)]
    return torch.autograd.grad(batch_norm(x, None, None, *leaves, training=True), leaves, grad)[number]


def gradient_of_bias(problem: Problem) -> Case:
    """The sum of the upstream gradient, which is 0.1 everywhere."""
    x, channels = drawn(problem), problem.shape[1]
    grad = torch.full_like(x, 0.1)
    return lambda: gradient(x, grad, 1), [float(grad.flatten()[0]) * (x.numel() // channels)] * channels


def gradient_of_weight(problem: Problem) -> Case:
    """Of x.unsqueeze(-1).transpose(1, 2), with a contiguous upstream gradient."""
    x = drawn(problem).unsqueeze(-1).transpose(1, 2)
    grad = torch.from_numpy(np.random.default_rng(1).standard_normal(x.shape).astype(np.float32))
    one = specified(x, weight=np.ones(x.shape[1]))
    return lambda: gradient(x, grad, 0), oracle.backward(one, grad.numpy(), oracle.statistics(one)).weight


def shared_memory(problem: Problem) -> Case:
    """The running variance is the memory of the weight."""
    x = drawn(problem, mean=3.0, std=2.0)

    def call() -> Tensor:
        weight = torch.ones(x.shape[1])
        return batch_norm(x, torch.zeros(x.shape[1]), weight, weight, None, training=True)

    return call, oracle.forward(specified(x)).y


def bits(problem: Problem) -> Case:
    """The part of the outputs that another memory layout changes."""
    both = drawn(problem), drawn(problem._replace(layout=CHANNELS_LAST))

    def call() -> Tensor:
        one, two = (batch_norm(x, None, None, training=True) for x in both)
        return (one != two).double().mean()

    return call, 0.0


def third_derivative(problem: Problem) -> Case:
    """Of the sum of cubes of the output, along a direction; the oracle takes a difference quotient in 100 digits."""
    x, along = (torch.from_numpy(np.random.default_rng(i).standard_normal(problem.shape)) for i in (0, 1))
    one, ways, h = specified(x), oracle.exact(along.numpy()), Decimal(10) ** -20

    def exactly(t: Any) -> Any:
        return (oracle.forward_exact(one, oracle.exact(one.x) + t * ways) ** 3).sum()

    def call(layer: type[nn.BatchNorm1d]) -> float:
        at = x.clone().requires_grad_()
        value = layer(problem.shape[1]).double()(at).pow(3).sum()
        for _ in range(3):
            (gradient,) = torch.autograd.grad(value, at, create_graph=True)
            value = (gradient * along).sum()
        return value.item()

    return call, float((exactly(2 * h) - 2 * exactly(h) + 2 * exactly(-h) - exactly(-2 * h)) / (2 * h**3))


def checkpointed(problem: Problem) -> Case:
    """A running mean after one step under gradient checkpointing: a tenth of the batch's mean."""
    x = drawn(problem, mean=5.0)

    def call(layer: type[nn.BatchNorm1d]) -> Tensor:
        one = layer(problem.shape[1])
        checkpoint(one, x.clone().requires_grad_(), use_reentrant=False).sum().backward()
        return one.running_mean

    return call, oracle.to_float(oracle.statistics(specified(x)).mean * Decimal("0.1"))[0]


def counted(problem: Problem) -> Case:
    """The batches a layer has seen after one that it refused."""

    def call(layer: type[nn.BatchNorm1d]) -> int:
        one = layer(problem.shape[1])
        with suppress(ValueError):
            one(torch.ones(problem.shape))
            raise SystemExit(f"{problem.title}: {layer} took a batch of one")
        return int(one.num_batches_tracked)

    return call, 0


FUNCTIONS: dict[str, Callable[[Problem], Case]] = {
    "mean 1e4": partial(output, mean=1e4),
    "mean 1e6": partial(output, mean=1e6),
    "values 1e20": partial(output, std=1e20),
    "evaluation": evaluated,
    "running_var": running,
    "bias gradient": gradient_of_bias,
    "weight gradient": gradient_of_weight,
    "shared memory": shared_memory,
    "layout": bits,
}
LAYERS: dict[str, Callable[[Problem], Case]] = {
    "third derivative": third_derivative,
    "checkpoint": checkpointed,
    "refused batch": counted,
}
