"""The same mathematics in PyTorch's own operations: for other devices, transforms and higher derivatives."""

from __future__ import annotations

import torch

from . import _options

Tensor = torch.Tensor


def compute_dtype(x: Tensor) -> torch.dtype:
    """Float32 for 16-bit data, else the data's own."""
    return torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype


def over_channels(values: Tensor, x: Tensor) -> Tensor:
    """View one value per channel so that it broadcasts against x, whose channels are on axis 1."""
    return values.to(compute_dtype(x)).reshape(1, -1, *[1] * (x.dim() - 2))


def moments(x: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Count, mean and biased variance of each channel; a position of weight 0 is not there."""
    over = [d for d in range(x.dim()) if d != 1]
    v = x.to(compute_dtype(x))
    if weights is None:
        var, mean = torch.var_mean(v, over, correction=0)
        return torch.full_like(mean, x.numel() / x.shape[1]), mean, var
    w = weights.to(v.dtype).expand_as(v)
    counts = w > 0
    count = w.sum(over)
    zero = torch.zeros((), dtype=v.dtype, device=v.device)
    mean = (w * torch.where(counts, v, zero)).sum(over) / count
    deviation = torch.where(counts, v - over_channels(mean, x), zero)
    return count, mean, (w * deviation * deviation).sum(over) / count


def normalize(
    x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None,
    eps: float, activation: int, slope: float,
) -> Tensor:  # fmt: skip
    """``activation((x - mean) / sqrt(var + eps) * weight + bias + residual)``, in x's dtype."""
    z = (x.to(compute_dtype(x)) - over_channels(mean, x)) * torch.rsqrt(over_channels(var, x) + eps)
    if weight is not None:
        z = z * over_channels(weight, x)
    if bias is not None:
        z = z + over_channels(bias, x)
    if residual is not None:
        z = z + residual.to(z.dtype)
    return _options.activate(z, activation, slope).to(x.dtype)
