"""Plain stochastic gradient descent, and what is measured beside it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

import batchnorm.torch as bnt

from .data import Data
from .networks import BATCHES, generator, normalizations

Tensor = torch.Tensor
#: Called with the number of steps done (0 before the first) and the last batch's loss (NaN before the first).
Watch = Callable[[int, float], None]


class Tensors:
    """The data as tensors; ``flat`` gives each image as a row."""

    def __init__(self, data: Data, *, flat: bool = False) -> None:
        def images(of: npt.NDArray[np.float32]) -> Tensor:
            x = torch.tensor(of)  # a copy: its alignment is PyTorch's, whatever NumPy's was
            return x.flatten(1) if flat else x[:, None]

        self.train_x, self.train_y = images(data.train_images), torch.tensor(data.train_labels)
        self.test_x, self.test_y = images(data.test_images), torch.tensor(data.test_labels)


def batches(count: int, size: int, steps: int, seed: int) -> Iterator[Tensor]:
    """Yield the indices of ``steps`` batches: every epoch in a new order; what does not fill a batch is left out."""
    random = generator(seed, BATCHES)
    done = 0
    while done < steps:
        order = torch.randperm(count, generator=random)
        for batch in order[: count - count % size].split(size):
            if done == steps:
                return
            yield batch
            done += 1


def step(model: nn.Module, x: Tensor, y: Tensor, rate: float, *more: Tensor) -> float:
    """One step of gradient descent on one batch; returns the loss before it. ``more`` is for the model."""
    loss = nn.functional.cross_entropy(model(x, *more), y)
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(loss, parameters)
    with torch.no_grad():
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.sub_(gradient, alpha=rate)
    return loss.item()


def train(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    rate: float,
    steps: int,
    batch: int,
    seed: int,
    watch: Watch | None = None,
) -> bool:
    """Train in place, and return whether every loss was finite; after one that was not, nothing is learned any more."""
    model.train()
    loss, whole = math.nan, True
    for i, chosen in enumerate(batches(len(x), batch, steps, seed)):
        if watch is not None:
            watch(i, loss)
        loss = step(model, x[chosen], y[chosen], rate)
        whole = whole and math.isfinite(loss)
    if watch is not None:
        watch(steps, loss)
    return whole


def outputs(model: nn.Module, x: Tensor) -> Tensor:
    """Return what the model gives for ``x`` in evaluation, a thousand samples at a time; its mode stays."""
    was = [(module, module.training) for module in model.modules()]
    model.eval()
    with torch.no_grad():
        result = torch.cat([model(part) for part in x.split(1000)])
    for module, training in was:
        module.training = training
    return result


def right(logits: Tensor, y: Tensor) -> float:
    """Return the percentage of right answers; an output that is not finite is a wrong one."""
    correct = (logits.argmax(1) == y) & logits.isfinite().all(1)
    return 100.0 * int(correct.sum()) / len(y)


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Return the percentage of right answers in evaluation."""
    return right(outputs(model, x), y)


def mean_loss(model: nn.Module, x: Tensor, y: Tensor) -> float | None:
    """Return the mean loss in evaluation; None where it is not finite."""
    return finite(nn.functional.cross_entropy(outputs(model, x), y).item())


def finite(value: float) -> float | None:
    """Return ``value``, or None where it is not a finite number: JSON knows no other."""
    return value if math.isfinite(value) else None


def recalibrate(model: nn.Module, x: Tensor, *, batch: int = 250) -> None:
    """Gather the running statistics anew: the plain average over batches of ``x``, without labels or gradients.

    A network without batch normalization has none, and stays as it is.
    """
    if normalizations(model):
        bnt.recalibrate(model, x.split(batch), how="batches", verbose=False)
