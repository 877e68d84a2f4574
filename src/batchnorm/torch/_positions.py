"""Which positions count: masks from lengths; mask and weights as one tensor that says how much each counts."""

from __future__ import annotations

import torch

Tensor = torch.Tensor

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def mask_from_lengths(lengths: Tensor, max_length: int | None = None) -> Tensor:
    """Mask of a padded batch: the first ``lengths[n]`` places of sequence n count.

    Parameters
    ----------
    lengths
        One integer for each sequence, (N,).
    max_length
        Length L of the padded sequences; default the longest.

    Returns
    -------
    Tensor
        Bool, (N, L), ``mask[n, l] = l < lengths[n]``, on the device of `lengths`. Masks are given without the channel
        axis, so it serves (N, C, L) and (N, L, C) alike.

    Raises
    ------
    TypeError, ValueError
        Where lengths are not integers of one axis, or not from 0 to max_length.

    Examples
    --------
    >>> import torch
    >>> import batchnorm.torch as bnt
    >>> bnt.mask_from_lengths(torch.tensor([2, 0, 3]))
    tensor([[ True,  True, False],
            [False, False, False],
            [ True,  True,  True]])
    """
    if not isinstance(lengths, Tensor) or lengths.dtype not in _INTEGERS:
        got = f"dtype {lengths.dtype}" if isinstance(lengths, Tensor) else type(lengths).__name__
        raise TypeError(f"mask_from_lengths: lengths must be a tensor of integers; got {got}; use lengths.long()")
    if lengths.dim() != 1:
        raise ValueError(
            "mask_from_lengths: lengths must have one axis, a length for each sequence; got shape "
            f"{tuple(lengths.shape)}"
        )
    longest = int(lengths.max()) if lengths.numel() else 0
    length = longest if max_length is None else max_length
    if lengths.numel() and (int(lengths.min()) < 0 or longest > length):
        bad = int(lengths.min()) if int(lengths.min()) < 0 else longest
        raise ValueError(
            f"mask_from_lengths: a length is from 0 to max_length ({length}); got {bad}. max_length is the padded "
            "length, x.shape[-1] of (N, C, L)"
        )
    return torch.arange(length, device=lengths.device) < lengths.unsqueeze(1)


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


def counted(x: Tensor, selection: Tensor | None) -> Tensor | int:
    """How many positions of a channel count; of a selection as a tensor, so that no device has to wait."""
    if selection is None:
        return x.numel() // x.shape[1]
    return (selection > 0).expand(x.shape[0], 1, *x.shape[2:]).sum()


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
