"""States of the same model, trained apart, become one: of NumPy's arrays here, of tensors in `torch/_merge.py`."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from types import EllipsisType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import _formulas, _native, _options
from ._options import Correction

Array = NDArray[Any]
Doubles = NDArray[np.float64]
State = Mapping[str, Any]

_WHO = "merge_state_dicts"
_NAMES_SHOWN = 4
_COUNTS = 2**63  # positions are fewer
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked", "running_count")


class Arrays:
    """What the merge asks of the values of a state: here of NumPy's."""

    array: Any = np.ndarray
    pass_states = "[layer.state_dict(), ...], mappings of names to arrays"

    def state_of(self, state: Any) -> State | None:
        """The state itself, or that of a layer; None of anything else."""
        state = state.state_dict() if hasattr(state, "state_dict") else state
        if not isinstance(state, Mapping):
            return None
        return {name: self._taken(name, value) for name, value in state.items()}

    def _taken(self, name: str, value: Any) -> Any:
        if isinstance(value, (np.generic, numbers.Number)):
            return np.asarray(value)
        if hasattr(value, "__array__") and not isinstance(value, np.ndarray):
            raise TypeError(
                f"{_WHO}: a state holds NumPy arrays; {name} is {type(value).__name__}; convert it with np.asarray, "
                "or merge tensors with batchnorm.torch"
            )
        return value

    def momentum_of(self, base: Any, prefix: str) -> Any:
        """Momentum of a layer of `base`; ... where it does not say."""
        return getattr(base, "momentum", ...) if not prefix else ...

    def number(self, value: Any) -> Any:
        """The number of an array of one; else the value."""
        return value.item() if isinstance(value, (np.ndarray, np.generic)) and value.size == 1 else value

    def dtype(self, value: Any) -> str:
        """Name of the dtype."""
        return str(value.dtype)

    def described(self, value: Any) -> str:
        """Shape and dtype, which the values of one name have in common."""
        return f"{tuple(value.shape)} of {self.dtype(value)}"

    def equal(self, a: Any, b: Any) -> bool:
        """Whether two are the same."""
        return bool(np.array_equal(a, b))

    def beside(self, value: Any, like: Any) -> Any:
        """The value, where `like` is."""
        return value

    def copied(self, value: Any, like: Any) -> Any:
        """A copy, where `like` is."""
        return np.array(value)

    def has_average(self, value: Any) -> bool:
        """Whether it is a real or complex floating point value."""
        return value.dtype.kind in "fc" or value.dtype.name == "bfloat16"

    def wide(self, value: Any) -> Any:
        """The value in double precision."""
        return value.astype(np.complex128 if value.dtype.kind == "c" else np.float64)

    def narrow(self, value: Any, like: Any) -> Any:
        """A value in double precision, or a NumPy array, as what `like` is."""
        with np.errstate(over="ignore"):
            if like.dtype.itemsize == 2:  # as PyTorch rounds
                value = np.asarray(value, np.float32)
            return np.asarray(value).astype(like.dtype)

    def numpy(self, value: Any) -> Doubles:
        """The value in float64, as a NumPy array."""
        return np.asarray(value, np.float64)

    def most(self, value: Any) -> float:
        """Up to which number every integer has a value of this dtype."""
        if value.dtype.kind in "iu":
            return int(np.iinfo(value.dtype).max)
        return float(2 / np.finfo(value.dtype).eps)


