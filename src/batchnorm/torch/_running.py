"""A layer's running statistics, moved by a table of moments: all of them, or none."""

from __future__ import annotations

from typing import Any

import torch

from .. import _formulas
from .._options import NONFINITE_CODES
from . import _moving, _operations, _paths, _table_operations, _tables

Tensor = torch.Tensor


def move(layer: Any, table: Tensor, ours: bool, weighted: bool) -> None:
    """Move the running statistics of a layer towards moments (4, C), or those of ghosts, (4, G, C), as a whole.

    `weighted`: the counts may be anything.
    """
    if table.dim() == 3:
        table = _table_operations.merge(table) if ours else _tables.merge_moments(table)
    if ours:
        _move_by_kernel(layer, table)
    else:
        _move(layer, table, weighted)


def _move_by_kernel(layer: Any, table: Tensor) -> None:
    buffers = layer._buffers  # found faster than by attributes
    _operations.update_(
        buffers["running_mean"], buffers["running_var"], buffers["num_batches_tracked"], table, layer.momentum,
        layer.running_correction, NONFINITE_CODES[layer.on_nonfinite], buffers.get("running_count"),
    )  # fmt: skip


@torch.no_grad()
def _move(layer: Any, table: Tensor, weighted: bool) -> None:
    """What `batchnorm::update_` does, in PyTorch's operations."""
    who = type(layer).__name__
    own = _moving.Running(layer.running_mean, layer.running_var, layer.num_batches_tracked, layer.running_count)
    if (weighted or layer.momentum is None) and _paths.is_readable(table):
        _moving.check(who, own, table, layer.momentum, layer.running_correction)
    to = _moving.moved(own, table, layer.momentum, layer.running_correction)
    moves = to.finite.all() | (layer.on_nonfinite == "propagate")
    if layer.on_nonfinite == "raise" and not bool(moves):
        raise ValueError(f"{who}: {_moving.not_finite(table, to)}")
    for buffer, value in zip(own, to.running, strict=True):
        if buffer is not None:
            buffer.copy_(torch.where(moves, value, buffer))


def renormalized(layer: Any, table: Tensor, weight: Tensor | None, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Weight and bias that do to xhat what ``(xhat * r + d) * weight + bias`` does; r and d are constants."""
    with torch.no_grad():
        r, d = _correction(layer, table)
    scale = torch.ones_like(r) if weight is None else weight.to(r.dtype)
    shift = torch.zeros_like(d) if bias is None else bias.to(d.dtype)
    return scale * r, shift + scale * d


def _correction(layer: Any, table: Tensor) -> tuple[Tensor, Tensor]:
    """`Renorm.correction`, with limits that follow the tensor `num_batches_tracked`; (C) each, or of ghosts (G, C)."""
    count, mean, low, m2 = table
    running_mean, running_var = map(_operations.as_they_are, (layer.running_mean, layer.running_var))
    limits = _formulas.renorm_limits(torch, layer.renorm, layer.num_batches_tracked.to(m2.dtype))
    distance = (mean - running_mean.to(m2.dtype)) + low
    return _formulas.renorm_factors(torch, limits, layer.eps, distance, m2 / count, running_var.to(m2.dtype))


def variance(layer: Any, correction: int) -> Tensor:
    """The biased (0) or unbiased (1) running variance, in float64."""
    own: Tensor = layer.running_var.double()
    if correction == layer.running_correction:
        return own
    if layer.running_count is None:
        raise ValueError(
            f"{type(layer).__name__}: running_var has correction {layer.running_correction}; the variance with "
            f"correction {correction} needs the counts behind it: keep_count=True"
        )
    n = layer.running_count.double()
    ratio = (n - 1) / n if layer.running_correction else n / (n - 1)
    return torch.where(torch.isinf(n), own, own * ratio)
