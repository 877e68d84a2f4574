"""A layer's running statistics, moved by a table of moments: all of them, or none."""

from __future__ import annotations

from typing import Any

import torch

from . import _operations, _options, _paths, _table_operations, _tables

Tensor = torch.Tensor


def move(layer: Any, table: Tensor, ours: bool, weighted: bool) -> None:
    """Move the running statistics of a layer towards moments (4, C), or those of ghosts, (4, G, C), as a whole.

    `weighted`: the counts may be anything.
    """
    if table.dim() == 3:
        table = _table_operations.merge(table) if ours else _tables.merge_moments(table)
    if weighted and (layer.keep_count or not ours) and _paths.is_readable(table):
        _check_counts(layer, table[0])
    if not layer.keep_count:
        return _move_by_kernel(layer, table) if ours else _move(layer, table)
    before = layer.running_var.clone(), layer.num_batches_tracked.clone()
    (_move_by_kernel if ours else _move)(layer, table)
    return _move_count(layer, table, *before)


def _move_by_kernel(layer: Any, table: Tensor) -> None:
    buffers = layer._buffers  # found faster than by attributes
    _operations.update_(
        buffers["running_mean"], buffers["running_var"], buffers["num_batches_tracked"], table, layer.momentum,
        layer.running_correction, _options.ON_NONFINITE[layer.on_nonfinite],
    )  # fmt: skip


def _check_counts(layer: Any, count: Tensor) -> None:
    least = 1 if layer.keep_count else layer.running_correction
    if not bool((count > least).all()):
        what = "running_count (keep_count=True)" if layer.keep_count else f"running_var, M2 / (count - {least}),"
        raise ValueError(
            f"{type(layer).__name__}: {what} needs weights that sum to more than {least}; got a sum of "
            f"{float(count.min()):g}. Scale the weights (only their ratios matter for the output)"
            + ("" if layer.keep_count else ", or use running_correction=0")
        )


@torch.no_grad()
def _move(layer: Any, table: Tensor) -> None:
    """What `batchnorm::update_` does, in PyTorch's operations."""
    count, mean, _, m2 = table
    finite = torch.isfinite(mean).all() & torch.isfinite(m2).all()
    if layer.on_nonfinite == "raise" and not bool(finite):
        raise ValueError(
            f"{type(layer).__name__}: the batch's mean or variance is not finite; running statistics are left as they "
            "were (on_nonfinite='raise')"
        )
    moves = finite | (layer.on_nonfinite == "propagate")
    batches = layer.num_batches_tracked + moves.to(layer.num_batches_tracked.dtype)
    a = 1.0 / batches.to(mean.dtype) if layer.momentum is None else layer.momentum
    for running, value in ((layer.running_mean, mean), (layer.running_var, m2 / (count - layer.running_correction))):
        running.copy_(torch.where(moves, a * value + (1 - a) * running.to(mean.dtype), running.to(mean.dtype)))
    layer.num_batches_tracked.copy_(batches)


@torch.no_grad()
def _move_count(layer: Any, table: Tensor, var: Tensor, batches: Tensor) -> None:
    """Move running_count, after the others, with what they were before.

    The unbiased running variance and the biased one are averages with the same weights, so the gap between them is one,
    too: it moves towards ``M2 / (m (m - 1))``, and the count is the unbiased one divided by it.
    """
    count, _, _, m2 = table
    rest = 1 - layer.running_correction
    a = 1.0 / layer.num_batches_tracked.to(m2.dtype) if layer.momentum is None else layer.momentum
    old = var.to(m2.dtype)
    gap = (1 - a) * (old / (layer.running_count - rest)) + a * (m2 / (count * (count - 1)))
    moved = (1 - a) * old + a * (m2 / (count - layer.running_correction))
    new = torch.where(gap == 0, torch.inf, moved / gap + rest)
    moves = layer.num_batches_tracked != batches
    layer.running_count.copy_(torch.where(moves, new.to(layer.running_count.dtype), layer.running_count))


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
    sigma = (running_var.to(m2.dtype) + layer.eps).sqrt()
    r = (m2 / count + layer.eps).sqrt() / sigma
    d = ((mean - running_mean.to(m2.dtype)) + low) / sigma
    renorm = layer.renorm
    r_max = 1 + (float(renorm.r_max) - 1) * _grown(layer.num_batches_tracked, renorm.start, renorm.r_end, m2.dtype)
    d_max = float(renorm.d_max) * _grown(layer.num_batches_tracked, renorm.start, renorm.d_end, m2.dtype)
    plain = (r_max == 1) & (d_max == 0)  # whatever the running statistics are
    r, d = torch.clamp(r, 1 / r_max, r_max), torch.clamp(d, -d_max, d_max)
    return torch.where(plain, 1.0, r), torch.where(plain, 0.0, d)


def _grown(step: Tensor, start: int, end: int, dtype: torch.dtype) -> Tensor:
    if end == start:
        return (step >= end).to(dtype)
    return torch.clamp((step - start).to(dtype) / (end - start), 0.0, 1.0)


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
