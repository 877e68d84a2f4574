"""Kinds of layers, contexts over small models of them, and all that may change in a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import batchnorm as bn
import batchnorm.torch as bnt


class Activated(nn.BatchNorm2d):
    """As timm's BatchNormAct2d: a class of its own, with torch.nn's forward and an activation."""

    def forward(self, x: Tensor) -> Tensor:
        factor = 0.0 if self.momentum is None else self.momentum
        if self.training and self.track_running_stats:
            self.num_batches_tracked.add_(1)
            factor = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        by_batch = self.training or (self.running_mean is None and self.running_var is None)
        used = not self.training or self.track_running_stats
        mean, var = (self.running_mean, self.running_var) if used else (None, None)
        return F.relu(F.batch_norm(x, mean, var, self.weight, self.bias, by_batch, factor, self.eps))


def _frozen(layer: Any) -> Any:
    layer.weight.requires_grad_(False)
    return layer


KINDS: dict[str, Callable[[], nn.Module]] = {
    "torch.nn": lambda: nn.BatchNorm2d(3),
    "torch.nn, all batches": lambda: nn.BatchNorm2d(3, momentum=None),
    "torch.nn, without statistics": lambda: nn.BatchNorm2d(3, track_running_stats=False),
    "torch.nn, float64": lambda: nn.BatchNorm2d(3, dtype=torch.float64),
    "of its own": lambda: Activated(3),
    "of its own, all batches": lambda: Activated(3, momentum=None),
    "ours": lambda: bnt.BatchNorm2d(3, activation="relu"),
    "ours, all batches": lambda: bnt.BatchNorm2d(3, momentum=None, keep_count=True, running_correction=0),
    "ours, without statistics": lambda: bnt.BatchNorm2d(3, track_running_stats=False),
    "ours, ghosts": lambda: bnt.BatchNorm2d(3, virtual_batch_size=2, on_nonfinite="raise"),
    "ours, renorm": lambda: bnt.BatchNorm2d(3, renorm=bn.Renorm(start=0)),
    "ours, moves always": lambda: bnt.BatchNorm2d(3, update_running_stats=True),
    "ours, running": lambda: bnt.BatchNorm2d(3, normalize_with="running"),
    "converted": lambda: bnt.convert(nn.BatchNorm2d(3), verbose=False),
    "converted, frozen": lambda: _frozen(bnt.convert(nn.BatchNorm2d(3), verbose=False)),
    "synchronized": lambda: bnt.convert_sync(nn.BatchNorm2d(3), verbose=False),
}


MASK = torch.ones(5, 4, 2, dtype=torch.bool)
MASK[:, 3], MASK[1, 1] = False, False
CONTEXTS: dict[str, Callable[[nn.Module], Any]] = {
    "hold": bnt.hold,
    "masked": lambda model: bnt.masked(model, MASK, zero=True),
    "one_update": bnt.one_update,
    "adapt": lambda model: bnt.adapt(model, 30),
}


def serves(context: str, kind: str) -> bool:
    """Whether a context takes layers of a kind."""
    return context != "masked" or not kind.startswith(("torch.nn", "of its own"))


def x_of(seed: int = 0, offset: float = 0.0) -> Tensor:
    return torch.randn(5, 3, 4, 2, generator=torch.Generator().manual_seed(seed)) + offset


def model_of(kind: str) -> nn.Module:
    """Two layers that have seen some batches, between others."""
    one, two = KINDS[kind](), KINDS[kind]()
    model = nn.Sequential(nn.Conv2d(3, 3, 1), one, nn.Sequential(nn.Conv2d(3, 3, 1), two))
    model.to(one.weight.dtype)
    for seed in range(3):
        model(x_of(seed, 2.0).to(model[0].weight.dtype))
    return model


def bits_of(model: nn.Module) -> dict[str, bytes]:
    return {name: t.numpy().tobytes() for name, t in model.state_dict().items()}


def attributes_of(model: nn.Module) -> list[dict[str, Any]]:
    of_all = {*vars(nn.Module()), "_is_torch_compile"}  # and may change with a forward
    return [{k: v for k, v in vars(m).items() if k == "training" or k not in of_all} for m in model.modules()]


def outcome_of(model: nn.Module, seed: int = 9, run: Callable[[Tensor], Tensor] | None = None) -> list[Tensor]:
    """y, and the gradients of x and of all parameters that have one; of the model, or of what runs it."""
    x = x_of(seed).to(model[0].weight.dtype).requires_grad_()
    y = (run or model)(x)
    wanted = [x, *(p for p in model.parameters() if p.requires_grad)]
    return [y.detach(), *torch.autograd.grad(y.square().sum(), wanted)]


def same(found: list[Tensor], expected: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