def merge_state_dicts(
    states: Sequence[Any],
    counts: Sequence[float],
    *,
    base: Any = None,
    momentum: float | EllipsisType | None = ...,
    running_correction: Correction = 1,
) -> dict[str, Any]:
    """One state of several: running statistics merged as moments, everything else averaged.

    A server of federated learning needs no framework: states map names to NumPy arrays, and `running_mean` beside
    `running_var` says where the statistics of a layer are. `batchnorm.torch.merge_state_dicts` does the same with
    tensors and models, to the same bits, and says more about it.

    Parameters
    ----------
    states
        Mappings of names to arrays, or layers; the same names, shapes and dtypes.
    counts
        How many positions stand behind each state: the values that were averaged for a channel (N for feature vectors,
        N·H·W for images). Their ratios are the shares. 0: the state is left out. With `base`, those of this round.
    base
        The state as it was when the round began, which all states were trained from, or the layer. Then what the states
        *added* is merged, and ``num_batches_tracked`` grows by what they added. None: they have nothing in common.
    momentum
        With `base`: by which momentum running statistics moved, None for a mean over all batches. Not given (...): that
        of the layer; 0.1 where `base` is a state.
    running_correction
        1: running_var is unbiased, as PyTorch's. 0: biased, or to be merged as it is.

    Returns
    -------
    dict
        The merged state, of new arrays.

    Raises
    ------
    TypeError, ValueError
        Where names, shapes, dtypes or lengths differ, a count is not a number of positions, integers differ, a result
        does not fit its dtype, or a state has fewer batches than `base`.

    Examples
    --------
    >>> import numpy as np
    >>> import batchnorm as bn
    >>> a = {"running_mean": np.array([2.0]), "running_var": np.array([2.0])}  # of 1 and 3
    >>> b = {"running_mean": np.array([11.0]), "running_var": np.array([4.0])}  # of 9, 11 and 13
    >>> bn.merge_state_dicts([a, b], [2, 3])["running_var"]  # of 1, 3, 9, 11 and 13
    array([26.8])
    """
    return merged(Arrays(), states, counts, base, momentum, running_correction)


def merged(
    xp: Arrays, states: Sequence[Any], counts: Sequence[float], base: Any, momentum: Any, correction: int
) -> dict[str, Any]:
    """`merge_state_dicts` of the values that `xp` knows."""
    given = [_state_of(xp, state, f"number {i}") for i, state in enumerate(states)]
    counting = bool(given) and any(name.rpartition(".")[2] == "running_count" for name in given[0])
    numbers_of = _checked_counts(xp, counts, len(given), correction, counting)
    first = given[0]
    for i, state in enumerate(given[1:], 1):
        _check_alike(xp, first, state, f"number {i}")
    start_of = _starts(xp, first, base, momentum)
    found: dict[str, Any] = dict.fromkeys(first)
    for name in first:
        prefix, _, last = name.rpartition("running_mean")
        if not last and f"{prefix}running_var" in first and (not prefix or prefix.endswith(".")):
            layer = _Layer(xp, prefix, correction, start_of and start_of(prefix))
            found.update(layer.merged(given, numbers_of))
    total = math.fsum(numbers_of)
    shares = [count / total for count in numbers_of]
    for name, value in found.items():
        if value is None:
            found[name] = _average(xp, name, [state[name] for state in given], shares)
    return found


def _average(xp: Arrays, name: str, values: list[Any], shares: list[float]) -> Any:
    first = values[0]
    if not isinstance(first, xp.array):
        if any(value != first for value in values[1:]):
            raise ValueError(
                f"{_WHO}: {name} differs between the states and is not an array: it cannot be merged; remove it"
            )
        return first
    values = [xp.beside(value, first) for value in values]
    if all(xp.equal(value, first) for value in values[1:]):
        return xp.copied(first, first)
    if not xp.has_average(first):
        raise ValueError(
            f"{_WHO}: {name} ({xp.dtype(first)}) differs between the states, and has no average; make it equal first, "
            "or leave it out of the states"
        )
    total = sum(share * xp.wide(value) for share, value in zip(shares, values, strict=True) if share)
    return xp.narrow(total, first)


def _state_of(xp: Arrays, state: Any, which: str) -> State:
    found = xp.state_of(state)
    if found is None:
        raise TypeError(
            f"{_WHO}: states are state_dicts, or what has one; {which} is {type(state).__name__}; pass {xp.pass_states}"
        )
    return found


def _checked_counts(xp: Arrays, counts: Sequence[float], states: int, correction: int, counting: bool) -> list[float]:
    if states == 0:
        raise ValueError(f"{_WHO}: needs at least one state; got none")
    _options.RUNNING_CORRECTION.checked(correction, _WHO)
    given = [xp.number(count) for count in counts]
    if len(given) != states:
        raise ValueError(f"{_WHO}: needs one count for each state; got {len(given)} for {states} states")
    least = 1 if correction or counting else 0  # positions behind a variance, or behind a running_count
    for i, count in enumerate(given):
        real = isinstance(count, numbers.Real) and not isinstance(count, bool)
        if not real or not 0 <= count < _COUNTS or 0 < count <= least:
            rule = "above 1, or 0" if least else "at least 0"
            raise ValueError(
                f"{_WHO}: a count is how many positions stand behind a state, a number below 2**63 and {rule}; number "
                f"{i} is {count!r}"
                + (
                    ". For shares of unknown size, running_correction=0 merges the variances as they are"
                    if correction and not counting
                    else ""
                )
            )
    if not any(given):
        raise ValueError(f"{_WHO}: all counts are 0: there is nothing to merge")
    return [float(count) for count in given]


