"""What `operations.cpp` and `fused_calls.cpp` do, in Python: our operations on NumPy's view of memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from .. import _native
from . import _memory, _moving, _options, _positions

Tensor = torch.Tensor


def _check_operands(
    x: Tensor, like_x: tuple[Tensor | None, ...], parameters: tuple[Tensor | None, ...],
    statistics: tuple[Tensor | None, ...] = (), group: int = 0,
) -> None:  # fmt: skip
    """The rules of `refused_operands` of fused_calls.cpp, in its words."""
    if not _memory.readable(x, *like_x, *parameters, *statistics):
        raise ValueError(
            "batch_norm: tensors must be strided, on the CPU, and float64, float32, float16, bfloat16 or bool"
        )
    if group < 0:
        raise ValueError(f"batch_norm: group must be the samples of one, at least 1, or 0 for all; got {group}")
    if any(t is not None and (t.shape != x.shape or t.dtype != x.dtype) for t in like_x):
        raise ValueError("batch_norm: residual, y and grad_y must have x's shape and dtype")
    C = x.shape[1]
    shapes = [(C,), (_groups(x, group), C)] if group else [(C,)]
    fits = all(t is None or t.shape in shapes for t in parameters)
    if not fits or any(t is not None and t.shape != (C,) for t in statistics):
        raise ValueError(
            f"batch_norm: x has {C} channels; weight, bias and running statistics must have a value for each"
        )


def _check_y(x: Tensor, y: Tensor | None, residual: Tensor | None, activation: int, slope: float) -> None:
    """The rules of `refused_y`, in its words."""
    if y is None:
        return
    if residual is not None:
        raise ValueError("batch_norm: y stands for the residual: give one of them")
    if not _options.is_told_by_y(x.dtype, activation, slope):
        raise ValueError(
            "batch_norm: y tells the derivative of relu, relu6 and leaky_relu of positive slope, in float32 and "
            "float64; for others give the residual"
        )


def _groups(x: Tensor, group: int) -> int:
    return -(-x.shape[0] // group)


def _check_table(x: Tensor, table: Tensor, rows: int, group: int) -> None:
    """The rules of `refused_table`, in its words."""
    groups = (_groups(x, group),) if group else ()
    if table.dtype != torch.float64 or table.shape != (rows, *groups, x.shape[1]):
        raise ValueError(
            "batch_norm: stats must be the table that forward returned"
            if rows == 4
            else "batch_norm: the sums must be a table of two rows, as sums returns it"
        )


def _check_weights(x: Tensor, weights: Tensor | None, group: int, least: int) -> None:
    """The rules of `refused_weights`, in its words."""
    if weights is None:
        return
    if weights.shape[1] != 1 or any(n not in (1, m) for n, m in zip(weights.shape, x.shape, strict=True)):
        raise ValueError("batch_norm: weights must be bool, float32 or float64 and broadcast to x, with one channel")
    if least >= 0 and x.numel() and (words := _positions.refused(x, weights, group, least)):
        raise ValueError("batch_norm: " + words)  # below 0: what a forward took is not looked through again


def forward(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, running_mean: Tensor | None, running_var: Tensor | None,
    weights: Tensor | None, residual: Tensor | None, eps: float, activation: int, slope: float,
    stats: Tensor | None = None, group: int = 0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """`batchnorm::forward`."""
    _check_operands(x, (residual,), (weight, bias), (running_mean, running_var), group)
    if (running_mean is None) != (running_var is None):
        raise ValueError("batch_norm: running_mean and running_var go together")
    _check_weights(x, weights, group, 2)
    y, computes = torch.empty_like(x), running_mean is None and stats is None
    if running_mean is not None and running_var is not None:
        if stats is not None or group:
            raise ValueError(
                "batch_norm: running statistics normalise the whole batch: give no stats and no group with them"
            )
        table = _memory.given(running_mean, running_var)
    elif stats is not None:
        _check_table(x, stats, 4, group)
        table = np.array(stats.detach().numpy())
    else:
        table = np.empty((4, *((_groups(x, group),) if group else ()), x.shape[1]))
    _memory.run_forward(
        x, y, weight, bias, weights if computes else None, residual, table, computes, eps, (activation, slope), group
    )
    return y, torch.from_numpy(table)


def backward(
    grad_y: Tensor, x: Tensor, stats: Tensor, weight: Tensor | None, bias: Tensor | None, weights: Tensor | None,
    residual: Tensor | None, eps: float, activation: int, slope: float, training: bool, group: int = 0,
    y: Tensor | None = None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """`batchnorm::backward`."""
    _check_operands(x, (grad_y, residual, y), (weight, bias), (), group)
    _check_y(x, y, residual, activation, slope)
    _check_table(x, stats, 4, group)
    _check_weights(x, weights, group, -1)
    grad_x = torch.empty_like(x)
    absent = residual is None and y is None
    grad_residual = x.new_empty(0) if absent else torch.empty_like(x)
    sums = _memory.run_backward(
        grad_y, x, grad_x, np.array(stats.detach().numpy()), weight, bias, weights, residual,
        None if absent else grad_residual, eps, (activation, slope), training, group, None, y,
    )  # fmt: skip
    merged = merge(sums) if group else sums
    by = [
        (merged if p is None or p.dim() == 1 else sums)[i].to(torch.float64 if p is None else p.dtype, copy=True)
        for i, p in enumerate((weight, bias))
    ]
    return grad_x, *by, grad_residual


def moments(x: Tensor, weights: Tensor | None, group: int = 0) -> Tensor:
    """`batchnorm::moments`."""
    _check_operands(x, (), (), (), group)
    _check_weights(x, weights, group, 0)
    table = np.empty((4, *((_groups(x, group),) if group else ()), x.shape[1]))
    _memory.run_forward(x, None, None, None, weights, None, table, True, 1.0, (0, 0.0), group)
    return torch.from_numpy(table)


def sums(
    grad_y: Tensor, x: Tensor, stats: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None,
    eps: float, activation: int, slope: float, group: int = 0, y: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """`batchnorm::sums`."""
    _check_operands(x, (grad_y, residual, y), (weight, bias), (), group)
    _check_y(x, y, residual, activation, slope)
    _check_table(x, stats, 4, 0)
    table = np.array(stats.detach().numpy())
    return _memory.run_backward(
        grad_y, x, None, table, weight, bias, None, residual, None, eps, (activation, slope), False, group, None, y
    )


def input_gradients(
    grad_y: Tensor, x: Tensor, stats: Tensor, sums: Tensor, weight: Tensor | None, bias: Tensor | None,
    weights: Tensor | None, residual: Tensor | None, eps: float, activation: int, slope: float, y: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """`batchnorm::input_gradients`."""
    _check_operands(x, (grad_y, residual, y), (weight, bias))
    _check_y(x, y, residual, activation, slope)
    _check_table(x, stats, 4, 0)
    _check_table(x, sums, 2, 0)
    _check_weights(x, weights, 0, -1)
    grad_x = torch.empty_like(x)
    absent = residual is None and y is None
    grad_residual = x.new_empty(0) if absent else torch.empty_like(x)
    _memory.run_backward(
        grad_y, x, grad_x, np.array(stats.detach().numpy()), weight, bias, weights, residual,
        None if absent else grad_residual, eps, (activation, slope), True, 0, np.array(sums.detach().numpy()), y,
    )  # fmt: skip
    return grad_x, grad_residual


def merge(parts: Tensor) -> Tensor:
    """`batchnorm::merge`."""
    if parts.dtype != torch.float64 or parts.dim() != 3 or parts.shape[0] not in (2, 4) or not parts.is_contiguous():
        raise ValueError(
            "batch_norm: parts must be a table of moments (4, G, C) or sums (2, G, C), contiguous, float64"
        )
    merged = np.zeros((parts.shape[0], parts.shape[2]))
    _native.merge(parts.detach().numpy(), merged, parts.shape[1])
    return torch.from_numpy(merged)


def update_(
    running_mean: Tensor, running_var: Tensor, num_batches_tracked: Tensor, stats: Tensor, momentum: float | None,
    correction: int, on_nonfinite: int, running_count: Tensor | None = None,
) -> None:  # fmt: skip
    """`batchnorm::update_`."""
    own = _moving.Running(running_mean, running_var, num_batches_tracked, running_count)
    _moving.check("batch_norm", own, stats, momentum, correction)
    to = _moving.moved(own, stats.detach(), momentum, correction)
    if on_nonfinite != 0 and not bool(to.finite.all()):
        if on_nonfinite == 1:
            return
        raise ValueError(f"batch_norm: {_moving.not_finite(stats, to)}")
    for buffer, value in zip(own, to.running, strict=True):
        if buffer is not None:
            buffer.copy_(value)


KERNELS: dict[str, Callable[..., Any]] = {
    kernel.__name__: kernel for kernel in (forward, backward, moments, sums, input_gradients, merge, update_)
}
