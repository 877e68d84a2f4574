"""`merge_state_dicts`: states of the same model, trained apart, become one."""

from __future__ import annotations

import math
import numbers
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from .. import _formulas
from .._options import RUNNING_CORRECTION, Correction
from . import _plain

Tensor = torch.Tensor
State = Mapping[str, Any]

_NAMES_SHOWN = 4
_COUNTS = 2**63  # positions are fewer


def merge_state_dicts(
    states: Sequence[State | torch.nn.Module],
    counts: Sequence[float],
    *,
    since: torch.nn.Module | None = None,
    running_correction: Correction = 1,
) -> OrderedDict[str, Any]:
    """One state of several: running statistics merged as moments, everything else averaged.

    Federated learning averages parameters. Averaging running variances as well forgets how far the *means* lie apart;
    the law of total variance does not. With shares ``p_k = n_k / n``::

        running_mean = sum p_k mean_k
        running_var  = sum p_k (var_k + (mean_k - running_mean)**2)         var_k biased

    Parameters
    ----------
    states
        `state_dict()` of each, or the modules themselves; the same names, shapes and dtypes.
    counts
        How many positions stand behind each state: the values that were averaged for a channel (N for feature vectors,
        N·H·W for images). Their ratios are the shares. 0: the state is not there. With `since`, those of this round.
    since
        The model as it was when the round began, which all states were trained from. Then what the states *added* is
        merged, and the start has the weight that it would have had in one training with the batches of all:
        ``num_batches_tracked`` grows by what they added, and with ``momentum=None`` all batches of all rounds weigh the
        same. None: the states have nothing in common.
    running_correction
        What the layers keep. 1: running_var is unbiased, as PyTorch's; with n positions ``(n - 1) / n`` of it is
        biased, and the result is unbiased again. 0: running_var is biased, or is to be merged as it is.

    Returns
    -------
    OrderedDict
        For `load_state_dict`, on the devices of the first state. Running statistics are merged as above, in float64 and
        rounded once; other floats are averaged by their shares (those that are equal in all states stay as they are).
        `num_batches_tracked` is the sum: how many batches there were in all, if each state began at zero. In repeated
        rounds it would count those of earlier rounds again for each state; that is what `since` is for. Where layers
        keep a `running_count`, it says which part of a running_var is biased, and becomes the sum of counts.

    Raises
    ------
    TypeError, ValueError
        Where names, shapes, dtypes or lengths differ, a count is not a number of positions, integers differ, a result
        does not fit its dtype, or a state has fewer batches than `since`.

    Notes
    -----
    With `since`, a state is ``q_k`` times the start and ``1 - q_k`` times what the client saw, where q_k is
    ``(1 - momentum) ** batches_k``, or ``n_0 / (n_0 + batches_k)`` for ``momentum=None``. What the clients saw is
    merged as above, and moves the start with the weight ``1 - sum p_k q_k``, or ``B / (n_0 + B)`` where they added B
    batches in all. A state that added no batch to a layer has no say in its statistics.

    References
    ----------
    McMahan et al. (2017), Communication-efficient learning of deep networks from decentralized data; Chan, Golub and
    LeVeque (1983) for the merge.

    Examples
    --------
    >>> import torch
    >>> import batchnorm.torch as bnt
    >>> a, b = (torch.nn.BatchNorm1d(1, momentum=1.0) for _ in range(2))
    >>> _ = a(torch.tensor([[1.0], [3.0]])), b(torch.tensor([[9.0], [11.0], [13.0]]))
    >>> bnt.merge_state_dicts([a, b], [2, 3])["running_var"]  # of 1, 3, 9, 11 and 13
    tensor([26.8000])

    Rounds of training from a common model:

    >>> import copy
    >>> server = torch.nn.BatchNorm1d(1, momentum=None)
    >>> for round in range(3):
    ...     clients = [copy.deepcopy(server) for _ in range(10)]
    ...     _ = [client(torch.randn(20, 1)) for client in clients]
    ...     _ = server.load_state_dict(bnt.merge_state_dicts(clients, [20] * 10, since=server))
    >>> server.num_batches_tracked
    tensor(30)
    """
    given = [_state_of(state, i) for i, state in enumerate(states)]
    counting = bool(given) and any(name.rpartition(".")[2] == "running_count" for name in given[0])
    shares = _checked_counts(counts, len(given), running_correction, counting)
    first = given[0]
    for i, state in enumerate(given[1:], 1):
        _check_alike(first, state, f"number {i}")
    if since is not None:
        _check_since(first, since)
    merged: OrderedDict[str, Any] = OrderedDict((name, None) for name in first)
    for name in first:
        prefix, _, last = name.rpartition("running_mean")
        if not last and f"{prefix}running_var" in first and (not prefix or prefix.endswith(".")):
            merged.update(_merged_layer(given, shares, running_correction, prefix, since))
    for name, value in merged.items():
        if value is None:
            merged[name] = _merged_value(name, [state[name] for state in given], shares)
    return merged


