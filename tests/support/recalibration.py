"""Models to recalibrate, and what recalibration means: each definition once more, in a few plain lines."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import batchnorm.torch as bnt


class Activated(nn.BatchNorm1d):
    """As timm's BatchNormAct2d: a forward of its own, with an activation after PyTorch's function."""

    def forward(self, x: Tensor) -> Tensor:
        use_batch = self.training or self.running_mean is None
        mean, var = self.running_mean, self.running_var
        return nn.functional.batch_norm(x, mean, var, self.weight, self.bias, use_batch, 0.1, self.eps).relu()


class LastAxis(nn.BatchNorm1d):
    """Channels last: what is normalized is not what it is called with."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


class Branches(nn.Module):
    """Two branches of different depth, joined; dropout before a normalization; one that is applied to a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(3, 4)
        self.left = nn.Sequential(bnt.BatchNorm1d(4, activation="relu"), nn.Linear(4, 4), nn.BatchNorm1d(4))
        self.right = nn.Sequential(nn.Dropout(0.5), Activated(4))
        self.head = nn.Sequential(nn.SyncBatchNorm(4), nn.Linear(4, 2), bnt.BatchNorm1d(2, keep_count=True))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(self.left(x) + self.right(x))


class Tokens(nn.Module):
    """A small encoder of sequences: attention, normalizations over (N, L, C) and over (N, C, L) with a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.norm1, self.norm2 = LastAxis(4), bnt.BatchNorm1d(4, running_correction=0)
        self.feed = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Dropout(0.3), nn.Linear(8, 4))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.norm1(x + self.attention(x, x, x, key_padding_mask=~mask)[0])
        return self.norm2((x + self.feed(x)).transpose(1, 2), mask)


class Keeps(nn.Module):
    """Keeps a value on itself between its layers: threads that wait for each other would overwrite it."""

    def __init__(self) -> None:
        super().__init__()
        self.bn1, self.bn2, self.mix = nn.BatchNorm1d(3), nn.BatchNorm1d(3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        self.kept = self.bn1(x)
        y = self.bn2(self.mix(x).relu())
        return y + self.kept


def dense(n: int, seed: int = 0, channels: int = 3) -> Tensor:
    """Samples of several scales, one far from 0."""
    x = torch.randn(n, channels, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x * torch.tensor([1.0, 30.0, 0.01][:channels]) + torch.tensor([0.0, 5.0, 1e4][:channels])


def filled(model: nn.Module, seed: int = 0) -> nn.Module:
    """Float64, in training, with parameters and statistics that are no defaults."""
    generator = torch.Generator().manual_seed(seed)
    model = model.double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64) * 0.5 + (p.dim() == 1) * 0.8)
        for layer in norms(model).values():
            if layer.running_mean is None:
                continue
            layer.running_mean.fill_(0.7)
            layer.running_var.fill_(2.5)
            layer.num_batches_tracked.fill_(7)
    return model


def norms(model: nn.Module) -> dict[str, Any]:
    return {name: module for name, module in model.named_modules() if isinstance(module, _BatchNorm)}


def statistics(model: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    return {name: (layer.running_mean.clone(), layer.running_var.clone()) for name, layer in norms(model).items()}


def everything(model: nn.Module) -> dict[str, Any]:
    """All that must not change: tensors by bits, and attributes, hooks, modes and generators."""
    found: dict[str, Any] = {name: t.detach().numpy().tobytes() for name, t in model.state_dict().items()}
    for name, module in model.named_modules():
        for key, value in module.__dict__.items():
            if key in ("_parameters", "_buffers", "_modules"):
                found[f"{name}/{key}"] = {k: id(v) for k, v in value.items()}
            else:
                found[f"{name}/{key}"] = dict(value) if isinstance(value, dict) else value
    numpy = np.random.get_state()[1].tobytes()  # noqa: NPY002
    return found | {"torch": torch.get_rng_state().numpy().tobytes(), "numpy": numpy, "random": random.getstate()}


# --- each definition once more ---


class Oracle:
    """Statistics of the data by one layer after the other: a forward of all samples at once, up to each layer."""

    def __init__(self, model: nn.Module, calls: list[Callable[[nn.Module], Any]]) -> None:
        self.model = copy.deepcopy(model).eval()
        self.calls = calls

    def _gathered(self, layer: Any) -> list[Tensor]:
        """The positions that count, (n, C), of every call of a layer in every batch."""
        found = []

        def see(module: Any, args: tuple[Any, ...], kwargs: Any, _: Any) -> None:
            x, mask = args[0], args[1] if len(args) > 1 else kwargs.get("mask")
            x = x if isinstance(module, LastAxis) else x.movedim(1, -1)
            found.append(x[mask] if mask is not None else x.reshape(-1, x.shape[-1]))

        handle = layer.register_forward_hook(see, with_kwargs=True)
        with torch.no_grad():
            for call in self.calls:
                call(self.model)
        handle.remove()
        return found

    def whole(self) -> dict[str, tuple[Tensor, Tensor]]:
        order: list[Any] = []
        handles = [m.register_forward_hook(lambda m, *_: order.append(m)) for m in norms(self.model).values()]
        with torch.no_grad():
            self.calls[0](self.model)
        for handle in handles:
            handle.remove()
        for layer in order:
            x = torch.cat(self._gathered(layer))
            layer.running_mean.copy_(x.mean(0))
            layer.running_var.copy_(x.var(0, correction=getattr(layer, "running_correction", 1)))
        return statistics(self.model)

    def by_batch(self, how: str) -> dict[str, tuple[Tensor, Tensor]]:
        """All layers with the batch's statistics, which a forward in training gives them."""
        for layer in norms(self.model).values():
            layer.train()
        found = {}
        for name, layer in norms(self.model).items():
            xs = self._gathered(layer)
            correction = getattr(layer, "running_correction", 1)
            if how == "pooled":
                found[name] = torch.cat(xs).mean(0), torch.cat(xs).var(0, correction=correction)
            else:
                means, variances = [x.mean(0) for x in xs], [x.var(0, correction=correction) for x in xs]
                found[name] = torch.stack(means).mean(0), torch.stack(variances).mean(0)
        return found


def recalibrate(model: nn.Module, data: Any, **options: Any) -> Any:
    return bnt.recalibrate(model, data, verbose=False, **options)


def assert_close(found: Any, expected: Any, tolerance: float = 1e-12) -> None:
    assert found.keys() == expected.keys()
    for name, (mean, var) in expected.items():
        std = var.sqrt()
        assert torch.allclose(found[name][1], var, rtol=10 * tolerance, atol=0), name
        assert bool(((found[name][0] - mean).abs() <= 10 * tolerance * (std + mean.abs())).all()), name
