"""Which positions count: masks from lengths; mask and sample_weight as one tensor that says how much each counts."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch

from .. import _refusals
from . import _backend, _operands

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
        got, fix = type(lengths).__name__, "torch.as_tensor(lengths)"
        if isinstance(lengths, Tensor):
            got, fix = f"dtype {lengths.dtype}", "lengths.long()"
        raise TypeError(f"mask_from_lengths: lengths must be a tensor of integers; got {got}; use {fix}")
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


def weights_like(x: Tensor, mask: Tensor | None, sample_weight: Tensor | None, who: str) -> Tensor:
    """Mask and sample_weight together, broadcast to x, with one channel; no memory of x's size is made."""
    for name, given in (("mask", mask), ("sample_weight", sample_weight)):
        _operands.check_tensor(who, name, given)
        if given is not None and given.device != x.device:
            raise ValueError(
                f"{who}: {name} must be on the input's device, {x.device}; got one on {given.device}; use "
                f"{name}.to(input.device)"
            )
    if mask is not None:
        if mask.dtype != torch.bool:
            raise TypeError(f"{who}: {_refusals.mask_dtype(f'dtype {mask.dtype}')}")
        mask = over_positions(x, mask, "mask", who)
    if sample_weight is None:
        assert mask is not None
        return mask
    if not sample_weight.is_floating_point():
        raise TypeError(
            f"{who}: sample_weight must be floating point; got dtype {sample_weight.dtype}; use mask= for a choice"
        )
    if sample_weight.requires_grad:
        raise ValueError(
            f"{who}: sample_weight is a constant, gradients by it are not computed; pass sample_weight.detach()"
        )
    w = over_positions(x, sample_weight, "sample_weight", who)
    if w.dtype not in (torch.float32, torch.float64):
        w = w.float()
    return w if mask is None else torch.where(mask, w, 0.0)


def counted(x: Tensor, selection: Tensor | None) -> Tensor | int:
    """How many positions of a channel count; of a selection as a tensor, so that no device has to wait."""
    if selection is None:
        return x.numel() // x.shape[1]
    return (selection > 0).expand(x.shape[0], 1, *x.shape[2:]).sum()


def refused(x: Tensor, sample_weight: Tensor, ghost_size: int, least: int) -> str:
    """What is wrong with the values of weights, or nothing: the rules of `refused_position_weight` of fused_calls.cpp.

    At least `least` positions must count; of every `ghost_size` samples, where so many are normalized by themselves.
    """
    counts = _counts_of_ghosts(x, sample_weight, ghost_size)
    bad = ~((sample_weight >= 0) & torch.isfinite(sample_weight))
    *found, bads = torch.cat([counts, bad.sum().reshape(1)]).tolist()  # at once, so that a device is waited for once
    if bads:
        return _refusals.weight_value(sample_weight[bad][0].item())
    few = [(n, g) for g, n in enumerate(found) if n < least]
    ghost = (few[0][1], len(found), ghost_size) if few and len(found) > 1 else None
    return _refusals.too_few(few[0][0], True, ghost=ghost) if few else ""


def check(x: Tensor, sample_weight: Tensor | None, ghost_size: int, least: int) -> None:
    """Refuse what the CPU kernels refuse, in their words, where PyTorch's operations are to compute."""
    if (
        sample_weight is not None
        and x.numel()
        and _backend.is_readable(x)
        and (words := refused(x, sample_weight, ghost_size, least))
    ):
        raise ValueError(f"batch_norm: {words}")


