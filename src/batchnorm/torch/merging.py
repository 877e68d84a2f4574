"""`merge_statistics`: states of the same model, trained apart, become one."""

from __future__ import annotations

import math
import numbers
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from . import _tables

Tensor = torch.Tensor
State = Mapping[str, Any]

_NAMES_SHOWN = 4


def merge_statistics(
    states: Sequence[State | torch.nn.Module], counts: Sequence[float], *, running_correction: int = 1
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
        N·H·W for images). Their ratios are the shares. 0: the state is not there.
    running_correction
        What the layers keep. 1: running_var is unbiased, as PyTorch's; with n positions ``(n - 1) / n`` of it is
        biased, and the result is unbiased again. 0: running_var is biased, or is to be merged as it is.

    Returns
    -------
    OrderedDict
        For `load_state_dict`, on the devices of the first state. Running statistics are merged as above, in float64 and
        rounded once; `num_batches_tracked` is the sum; other floats are averaged by their shares (those that are equal
        in all states stay as they are). Where layers keep a `running_count`, it says which part of a running_var is
        biased, and becomes the sum of counts.

    Raises
    ------
    TypeError, ValueError
        Where names, shapes, dtypes or lengths differ, a count is not a number of positions, or integers differ.

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
    >>> bnt.merge_statistics([a, b], [2, 3])["running_var"]  # of 1, 3, 9, 11 and 13
    tensor([26.8000])
    """
    given = [_state_of(state, i) for i, state in enumerate(states)]
    shares = _checked_counts(counts, len(given), running_correction)
    first = given[0]
    for i, state in enumerate(given[1:], 1):
        _check_alike(first, state, i)
    merged: OrderedDict[str, Any] = OrderedDict((name, None) for name in first)
    for name in first:
        prefix, _, last = name.rpartition("running_mean")
        if not last and f"{prefix}running_var" in first and (not prefix or prefix.endswith(".")):
            merged.update(
                _merged_statistics([_part(state, prefix) for state in given], shares, running_correction, prefix)
            )
    for name, value in merged.items():
        if value is None:
            merged[name] = _merged_value(name, [state[name] for state in given], shares)
    return merged


def _merged_statistics(parts: list[dict[str, Tensor]], counts: Tensor, correction: int, prefix: str) -> dict[str, Any]:
    """The running statistics of one layer."""
    tables, device = [], parts[0]["running_mean"].device
    for part, count in zip(parts, counts, strict=True):
        mean, var = part["running_mean"], part["running_var"].double()
        behind = part.get("running_count", count).double()  # positions behind the correction of the variance
        if correction:
            var = torch.where(torch.isinf(behind), var, var * ((behind - 1) / behind))
        tables.append(_tables.of_statistics(count.to(mean.device), mean, var).to(device))
    whole = _tables.merge_moments(torch.stack(tables, 1))
    mean, var = _tables.mean_and_variance(whole, correction)
    first = parts[0]
    found = {"running_mean": mean.to(first["running_mean"].dtype), "running_var": var.to(first["running_var"].dtype)}
    if "num_batches_tracked" in first:
        found["num_batches_tracked"] = sum(part["num_batches_tracked"].to(device) for part in parts)  # type: ignore[assignment]
    if "running_count" in first:
        found["running_count"] = whole[0].to(first["running_count"].dtype)
    return {prefix + name: value for name, value in found.items()}


def _part(state: State, prefix: str) -> dict[str, Tensor]:
    names = ("running_mean", "running_var", "num_batches_tracked", "running_count")
    return {name: state[prefix + name].detach() for name in names if prefix + name in state}


def _merged_value(name: str, values: list[Any], counts: Tensor) -> Any:
    first = values[0]
    if not isinstance(first, Tensor):
        if any(value != first for value in values[1:]):
            raise ValueError(
                f"merge_statistics: {name} differs between the states and is not a tensor: nothing merges it"
            )
        return first
    values = [value.to(first.device) for value in values]
    if all(torch.equal(value, first) for value in values[1:]):
        return first.detach().clone()
    if not (first.is_floating_point() or first.is_complex()):
        raise ValueError(
            f"merge_statistics: {name} ({str(first.dtype).removeprefix('torch.')}) differs between the states, and has "
            "no average; make it equal first, or leave it out of the states"
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
            f"merge_statistics: states are state_dicts or modules; number {i} is {type(state).__name__}; pass "
            "[model.state_dict(), ...]"
        )
    return state


def _checked_counts(counts: Sequence[float], states: int, correction: int) -> Tensor:
    if states == 0:
        raise ValueError("merge_statistics: needs at least one state; got none")
    if isinstance(correction, bool) or correction not in (0, 1):
        raise ValueError(f"merge_statistics: running_correction must be 1 (unbiased) or 0 (biased); got {correction!r}")
    given: list[Any] = list(counts)
    numbers_ = [count.item() if isinstance(count, Tensor) else count for count in given]
    if len(numbers_) != states:
        raise ValueError(f"merge_statistics: needs one count for each state; got {len(numbers_)} for {states} states")
    for i, count in enumerate(numbers_):
        real = isinstance(count, numbers.Real) and not isinstance(count, bool)
        if not real or not math.isfinite(count) or count < 0 or 0 < count <= correction:
            rule = "a finite number above 1, or 0" if correction else "a finite number of at least 0"
            raise ValueError(
                f"merge_statistics: a count is how many positions stand behind a state, {rule}; number {i} is {count!r}"
                + (
                    ". For shares of unknown size, running_correction=0 merges the variances as they are"
                    if correction
                    else ""
                )
            )
    if sum(numbers_) == 0:
        raise ValueError("merge_statistics: all counts are 0: there is nothing to merge")
    return torch.tensor(numbers_, dtype=torch.float64)


def _check_alike(first: State, state: State, i: int) -> None:
    missing, unexpected = first.keys() - state.keys(), state.keys() - first.keys()
    if missing or unexpected:
        said = [f"{what} {_listed(names)}" for what, names in (("lacks", missing), ("has", unexpected)) if names]
        raise ValueError(
            f"merge_statistics: states must have the same names; number {i} {' and '.join(said)}, unlike number 0. "
            "Merge states of one architecture"
        )
    for name, value in first.items():
        ours, theirs = _described(value), _described(state[name])
        if ours != theirs:
            raise ValueError(
                f"merge_statistics: {name} must have one shape and dtype in all states; got {ours} in number 0 and "
                f"{theirs} in number {i}"
            )


def _described(value: object) -> str:
    if not isinstance(value, Tensor):
        return type(value).__name__
    return f"{tuple(value.shape)} of {str(value.dtype).removeprefix('torch.')}"


def _listed(names: set[str]) -> str:
    shown = sorted(names)
    rest = len(shown) - _NAMES_SHOWN
    return ", ".join(shown[:_NAMES_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