def _merged_value(name: str, values: list[Any], counts: Tensor) -> Any:
    first = values[0]
    if not isinstance(first, Tensor):
        if any(value != first for value in values[1:]):
            raise ValueError(
                f"merge_state_dicts: {name} differs between the states and is not a tensor: "
                "it cannot be merged; remove it"
            )
        return first
    values = [value.to(first.device) for value in values]
    if all(torch.equal(value, first) for value in values[1:]):
        return first.detach().clone()
    if not (first.is_floating_point() or first.is_complex()):
        raise ValueError(
            f"merge_state_dicts: {name} ({str(first.dtype).removeprefix('torch.')}) differs between the states, and "
            "has no average; make it equal first, or leave it out of the states"
        )
    wide = torch.complex128 if first.is_complex() else torch.float64
    shares = (counts / counts.sum()).tolist()
    total = sum(share * value.detach().to(wide) for share, value in zip(shares, values, strict=True) if share)
    assert isinstance(total, Tensor)
    return total.to(first.dtype)


def _state_of(state: object, i: int) -> State:
    if isinstance(state, torch.nn.Module):
        return state.state_dict()
    if not isinstance(state, Mapping):
        raise TypeError(
            f"merge_state_dicts: states are state_dicts or modules; number {i} is {type(state).__name__}; pass "
            "[model.state_dict(), ...]"
        )
    return state


def _checked_counts(counts: Sequence[float], states: int, correction: int, counting: bool) -> Tensor:
    if states == 0:
        raise ValueError("merge_state_dicts: needs at least one state; got none")
    RUNNING_CORRECTION.checked(correction, "merge_state_dicts")
    given: list[Any] = [_number(count) for count in counts]
    if len(given) != states:
        raise ValueError(f"merge_state_dicts: needs one count for each state; got {len(given)} for {states} states")
    least = 1 if correction or counting else 0  # positions behind a variance, or behind a running_count
    for i, count in enumerate(given):
        real = isinstance(count, numbers.Real) and not isinstance(count, bool)
        if not real or not 0 <= count < _COUNTS or 0 < count <= least:
            rule = "above 1, or 0" if least else "at least 0"
            raise ValueError(
                f"merge_state_dicts: a count is how many positions stand behind a state, a number below 2**63 and "
                f"{rule}; number {i} is {count!r}"
                + (
                    ". For shares of unknown size, running_correction=0 merges the variances as they are"
                    if correction and not counting
                    else ""
                )
            )
    if not any(given):
        raise ValueError("merge_state_dicts: all counts are 0: there is nothing to merge")
    return torch.tensor([float(count) for count in given], dtype=torch.float64)


def _number(count: Any) -> Any:
    return count.item() if isinstance(count, Tensor) and count.numel() == 1 else count


def _check_since(first: State, since: Any) -> None:
    if not isinstance(since, torch.nn.Module):
        raise TypeError(
            "merge_state_dicts: since must be a module, the model as it was when the round began: its layers say by "
            f"which momentum their statistics moved; got {type(since).__name__}; load it into a model"
        )
    _check_alike(first, since.state_dict(), "since")


def _check_alike(first: State, state: State, which: str) -> None:
    missing, unexpected = first.keys() - state.keys(), state.keys() - first.keys()
    if missing or unexpected:
        said = [f"{what} {_listed(names)}" for what, names in (("lacks", missing), ("has", unexpected)) if names]
        raise ValueError(
            f"merge_state_dicts: states must have the same names; {which} {' and '.join(said)}, unlike number 0. "
            "Merge states of one architecture"
        )
    for name, value in first.items():
        ours, theirs = _described(value), _described(state[name])
        if ours != theirs:
            raise ValueError(
                f"merge_state_dicts: {name} must have one shape and dtype in all states; got {ours} in number 0 and "
                f"{theirs} in {which}"
            )


def _described(value: object) -> str:
    if not isinstance(value, Tensor):
        return type(value).__name__
    return f"{tuple(value.shape)} of {str(value.dtype).removeprefix('torch.')}"


def _listed(names: set[str]) -> str:
    shown = sorted(names)
    rest = len(shown) - _NAMES_SHOWN
    return ", ".join(shown[:_NAMES_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


# --- the running statistics of one layer, merged as moments ---


class _Start(NamedTuple):
    """A layer when the round began."""

    part: dict[str, Tensor]
    momentum: float | None


def _merged_layer(
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
    parts: list[dict[str, Tensor]], counts: Tensor, correction: int, prefix: str, start: _Start | None
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


def _own_moments(part: dict[str, Tensor], n: Tensor, kept: float, correction: int, start: _Start | None) -> Tensor:
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


def _kept(parts: list[dict[str, Tensor]], counts: Tensor, start: _Start) -> tuple[list[float], float]:
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


def _start(since: torch.nn.Module, prefix: str) -> _Start:
    layer: Any = since.get_submodule(prefix.removesuffix("."))
    part = _part(layer.state_dict(), "")
    if "num_batches_tracked" not in part or not hasattr(layer, "momentum"):
        raise ValueError(
            f"merge_state_dicts: with since a layer must have momentum and num_batches_tracked, which say how much of "
            f"the start is left in its statistics; {prefix.removesuffix('.') or 'the model itself'}, "
            f"{type(layer).__name__}, has not"
        )
    return _Start(part, layer.momentum)


def _part(state: Mapping[str, Any], prefix: str) -> dict[str, Tensor]:
    """The running statistics of one layer in a state."""
    names = ("running_mean", "running_var", "num_batches_tracked", "running_count")
    return {name: state[prefix + name].detach() for name in names if prefix + name in state}