def has_single_value(layer: Any, x: Tensor, selection: Tensor | None) -> bool:
    """Whether running statistics stand in for those of one value a channel; ValueError where they may not."""
    if layer.on_single_value == "running" and (selection is not None or _backend.is_jit_trace()):
        _backend.refuse_to_look(
            type(layer).__name__, "on_single_value='running' counts values", "on_single_value='error'", x, selection
        )
    shape = _backend.sizes(x)
    if selection is None or layer.on_single_value == "error" or not _backend.has_values(selection):
        positions = 1 if math.prod(shape) == shape[1] > 0 else 2  # of a selection, the kernels count
    else:
        positions = int(counted(x, selection))
    if positions != 1:
        return False
    if layer.on_single_value == "running" and layer.running_mean is not None:
        return True
    has_running = layer.running_mean is not None
    fix = "on_single_value='running'" if has_running else "track_running_stats=True, and evaluate after training"
    said = _refusals.too_few(1, selection is not None, f" (input {shape}, channels on axis 1)", fix)
    raise ValueError(f"{type(layer).__name__}: {said}")


class Part(NamedTuple):
    """Whole ghosts of a batch, which are normalized alike."""

    first: int
    end: int
    batch: bool  # by their own statistics; or by the running ones

    def of(self, t: Tensor | None, x: Tensor) -> Tensor | None:
        """The samples of x, or of what goes with it; all of what is broadcast over samples."""
        return t if t is None or t.shape[0] != x.shape[0] else t[self.first : self.end]


def parts_of(layer: Any, x: Tensor, selection: Tensor | None, ghost_size: int) -> list[Part]:
    """Where running statistics stand in for those of ghosts of one value a channel: the batch in parts; else nothing.

    Ghost batches of an unknown batch are refused, and a last one of one value; of a selection, the kernels count.
    """
    who = type(layer).__name__
    if _backend.is_jit_trace() or type(x.shape[0]) is not int:
        raise ValueError(
            f"{who}: virtual_batch_size={ghost_size} makes as many ghost batches as the batch has room for, and a "
            "trace or an export has one number for all batches; got training in one. Trace or export layer.eval(), or "
            "export with a fixed batch"
        )
    N, S, has_running = x.shape[0], x.numel() // (x.shape[0] * x.shape[1]), layer.running_mean is not None
    last = ((N - 1) % ghost_size + 1) * S
    if layer.on_single_value == "error" or not has_running:
        if last < 2:
            ghosts = -(-N // ghost_size)
            where = f" (input {tuple(x.shape)}, channels on axis 1)"
            fix = "on_single_value='running'" if has_running else _refusals.KNOWN_MOMENTS
            raise ValueError(f"{who}: {_refusals.too_few(last, False, where, fix, (ghosts - 1, ghosts, ghost_size))}")
        return []
    if selection is not None and _backend.has_values(selection):
        counts = _counts_of_ghosts(x, selection, ghost_size).tolist()
    else:
        counts = [ghost_size * S] * ((N - 1) // ghost_size) + [last]
    if 1 not in counts:
        return []
    parts: list[Part] = []
    for i, count in enumerate(counts):
        first, batch = i * ghost_size, count != 1
        if parts and parts[-1].batch == batch:
            first = parts.pop().first
        parts.append(Part(first, min((i + 1) * ghost_size, N), batch))
    return parts


def _counts_of_ghosts(x: Tensor, sample_weight: Tensor, ghost_size: int) -> Tensor:
    """How many positions of a channel count in each ghost; in the whole batch, where the size is 0."""
    N = x.shape[0]
    size = min(ghost_size, N) if ghost_size else N
    ghosts = -(-N // size)
    of_samples = (sample_weight > 0).expand(N, 1, *x.shape[2:]).flatten(1).sum(1)
    return torch.nn.functional.pad(of_samples, (0, ghosts * size - N)).reshape(ghosts, size).sum(1)


def over_positions(x: Tensor, given: Tensor, name: str, who: str) -> Tensor:
    """View `given` with x's number of axes, the channels' of length one."""
    shape, own = tuple(x.shape), tuple(given.shape)
    a = given
    if a.dim() < x.dim():
        a = a.reshape(*[1] * (x.dim() - 1 - a.dim()), *own).unsqueeze(1)
    if a.dim() != x.dim() or a.shape[1] != 1 or any(n not in (1, m) for n, m in zip(a.shape, shape, strict=True)):
        raise ValueError(f"{who}: {_refusals.positions(name, shape[:1] + shape[2:], f'shape {own}', shape)}")
    return a
