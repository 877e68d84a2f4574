"""The running statistics of one layer in states of the same model, merged as moments."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from .. import _formulas
from . import _plain

Tensor = torch.Tensor


class Start(NamedTuple):
    """A layer when the round began."""

    part: dict[str, Tensor]
    momentum: float | None


def merged(
    states: Sequence[Mapping[str, Any]], shares: Tensor, correction: int, prefix: str, since: torch.nn.Module | None
) -> dict[str, Tensor]:
    """The running statistics of one layer; states without a share are not there."""
    present = [i for i, share in enumerate(shares) if share > 0]
    parts, counts = [_part(states[i], prefix) for i in present], shares[present]
    start = None if since is None else _start(since, prefix)
    found = {}
    if "num_batches_tracked" in parts[0]:
        least = 0 if start is None else _checked_batches(start.part, prefix, "since", 0)
        for i, part in zip(present, parts, strict=True):
            _checked_batches(part, prefix, f"number {i}", least)
        found["num_batches_tracked"] = _batches(parts, prefix, least)
    found = _statistics(parts, counts, correction, prefix, start) | found
    return {prefix + name: found[name] for name in parts[0]}


def _statistics(
    parts: list[dict[str, Tensor]], counts: Tensor, correction: int, prefix: str, start: Start | None
) -> dict[str, Tensor]:
    device = parts[0]["running_mean"].device
    kept, whole_kept = ([0.0] * len(parts), 0.0) if start is None else _kept(parts, counts, start)
    tables = [
        _own_moments(part, count, q, correction, start).to(device)
        for part, count, q in zip(parts, counts, kept, strict=True)
        if q < 1
    ]
    if start is not None and not tables:  # nothing moved
        return {name: value.to(device, copy=True) for name, value in start.part.items()}
    count, mean, _, m2 = _plain.merge(torch.stack(tables, 1))
    var = m2 / (count - correction)
    if start is not None and whole_kept > 0:
        old_mean, old_var, old_count = (value.to(device) for value in _of_start(start.part))
        gaps = (_formulas.variance_gap(v, n, correction) for v, n in ((old_var, old_count), (var, count)))
        mean, var, gap = (
            old + (1 - whole_kept) * (new - old) for old, new in ((old_mean, mean), (old_var, var), tuple(gaps))
        )
        count = _formulas.count_behind(torch, var, gap, correction)
    statistics = {"running_mean": mean, "running_var": var.clamp(min=0)}  # which rounding may leave below 0
    return {
        name: _fitting(prefix + name, value, [part[name] for part in parts]) for name, value in statistics.items()
    } | {"running_count": count}


def _own_moments(part: dict[str, Tensor], n: Tensor, kept: float, correction: int, start: Start | None) -> Tensor:
    """Moments of what a state saw: all of it, or what it added to the start, which has a weight of `kept` in it."""
    mean, var = _biased(part, n, correction)
    if start is not None and kept > 0:
        old_mean, old_var = (value.to(mean.device) for value in _biased(start.part, n, correction))
        mean, var = old_mean + (mean - old_mean) / (1 - kept), old_var + (var - old_var) / (1 - kept)
    return _plain.table(n.to(mean.device), mean, var)


def _biased(part: dict[str, Tensor], n: Tensor, correction: int) -> tuple[Tensor, Tensor]:
    """Mean and biased variance, in float64; n positions are behind the correction, where the state does not say."""
    mean, var = part["running_mean"].double(), part["running_var"].double()
    behind = part.get("running_count", n).double()
    return mean, _formulas.other_variance(var, behind, 1) if correction else var


def _of_start(part: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    mean, var = part["running_mean"].double(), part["running_var"].double()
    return mean, var, part["running_count"].double() if "running_count" in part else torch.full_like(var, torch.inf)


def _kept(parts: list[dict[str, Tensor]], counts: Tensor, start: Start) -> tuple[list[float], float]:
    """The weight of the start in each state, and in the whole."""
    before = int(start.part["num_batches_tracked"])
    added = [int(part["num_batches_tracked"]) - before for part in parts]
    if start.momentum is None:
        whole = before + sum(added)
        return [before / (before + n) if n else 1.0 for n in added], before / whole if whole else 1.0
    kept = [(1 - start.momentum) ** n for n in added]
    shares = [float(count) if q < 1 else 0.0 for count, q in zip(counts, kept, strict=True)]
    total = sum(shares)
    return kept, sum(share * q for share, q in zip(shares, kept, strict=True)) / total if total else 1.0


def _batches(parts: list[dict[str, Tensor]], prefix: str, before: int) -> Tensor:
    """How many batches there were: those of the start, and what each state added."""
    whole = before + sum(int(part["num_batches_tracked"]) - before for part in parts)
    like = parts[0]["num_batches_tracked"]
    most = 2 / torch.finfo(like.dtype).eps if like.is_floating_point() else torch.iinfo(like.dtype).max
    if whole > most:
        raise ValueError(
            f"merge_state_dicts: {prefix}num_batches_tracked would be {whole}, which "
            f"{str(like.dtype).removeprefix('torch.')} does not hold. Give since=, the model that the states were "
            "trained from: then only what they added is counted"
        )
    return torch.full_like(like, whole)


def _checked_batches(part: dict[str, Tensor], prefix: str, which: str, least: int) -> int:
    """Refuse what is not a number of batches, or too few; return it."""
    value = part["num_batches_tracked"]
    batches = value.item() if value.numel() == 1 else math.nan
    if batches != batches // 1 or batches < least:
        raise ValueError(
            f"merge_state_dicts: {prefix}num_batches_tracked must be a number of batches, at least {least}"
            f"{', that of since' if least else ''}; got {value.tolist()} in {which}"
        )
    return int(batches)


def _fitting(name: str, value: Tensor, given: list[Tensor]) -> Tensor:
    """The value in the dtype of the states, which must hold it."""
    stored = value.to(given[0].dtype)
    if not stored.isfinite().all() and all(part.isfinite().all() for part in given):
        raise ValueError(
            f"merge_state_dicts: {name} would not be finite in {str(stored.dtype).removeprefix('torch.')}, though it "
            "is in all states; make them float32 or float64, model.float(), before they are merged"
        )
    return stored


def _start(since: torch.nn.Module, prefix: str) -> Start:
    layer: Any = since.get_submodule(prefix.removesuffix("."))
    part = _part(layer.state_dict(), "")
    if "num_batches_tracked" not in part or not hasattr(layer, "momentum"):
        raise ValueError(
            f"merge_state_dicts: with since a layer must have momentum and num_batches_tracked, which say how much of "
            f"the start is left in its statistics; {prefix.removesuffix('.') or 'the model itself'}, "
            f"{type(layer).__name__}, has not"
        )
    return Start(part, layer.momentum)


def _part(state: Mapping[str, Any], prefix: str) -> dict[str, Tensor]:
    """The running statistics of one layer in a state."""
    names = ("running_mean", "running_var", "num_batches_tracked", "running_count")
    return {name: state[prefix + name].detach() for name in names if prefix + name in state}
