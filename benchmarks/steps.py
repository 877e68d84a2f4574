"""Training steps of whole networks: as they are, accelerated, fused, and compiled; what they save, take and need.

The ways to run a network stand here; end_to_end.py times them, saved.py counts what they keep for the backward.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import nn

import batchnorm.torch as bnt
from published import CLASSES, NETWORKS


class Way(NamedTuple):
    """What is made of a network, and what its steps happen inside of."""

    what: str
    change: Callable[[nn.Module], nn.Module]
    within: Callable[[], AbstractContextManager[Any]] = nullcontext


def _same(model: nn.Module) -> nn.Module:
    return model


def _fused(model: nn.Module) -> nn.Module:
    return bnt.fuse(bnt.convert(model, verbose=False), verbose=False)


def _bare(model: nn.Module) -> nn.Module:
    """Without batch norm and activations: what a step takes at least, however fast these are."""
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, (nn.BatchNorm2d, nn.ReLU, nn.ReLU6)):
                setattr(module, name, nn.Identity())
    return model


def _compiled(model: nn.Module) -> nn.Module:
    compiled: nn.Module = torch.compile(model, dynamic=False)
    return compiled


EAGER = {
    "stock": Way("PyTorch's own", _same),
    "accelerated": Way("`bnt.accelerate()`", _same, bnt.accelerate),
    "fused": Way("and `bnt.fuse(bnt.convert(model))`", _fused, bnt.accelerate),
}
LIMIT = {"limit": Way("without batch norm and activations", _bare)}
COMPILED = {
    "compiled": Way("`torch.compile(model)`", _compiled),
    "fused and compiled": Way("`torch.compile(bnt.fuse(bnt.convert(model)))`", lambda m: _compiled(_fused(m))),
}
WAYS = {**EAGER, **LIMIT, **COMPILED}


class Batch(NamedTuple):
    """Random images and classes."""

    x: torch.Tensor
    classes: torch.Tensor


def batch(count: int, side: int, layout: str) -> Batch:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, 3, side, side, generator=generator)
    return Batch(x.contiguous(memory_format=memory_format(layout)), torch.arange(count) % CLASSES)


def memory_format(layout: str) -> torch.memory_format:
    return torch.channels_last if layout == "channels_last" else torch.contiguous_format


def network(name: str, way: str, layout: str) -> nn.Module:
    """The network in training mode, with the same weights each time."""
    torch.manual_seed(0)
    model = NETWORKS[name]().to(memory_format=memory_format(layout))
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # so that the ways can be compared
    return WAYS[way].change(model.train())


def stepper(model: nn.Module, dtype: str = "float32") -> Callable[[Batch], torch.Tensor]:
    """Forward, backward and an update by SGD with momentum; returns the loss. bfloat16: under autocast."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

    def step(given: Batch) -> torch.Tensor:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = nn.functional.cross_entropy(model(given.x), given.classes)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step