def _check_alike(xp: Arrays, first: State, state: State, which: str) -> None:
    missing, unexpected = first.keys() - state.keys(), state.keys() - first.keys()
    if missing or unexpected:
        said = [f"{what} {_listed(names)}" for what, names in (("lacks", missing), ("has", unexpected)) if names]
        raise ValueError(
            f"{_WHO}: states must have the same names; {which} {' and '.join(said)}, unlike number 0. Merge states of "
            "one architecture"
        )
    for name, value in first.items():
        ours, theirs = (xp.described(v) if isinstance(v, xp.array) else type(v).__name__ for v in (value, state[name]))
        if ours != theirs:
            raise ValueError(
                f"{_WHO}: {name} must have one shape and dtype in all states; got {ours} in number 0 and {theirs} in "
                f"{which}"
            )


def _listed(names: set[str]) -> str:
    shown = sorted(names)
    rest = len(shown) - _NAMES_SHOWN
    return ", ".join(shown[:_NAMES_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


# --- the running statistics of one layer, merged as moments ---


class _Start(NamedTuple):
    """A layer when the round began."""

    part: dict[str, Any]
    momentum: float | None


def _starts(xp: Arrays, first: State, base: Any, momentum: Any) -> Callable[[str], _Start] | None:
    """How each layer was when the round began; None without `base`."""
    if momentum is not ...:
        momentum = _options.MOMENTUM.checked(momentum, _WHO)
        if base is None:
            raise ValueError(
                f"{_WHO}: momentum says how much of base is left in the states; got momentum={momentum!r} and no base; "
                "give both"
            )
    if base is None:
        return None
    state = _state_of(xp, base, "base")
    _check_alike(xp, first, state, "base")

    def start(prefix: str) -> _Start:
        part, own = _part(state, prefix), xp.momentum_of(base, prefix) if momentum is ... else momentum
        if "num_batches_tracked" not in part:
            raise ValueError(
                f"{_WHO}: with base a layer must have num_batches_tracked, which says how much of base is left in its "
                f"statistics; {prefix.removesuffix('.') or 'the model itself'} has not"
            )
        return _Start(part, _options.MOMENTUM.default if own is ... else own)

    return start


def _part(state: State, prefix: str) -> dict[str, Any]:
    """The running statistics of one layer in a state."""
    return {name: state[prefix + name] for name in _STATISTICS if prefix + name in state}


class _Layer(NamedTuple):
    xp: Arrays
    prefix: str
    correction: int
    start: _Start | None

    def merged(self, states: Sequence[State], counts: list[float]) -> dict[str, Any]:
        """The running statistics of one layer; states without a share are not there."""
        present = [i for i, count in enumerate(counts) if count > 0]
        parts, counts = [_part(states[i], self.prefix) for i in present], [counts[i] for i in present]
        found: dict[str, Any] = {}
        if "num_batches_tracked" in parts[0]:
            least = 0 if self.start is None else self._checked_batches(self.start.part, "base", 0)
            batches = [self._checked_batches(p, f"number {i}", least) for i, p in zip(present, parts, strict=True)]
            found["num_batches_tracked"] = self._batches(parts[0]["num_batches_tracked"], batches, least)
        with np.errstate(all="ignore"):
            found = self._statistics(parts, counts) | found
        return {self.prefix + name: found[name] for name in parts[0]}

    def _statistics(self, parts: list[dict[str, Any]], counts: list[float]) -> dict[str, Any]:
        start = self.start
        kept, whole_kept = ([0.0] * len(parts), 0.0) if start is None else self._kept(parts, counts, start)
        tables = [self._own_moments(p, n, q) for p, n, q in zip(parts, counts, kept, strict=True) if q < 1]
        if start is not None and not tables:  # nothing moved
            return {name: self.xp.copied(value, parts[0][name]) for name, value in start.part.items()}
        whole = np.empty_like(tables[0])
        _native.merge(np.stack(tables, 1), whole)
        count, mean, m2 = whole[0], whole[1], whole[3]
        var = m2 / (count - self.correction)
        if start is not None and whole_kept > 0:
            old_mean, old_var = (self.xp.numpy(start.part[name]) for name in _STATISTICS[:2])
            behind = start.part.get("running_count")
            old_count = np.full_like(old_var, np.inf) if behind is None else self.xp.numpy(behind)
            gaps = (_formulas.variance_gap(v, n, self.correction) for v, n in ((old_var, old_count), (var, count)))
            mean, var, gap = (
                old + (1 - whole_kept) * (new - old) for old, new in ((old_mean, mean), (old_var, var), tuple(gaps))
            )
            count = _formulas.count_behind(np, var, gap, self.correction)
        var = np.maximum(var, 0)  # which rounding may leave below
        statistics = {"running_mean": mean, "running_var": var}
        if "running_count" in parts[0]:
            statistics["running_count"] = count
        return {name: self._fitting(name, value, [part[name] for part in parts]) for name, value in statistics.items()}

    def _own_moments(self, part: dict[str, Any], n: float, kept: float) -> Doubles:
        """Moments of what a state saw: all of it, or what it added to the start, which has a weight of `kept` in it."""
        mean, var = self._biased(part, n)
        if self.start is not None and kept > 0:
            old_mean, old_var = self._biased(self.start.part, n)
            mean, var = old_mean + (mean - old_mean) / (1 - kept), old_var + (var - old_var) / (1 - kept)
        return np.stack([np.full_like(mean, n), mean, np.zeros_like(mean), var * n])

    def _biased(self, part: dict[str, Any], n: float) -> tuple[Doubles, Doubles]:
        """Mean and biased variance; n positions are behind the correction, where the state does not say."""
        mean, var = self.xp.numpy(part["running_mean"]), self.xp.numpy(part["running_var"])
        behind = part.get("running_count")
        behind = n if behind is None else self.xp.numpy(behind)
        return mean, _formulas.other_variance(var, behind, 1) if self.correction else var

    def _kept(self, parts: list[dict[str, Any]], counts: list[float], start: _Start) -> tuple[list[float], float]:
        """The weight of the start in each state, and in the whole."""
        before = int(start.part["num_batches_tracked"])
        added = [int(part["num_batches_tracked"]) - before for part in parts]
        if start.momentum is None:
            whole = before + sum(added)
            return [before / (before + n) if n else 1.0 for n in added], before / whole if whole else 1.0
        kept = [(1 - start.momentum) ** n for n in added]
        shares = [count if q < 1 else 0.0 for count, q in zip(counts, kept, strict=True)]
        total = sum(shares)
        return kept, sum(share * q for share, q in zip(shares, kept, strict=True)) / total if total else 1.0

    def _batches(self, like: Any, batches: list[int], before: int) -> Any:
        """How many batches there were: those of the start, and what each state added."""
        whole = before + sum(n - before for n in batches)
        if whole > self.xp.most(like):
            raise ValueError(
                f"{_WHO}: {self.prefix}num_batches_tracked would be {whole}, which {self.xp.dtype(like)} does not "
                "hold. Give base=, what the states were trained from: then only what they added is counted"
            )
        return self.xp.narrow(np.full(tuple(like.shape), whole), like)

    def _checked_batches(self, part: dict[str, Any], which: str, least: int) -> int:
        """Refuse what is not a number of batches, or too few; return it."""
        value = part["num_batches_tracked"]
        batches = value.item() if math.prod(value.shape) == 1 else math.nan
        if batches != batches // 1 or batches < least:
            raise ValueError(
                f"{_WHO}: {self.prefix}num_batches_tracked must be a number of batches, at least {least}"
                f"{', that of base' if least else ''}; got {value.tolist()} in {which}"
            )
        return int(batches)

    def _fitting(self, name: str, value: Doubles, given: list[Any]) -> Any:
        """The value in the dtype of the states, which must hold it."""
        stored = self.xp.narrow(value, given[0])
        if not np.isfinite(self.xp.numpy(stored)).all() and all(np.isfinite(self.xp.numpy(p)).all() for p in given):
            raise ValueError(
                f"{_WHO}: {self.prefix}{name} would not be finite in {self.xp.dtype(stored)}, though it is in all "
                "states; make them float32 or float64 before they are merged"
            )
        return stored
