"""Mask and weights to one tensor that says how much each position counts."""

from __future__ import annotations

import torch

Tensor = torch.Tensor


def weights_like(x: Tensor, mask: Tensor | None, weights: Tensor | None, who: str) -> Tensor:
    """Mask and weights together, broadcast to x, with one channel; no memory of x's size is made."""
    if mask is not None:
        if mask.dtype != torch.bool:
            raise TypeError(
                f"{who}: mask must be bool (True: the position counts); got dtype {mask.dtype}; use mask != 0, or "
                "weights= for fractions"
            )
        mask = _over_positions(x, mask, "mask", who)
    if weights is None:
        assert mask is not None
        return mask
    if not weights.is_floating_point():
        raise TypeError(f"{who}: weights must be floating point; got dtype {weights.dtype}; use mask= for a choice")
    if weights.requires_grad:
        raise ValueError(f"{who}: weights are constants, gradients by them are not computed; pass weights.detach()")
    w = _over_positions(x, weights, "weights", who)
    if w.dtype not in (torch.float32, torch.float64):
        w = w.float()
    return w if mask is None else torch.where(mask, w, 0.0)


def _over_positions(x: Tensor, given: Tensor, name: str, who: str) -> Tensor:
    """View `given` with x's number of axes, the channels' of length one."""
    shape, own = tuple(x.shape), tuple(given.shape)
    a = given
    if a.dim() < x.dim():
        a = a.reshape(*[1] * (x.dim() - 1 - a.dim()), *own).unsqueeze(1)
    if a.dim() != x.dim() or a.shape[1] != 1 or any(n not in (1, m) for n, m in zip(a.shape, shape, strict=True)):
        raise ValueError(
            f"{who}: {name} says which positions count, for all channels alike: it must broadcast to the input without "
            f"its channel axis, shape {shape[:1] + shape[2:]} (or have it as length one); got shape {own} for an "
            f"input of shape {shape}"
        )
    return a
