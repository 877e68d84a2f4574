"""The same mathematics in PyTorch's own operations: for other devices, transforms and higher derivatives.

`forward`, `moments`, `normalize`, `sums`, `input_gradients` and `merge` mean what our operations of those names mean.
"""

from __future__ import annotations

import torch

from .. import _formulas
from . import _activations, _backend

Tensor = torch.Tensor


def compute_dtype(x: Tensor) -> torch.dtype:
    """Float32 for 16-bit data, else the data's own."""
    return torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype


def table_dtype(x: Tensor) -> torch.dtype:
    """Of tables of statistics: float64, where the device has it."""
    return torch.float32 if x.device.type == "mps" else torch.float64


def over_channels(values: Tensor, x: Tensor) -> Tensor:
    """View one value per channel so that it broadcasts against x, whose channels are on axis 1."""
    return values.to(compute_dtype(x)).reshape(1, -1, *[1] * (x.dim() - 2))


def mean_and_variance(x: Tensor, position_weight: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Count, mean and biased variance of each channel; a position of weight 0 is not there."""
    over = [d for d in range(x.dim()) if d != 1]
    v = x.to(compute_dtype(x))
    if not _backend.is_jit_trace() and x.numel() == 0:
        return (v.new_zeros(x.shape[1]),) * 3  # where PyTorch's operations would warn
    if position_weight is None:
        var, mean = torch.var_mean(v, over, correction=0)
        return torch.full_like(mean, x.numel() / x.shape[1]), mean, var
    w = position_weight.to(v.dtype).expand_as(v)
    counts = w > 0
    count = w.sum(over)
    zero = torch.zeros((), dtype=v.dtype, device=v.device)
    mean = (w * torch.where(counts, v, zero)).sum(over) / count
    deviation = torch.where(counts, v - over_channels(mean, x), zero)
    return count, mean, (w * deviation * deviation).sum(over) / count


def standardize(
    x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None,
    eps: float, activation: int, slope: float,
) -> Tensor:  # fmt: skip
    """``activation((x - mean) / sqrt(var + eps) * weight + bias + residual)``, in x's dtype."""
    xhat = (x.to(compute_dtype(x)) - over_channels(mean, x)) * torch.rsqrt(over_channels(var, x) + eps)
    return _activations.activate(_affine(xhat, x, weight, bias, residual), activation, slope).to(x.dtype)


def _affine(xhat: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None) -> Tensor:
    z = xhat if weight is None else xhat * over_channels(weight, x)
    if bias is not None:
        z = z + over_channels(bias, x)
    return z if residual is None else z + residual.to(z.dtype)


def forward(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, running_mean: Tensor | None, running_var: Tensor | None,
    position_weight: Tensor | None, residual: Tensor | None, eps: float, activation: int, slope: float,
    moments: Tensor | None = None, ghost_size: int = 0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """y, and the table of what normalized it. Statistics that are given are x's own: gradients flow through them."""
    options = (eps, activation, slope)
    if running_mean is not None and running_var is not None:
        y = standardize(x, running_mean, running_var, weight, bias, residual, *options)
        return y, _table(x, torch.ones_like(running_mean), running_mean, running_var)
    parts, tables = [], []
    for i, (part, w, r) in enumerate(
        zip(*(_cut(t, x, ghost_size) for t in (x, position_weight, residual)), strict=True)
    ):
        assert part is not None
        count, mean, var = mean_and_variance(part, w)
        parts.append(standardize(part, mean, var, _row(weight, i), _row(bias, i), r, *options))
        tables.append(_table(x, count, mean, var))
    y = parts[0] if len(parts) == 1 else torch.cat(parts)
    return y, torch.stack(tables, 1) if ghost_size else tables[0]


def _row(parameter: Tensor | None, i: int) -> Tensor | None:
    """Of ghost i, where each has its own."""
    return parameter if parameter is None or parameter.dim() == 1 else parameter[i]


def _cut(t: Tensor | None, x: Tensor, ghost_size: int) -> list[Tensor | None]:
    """Consecutive parts of that many samples; of what is broadcast over samples, or absent, the same for all."""
    size = min(ghost_size, x.shape[0]) if ghost_size else x.shape[0]
    parts = 1 if size == 0 else -(-x.shape[0] // size)
    if t is None or t.shape[0] != x.shape[0] or parts == 1:
        return [t] * parts
    return list(t.split(size))


def _table(x: Tensor, count: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    return table(count, mean, var, table_dtype(x))


def table(count: Tensor, mean: Tensor, var: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    """Moments of that many positions with a given mean and biased variance; a count of 0 is nothing at all."""
    n, m, v = (t.detach().to(dtype) for t in (count, mean, var))
    counts = n > 0
    zero = torch.zeros_like(m)
    return torch.stack([n.expand_as(m), torch.where(counts, m, zero), zero, torch.where(counts, v * n, zero)])


def merge(parts: Tensor) -> Tensor:
    """Moments (4, G, C) or sums (2, G, C) of parts to those of the whole, with the bits of our operation.

    Neighbors are joined, level by level; an odd one is carried up.
    """
    if parts.shape[1] == 0:
        return parts.new_zeros(parts.shape[0], parts.shape[2])
    while parts.shape[1] > 1:
        even = parts.shape[1] // 2 * 2
        left, right = parts[:, 0:even:2], parts[:, 1:even:2]
        joined = _formulas.merge_moments(torch, left, right) if parts.shape[0] == 4 else left + right
        parts = torch.cat([joined, parts[:, even:]], 1)
    return parts[:, 0]


def moments(x: Tensor, position_weight: Tensor | None, ghost_size: int = 0) -> Tensor:
    """The table of x, or of each of its parts of `ghost_size` samples."""
    cut = zip(_cut(x, x, ghost_size), _cut(position_weight, x, ghost_size), strict=True)
    tables = [_table(x, *mean_and_variance(part, w)) for part, w in cut if part is not None]
    return torch.stack(tables, 1) if ghost_size else tables[0]


def normalize(
    x: Tensor, moments: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, eps: float,
    activation: int, slope: float,
) -> Tensor:  # fmt: skip
    """y by the statistics of a table."""
    return standardize(x, moments[1], moments[3] / moments[0], weight, bias, residual, eps, activation, slope)


def before_activation(grad_y: Tensor, z: Tensor, activation: int, slope: float) -> Tensor:
    """The gradient by z, what an activation was applied to; y in its place, where that tells the derivative."""
    if activation == 0:
        return grad_y
    differentiable = torch.is_grad_enabled()
    with torch.enable_grad():
        at = z.detach().requires_grad_()
        y = _activations.activate(at, activation, slope)
        (g,) = torch.autograd.grad(y, at, grad_y, create_graph=differentiable)
    return g


def sums(
    grad_y: Tensor, x: Tensor, moments: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None,
    eps: float, activation: int, slope: float, ghost_size: int = 0, y: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Sums of g·xhat and of g, a table as that of `moments`, where g is the gradient before the activation."""
    tables = []
    for g_y, part, r, out in zip(*(_cut(t, x, ghost_size) for t in (grad_y, x, residual, y)), strict=True):
        assert g_y is not None
        assert part is not None
        g, xhat = _gradient_and_xhat(g_y, part, moments, weight, bias, r, out, eps, activation, slope)
        over = [d for d in range(x.dim()) if d != 1]
        tables.append(torch.stack([(g * xhat).sum(over), g.sum(over)]).to(table_dtype(x)))
    return torch.stack(tables, 1) if ghost_size else tables[0]


def input_gradients(
    grad_y: Tensor, x: Tensor, moments: Tensor, given: Tensor, weight: Tensor | None, bias: Tensor | None,
    position_weight: Tensor | None, residual: Tensor | None, eps: float, activation: int, slope: float,
    y: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Gradients by x and by the residual (empty where there is none), with the sums given."""
    g, xhat = _gradient_and_xhat(grad_y, x, moments, weight, bias, residual, y, eps, activation, slope)
    by_x = over_channels(given[1] / moments[0], x) + xhat * over_channels(given[0] / moments[0], x)
    if position_weight is not None:
        by_x = by_x * position_weight.to(by_x.dtype)
    scale = torch.rsqrt(moments[3] / moments[0] + eps)
    by_x = (g - by_x) * over_channels(scale if weight is None else scale * weight, x)
    return by_x.to(x.dtype), x.new_empty(0) if residual is None and y is None else g.to(x.dtype)


def _gradient_and_xhat(
    grad_y: Tensor, x: Tensor, moments: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None,
    y: Tensor | None, eps: float, activation: int, slope: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The gradient by what the activation is applied to, and xhat."""
    with torch.no_grad():
        xhat = standardize(x.to(compute_dtype(x)), moments[1], moments[3] / moments[0], None, None, None, eps, 0, 0.0)
        z = _affine(xhat, x, weight, bias, residual) if y is None else y
        return before_activation(grad_y.to(xhat.dtype), z, activation, slope), xhat
