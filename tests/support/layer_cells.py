"""Cells of the matrix of options: a layer with options, in a mode, with operands; and what is right for it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import plain_layer
import torch

import batchnorm as bn
import batchnorm.torch as bnt

Tensor = torch.Tensor

C = 3
SHAPE = (4, C, 2)
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "relu": {"activation": "relu"},
    "relu6": {"activation": "relu6"},
    "leaky": {"activation": ("leaky_relu", 0.2)},
    "falling": {"activation": ("leaky_relu", -0.3)},
    "silu": {"activation": "silu"},
    "single": {"on_single_value": "running"},
    "skip": {"on_nonfinite": "skip"},
    "raise": {"on_nonfinite": "raise"},
    "biased": {"running_correction": 0},
    "ghosts": {"virtual_batch_size": 3},
    "renorm": {"renorm": bn.Renorm(1.5, 0.3, start=0, r_end=0, d_end=0)},
    "schedule": {"renorm": bn.Renorm(2.0, 1.0, start=1, r_end=9, d_end=5)},
    "by batch": {"normalize_with": "batch"},
    "by running": {"normalize_with": "running"},
    "updates": {"update_running_stats": True},
    "still": {"update_running_stats": False},
    "constant affine": {"train_affine": False},
    "count": {"keep_count": True},
    "cumulative": {"momentum": None},
    "no affine": {"affine": False},
    "untracked": {"track_running_stats": False},
}
NEEDS_RUNNING = ("renorm", "schedule", "by running", "updates", "count", "single")
SELECTIONS = ("all", "mask", "sample_weight", "both")
LAYERS = (bnt.BatchNorm1d, bnt.SyncBatchNorm)


class Cell(NamedTuple):
    """One layer and one call of it."""

    names: tuple[str, ...]
    training: bool = True
    selection: str = "all"
    residual: bool = False
    dtype: torch.dtype = torch.float64
    kind: Any = bnt.BatchNorm1d

    @property
    def options(self) -> dict[str, Any]:
        """All options of the names together."""
        return {k: v for name in self.names for k, v in OPTIONS[name].items()}

    def layer(self, channels: int = C) -> Any:
        """A new layer that has seen batches."""
        layer = self.kind(channels, **self.options, **{"dtype": self.dtype}).train(self.training)
        with torch.no_grad():
            if layer.weight is not None:
                layer.weight.copy_(torch.linspace(0.5, 2, channels))
                layer.bias.copy_(torch.linspace(-1, 1, channels))
            if layer.running_mean is not None:
                layer.running_mean.copy_(torch.linspace(-0.5, 0.7, channels))
                layer.running_var.copy_(torch.linspace(0.4, 3, channels))
                layer.num_batches_tracked.fill_(3)
            if layer.running_count is not None:
                layer.running_count.fill_(6)
        return layer

    def operands(self, shape: tuple[int, ...] = SHAPE) -> dict[str, Tensor]:
        """x, a residual, a mask, weights: those of the cell; the same values in each call."""
        generator = torch.Generator().manual_seed(1)
        rest = (shape[0], *shape[2:])
        made = {"input": torch.randn(shape, generator=generator, dtype=torch.float64).to(self.dtype) * 2 + 0.5}
        if self.residual:
            made["residual"] = torch.randn(shape, generator=generator, dtype=torch.float64).to(self.dtype)
        if self.selection in ("mask", "both"):
            made["mask"] = torch.rand(rest, generator=generator) < 0.8
            made["mask"] |= torch.arange(rest[-1]) < (2 if len(rest) > 1 else max(2, rest[0] - 1))
        if self.selection in ("sample_weight", "both"):
            made["sample_weight"] = torch.rand(rest, generator=generator, dtype=self.dtype) + 0.5
        return made


def parameters(layer: Any) -> dict[str, Tensor]:
    """Weight and bias, those that there are."""
    return {name: p for name in ("weight", "bias") if (p := getattr(layer, name)) is not None}


def state_of(layer: Any) -> dict[str, Tensor]:
    """Its running statistics, a copy."""
    return {name: t.detach().clone() for name in plain_layer.STATE if (t := getattr(layer, name, None)) is not None}


class Exact(NamedTuple):
    """What is right: y and the state, and the leaves that y is a function of, all in float64."""

    y: Tensor
    state: dict[str, Tensor]
    leaves: dict[str, Tensor]


def exact(layer: Any, operands: dict[str, Tensor]) -> Exact:
    """What a call should give; `plain_layer.Refused` where it should be refused."""
    made = {name: t.detach().double().requires_grad_() for name, t in leaves_of(layer, operands).items()}
    rest = {name: t for name, t in operands.items() if name in ("mask", "sample_weight")}
    found = plain_layer.call(
        plain_layer.known(layer),
        made["input"],
        made.get("weight"),
        made.get("bias"),
        residual=made.get("residual"),
        **rest,
    )
    return Exact(*found, made)


def leaves_of(layer: Any, operands: dict[str, Tensor]) -> dict[str, Tensor]:
    """What gradients are by: input, residual, parameters."""
    return {name: operands[name] for name in ("input", "residual") if name in operands} | parameters(layer)


def goes_together(names: tuple[str, ...]) -> bool:
    """Whether no option is given twice, and what needs running statistics has them."""
    given = [option for name in names for option in OPTIONS[name]]
    return len(set(given)) == len(given) and not ("untracked" in names and set(names) & set(NEEDS_RUNNING))


def cells(everything: bool = False) -> Iterator[Cell]:
    """Each option in each mode with all operands; each pair of options once, with operands in turn, or with all."""
    rest = list(itertools.product((True, False), SELECTIONS, (False, True)))
    for name in OPTIONS:
        for training, selection, residual in rest:
            yield Cell((name,), training, selection, residual)
    pairs = [pair for pair in itertools.combinations(OPTIONS, 2) if goes_together(pair)]
    for i, pair in enumerate(pairs):
        for each in rest if everything else [rest[i * 7 % len(rest)]]:
            yield Cell(pair, *each)
