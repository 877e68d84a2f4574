"""Batch normalization and its variants as plain formulas in float64 PyTorch, differentiated by its autograd.

The oracle of gradients: no moments, no merge, nothing of the package. Channels are on axis 1; `counted` holds the
weight of every position, in the shape of x without its channels.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch


class Plain(NamedTuple):
    """y, and the gradients of sum(grad * y)."""

    y: np.ndarray
    x: np.ndarray
    weight: np.ndarray
    bias: np.ndarray


class Renormalized(NamedTuple):
    """What batch renormalization needs: the running statistics and the limits."""

    mean: np.ndarray
    var: np.ndarray
    r_max: float
    d_max: float


def batch_norm(
    x: np.ndarray,
    grad: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray,
    *,
    counted: np.ndarray | None = None,
    size: int | None = None,
    renorm: Renormalized | None = None,
    eps: float = 1e-5,
) -> Plain:
    """Each ghost of `size` samples normalized with its own mean and variance."""
    leaves = [torch.tensor(np.asarray(a, dtype=np.float64), requires_grad=True) for a in (x, weight, bias)]
    w = torch.ones(x.shape[:1] + x.shape[2:], dtype=torch.float64)
    if counted is not None:
        w = torch.tensor(np.asarray(counted, dtype=np.float64))
    step = size or len(x)
    parts = [
        _normalized(leaves[0][i : i + step], w[i : i + step], leaves[1], leaves[2], renorm, eps)
        for i in range(0, len(x), step)
    ]
    y = torch.cat(parts)
    gradients = torch.autograd.grad((y * torch.tensor(np.asarray(grad, dtype=np.float64))).sum(), leaves)
    return Plain(y.detach().numpy(), *(g.numpy() for g in gradients))


def _normalized(x, w, weight, bias, renorm, eps):
    over = [0, *range(2, x.ndim)]
    shape = [1, -1] + [1] * (x.ndim - 2)
    w = w.unsqueeze(1)
    mean = (w * x).sum(over, keepdim=True) / w.sum()
    var = (w * (x - mean) ** 2).sum(over, keepdim=True) / w.sum()
    xhat = (x - mean) / torch.sqrt(var + eps)
    if renorm is not None:
        sigma = torch.sqrt(torch.tensor(renorm.var, dtype=torch.float64).reshape(shape) + eps)
        running = torch.tensor(renorm.mean, dtype=torch.float64).reshape(shape)
        r = (torch.sqrt(var + eps) / sigma).clamp(1 / renorm.r_max, renorm.r_max).detach()
        d = ((mean - running) / sigma).clamp(-renorm.d_max, renorm.d_max).detach()
        xhat = xhat * r + d
    return xhat * weight.reshape(shape) + bias.reshape(shape)
