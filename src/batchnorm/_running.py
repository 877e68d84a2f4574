"""Running statistics: mean and variance of every channel, moved by the moments of one batch after another."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from . import _formulas, _inputs, _native, _options, _refusals
from ._moments import Moments
from ._options import Correction, OnNonfinite

Array = NDArray[Any]


def _is_float(dtype: np.dtype[Any]) -> bool:
    return dtype.kind == "f" or dtype.name == "bfloat16"


_FLOATS = "floats, one for each channel", _is_float
_ARRAYS: dict[str, tuple[str, Callable[[np.dtype[Any]], bool]]] = {  # what each holds
    "running_mean": _FLOATS,
    "running_var": _FLOATS,
    "num_batches_tracked": ("one integer, of no axes", lambda dtype: dtype.kind in "iu"),
    "running_count": ("float64, one for each channel", lambda dtype: dtype == np.float64),
}


class RunningStatistics(_options.Checked):
    """Running mean and variance of every channel, as a layer keeps them.

    Each batch moves them by its moments (mean, M2, m)::

        running_mean = (1 - momentum) * running_mean + momentum * mean
        running_var  = (1 - momentum) * running_var  + momentum * M2 / (m - running_correction)

    Parameters
    ----------
    num_features
        Number of channels; for several channel axes, a tuple of their lengths.
    momentum
        Weight of the *new* batch, from 0 to 1; None weighs all batches so far equally.
    running_correction
        1: running_var is unbiased (PyTorch's rule). 0: biased (Keras, Flax, ONNX).
    keep_count
        Keep `running_count` as well, so that `running_variance` gives the biased and the unbiased variance,
        whatever the sizes of the batches were.
    on_nonfinite
        What happens to a batch after which a statistic would not be finite, as it is stored. "propagate": it is stored.
        "skip": the batch is left out. "raise": ValueError. This concerns batches with NaN or infinity, and those whose
        variance is beyond float32.
    dtype
        Of running_mean and running_var: float32 or float64.

    Attributes
    ----------
    running_mean, running_var
        Arrays of `num_features` values; at first 0 and 1.
    num_batches_tracked
        int64 array of no axes.
    running_count
        With `keep_count`, float64: the count n of each channel for which ``running_var * (n - 1) / n`` is the biased
        running variance (with ``running_correction=0``: ``running_var * n / (n - 1)`` the unbiased one). At first
        infinite: the initial 1 is neither.

    Notes
    -----
    The two running variances are both averages with the same weights, so their difference is one, too: it moves toward
    ``M2 / (m (m - 1))``, and n is the unbiased one divided by it.

    Examples
    --------
    >>> import numpy as np
    >>> import batchnorm as bn
    >>> running = bn.RunningStatistics(1, momentum=None, keep_count=True, dtype=np.float64)
    >>> for batch in ([[1.0], [3.0]], [[2.0], [5.0], [8.0]]):
    ...     running.update(bn.moments(np.array(batch)))
    True
    True
    >>> running.running_mean, running.running_variance(correction=1), running.running_variance(correction=0)
    (array([3.5]), array([5.5]), array([3.5]))
    """

    dtype: np.dtype[Any]
    momentum: float | None
    running_correction: Correction
    on_nonfinite: OnNonfinite
    running_mean: Array
    running_var: Array
    num_batches_tracked: Array
    running_count: Array | None

    _settable = _options.by_name(
        _options.MOMENTUM, _options.RUNNING_CORRECTION, _options.ON_NONFINITE, _options.KEEP_COUNT
    )

    def __init__(
        self,
        num_features: int | tuple[int, ...],
        *,
        momentum: float | None = 0.1,
        running_correction: Correction = 1,
        keep_count: bool = False,
        on_nonfinite: OnNonfinite = "propagate",
        dtype: DTypeLike = np.float32,
    ) -> None:
        self._who = type(self).__name__  # a layer puts its own name here
        self._shape = _inputs.channel_shape(num_features, self._who)
        self.dtype = checked_dtype(dtype, self._who)
        self.momentum = momentum
        self.running_correction = running_correction
        self.on_nonfinite = on_nonfinite
        self.running_mean = np.zeros(self._shape, self.dtype)
        self.running_var = np.ones(self._shape, self.dtype)
        self.num_batches_tracked = np.zeros((), np.int64)
        self.running_count = None
        self.keep_count = keep_count

    @property
    def keep_count(self) -> bool:
        """Whether there is a `running_count`; setting it makes one, or takes it away."""
        return self.running_count is not None

    @keep_count.setter
    def keep_count(self, keep: bool) -> None:
        if keep != self.keep_count:
            self.running_count = np.full(self._shape, np.inf) if keep else None

    def _called(self) -> str:
        return self._who

    def _checked(self, name: str, value: Any) -> Any:
        if name in _ARRAYS and not (value is None and name == "running_count"):
            self._check_array(name, value)
        return super()._checked(name, value)

    def _check_array(self, name: str, value: Any, written: bool = False) -> None:
        rule, fits = _ARRAYS[name]
        shape = () if name == "num_batches_tracked" else self._shape
        is_array = isinstance(value, np.ndarray)
        if is_array and value.shape == shape and fits(value.dtype) and (value.flags.writeable or not written):
            return
        got = f"{_inputs.described(value)}, writeable={value.flags.writeable}" if is_array else _options.shown(value)
        raise (ValueError if is_array else TypeError)(
            f"{self._who}: {name} must be a{' writeable' if written else 'n'} array of {rule}; got {got}; to change "
            f"its values, assign to {name}[...]"
        )

    def reset(self) -> None:
        """Set them to mean 0, variance 1, no batches."""
        for name, value in self._state().items():
            self._check_array(name, value, written=True)
        self.running_mean[...], self.running_var[...], self.num_batches_tracked[...] = 0, 1, 0
        if self.running_count is not None:
            self.running_count[...] = np.inf

    def update(self, moments: Moments) -> bool:
        """Move them towards the moments of a batch: all of them, or none.

        Returns
        -------
        bool
            Whether they moved: not when the batch was skipped.

        Raises
        ------
        ValueError
            For moments of other channels, of too few values for a variance, or, with ``on_nonfinite="raise"``, after
            which a statistic would not be finite; where num_batches_tracked cannot count another batch.
        """
        if self._moves_natively(moments):
            return True
        self._check(moments)
        new, finite = self._moved(moments)
        if self.on_nonfinite != "propagate" and not finite.all():
            if self.on_nonfinite == "skip":
                return False
            raise ValueError(self._not_finite(moments, new, finite))
        for own, value in zip(self._state().values(), new, strict=True):
            own[...] = value
        return True

    def _moves_natively(self, m: Moments) -> bool:
        """The common update in one native call; False, with nothing changed, where there is more to it."""
        if self.running_count is not None or self.on_nonfinite != "propagate":
            return False
        momentum = -1.0 if self.momentum is None else self.momentum
        return _native.move_running(
            self.running_mean, self.running_var, self.num_batches_tracked, m._table, momentum, self.running_correction
        )

    def _check(self, m: Moments) -> None:
        """Refuse moments that cannot move them, and arrays that cannot be moved."""
        if m.shape != self.running_mean.shape:
            raise ValueError(
                f"{self._who}: the moments must hold one value for each channel, shape {self.running_mean.shape}; got "
                f"{m.shape}; those of ghost batches become one with moments.reduce()"
            )
        for name, value in self._state().items():
            self._check_array(name, value, written=True)
        batches, most = int(self.num_batches_tracked), np.iinfo(self.num_batches_tracked.dtype).max
        if batches == most or (self.momentum is None and batches < 0):
            raise ValueError(f"{self._who}: {_refusals.batches(batches, most, 'num_batches_tracked[...] = 0')}")
        least = self.running_correction if self.running_count is None else 1
        if not (m.count > least).all():
            said = _refusals.sum_of_weights(m.count.min(), least, self.running_count is not None)
            raise ValueError(f"{self._who}: {said}")

    def _moved(self, m: Moments) -> tuple[list[Array], Array]:
        """What a batch makes of them, in the order of `_state` and in their own dtypes; and where that is finite."""
        batches = int(self.num_batches_tracked) + 1
        a = 1 / batches if self.momentum is None else self.momentum
        with np.errstate(all="ignore"):  # a variance beyond float32 is infinite there, as in PyTorch
            own = self.running_mean.astype(np.float64), self.running_var.astype(np.float64), self.running_count
            to = _formulas.moved(np, own, (m.count, m.mean, m.m2), a, self.running_correction)
            mean, var = to.mean.astype(self.running_mean.dtype), to.var.astype(self.running_var.dtype)
            finite = _formulas.all_finite(np, mean, var, to.gap)
        return [mean, var, np.asarray(batches), *([] if to.counts is None else [to.counts])], finite

    def _not_finite(self, m: Moments, new: list[Array], finite: Array) -> str:
        """Which channel of a batch is refused with on_nonfinite="raise", and what would have been stored."""
        c = tuple(int(i[0]) for i in np.nonzero(np.atleast_1d(~finite)))
        mean, var, new_mean, new_var = (float(np.atleast_1d(v)[c]) for v in (m.mean, m.m2 / m.count, new[0], new[1]))
        channel, dtype = c[0] if len(c) == 1 else c, str(self.running_var.dtype)
        said = _refusals.not_finite(channel, (mean, var), dtype, (new_mean, new_var))
        return f"{self._who}: {said}"

    def running_variance(self, correction: Correction = 0) -> Array:
        """The biased (0) or unbiased (1) running variance, in float64.

        Raises
        ------
        ValueError
            Where it is not the one that running_var holds, and `keep_count` is off.
        """
        var: Array = self.running_var.astype(np.float64)
        if _options.RUNNING_CORRECTION.called("correction").checked(correction, self._who) == self.running_correction:
            return var
        if self.running_count is None:
            held = "unbiased (correction 1)" if self.running_correction else "biased (correction 0)"
            raise ValueError(
                f"{self._who}: running_var is {held}, and how many values its batches had was not kept; ask for "
                f"correction={self.running_correction}, or build with keep_count=True"
            )
        with np.errstate(invalid="ignore"):
            other: Array = _formulas.other_variance(var, self.running_count, self.running_correction)
        return other

    def moments(self) -> Moments:
        """Moments to normalize with in evaluation: mean and variance as they are kept."""
        table = np.empty((4, *self._shape))
        if _native.running_moments(self.running_mean, self.running_var, table):
            return Moments._of_table(table)
        return Moments.from_statistics(self.running_mean, self.running_var)

    def _state(self) -> dict[str, Array]:
        """The arrays themselves, under the names of `state_dict`."""
        return {name: value for name in _ARRAYS if (value := getattr(self, name)) is not None}

    def rule(self) -> str:
        """How a batch moves them, as a formula."""
        var = "batch var * m/(m-1)" if self.running_correction else "batch var"
        if self.momentum is None:
            return f"running = mean over all batches of (batch mean, {var})"
        return f"running = {1 - self.momentum:g} * running + {self.momentum:g} * (batch mean, {var})"

    def __repr__(self) -> str:
        return f"RunningStatistics({self._shape}, batches={self.num_batches_tracked}; {self.rule()})"


class KeptAttribute:
    """An attribute of a layer that its running statistics hold.

    A layer without them holds an option itself, and has no arrays.
    """

    def __init__(self, *, option: bool = False) -> None:
        self._is_option = option

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, layer: Any, owner: type) -> Any:
        if layer is None:
            return self
        running = layer.__dict__.get("running")
        return layer.__dict__.get(self._name) if running is None else getattr(running, self._name)

    def __set__(self, layer: Any, value: Any) -> None:
        running = layer.__dict__.get("running")
        if running is not None:
            setattr(running, self._name, value)
        elif self._is_option:
            layer.__dict__[self._name] = value
        elif value is not None:
            raise _options.needs_running(type(layer).__name__, self._name)


def checked_dtype(dtype: DTypeLike, who: str) -> np.dtype[Any]:
    """Check the dtype of parameters and running statistics."""
    if np.dtype(dtype) not in (np.float32, np.float64):
        raise TypeError(
            f"{who}: dtype (of parameters and running statistics) must be float32 or float64; got {np.dtype(dtype)}; "
            "inputs may be float16 or bfloat16 all the same"
        )
    return np.dtype(dtype)


def taken(who: str, own: Mapping[str, Array], state: Mapping[str, ArrayLike]) -> dict[str, Array]:
    """Check a state against the arrays that are there; return their new values, changing nothing."""
    return {name: _loaded(who, name, state[name], value) for name, value in own.items() if name in state}


def _loaded(who: str, name: str, value: ArrayLike, own: Array) -> Array:
    a = np.asarray(value)
    kinds = "iu" if own.dtype.kind == "i" else "f"
    if a.dtype.kind not in kinds or a.shape != own.shape:
        raise ValueError(
            f"{who}: {name} must have shape {own.shape} and hold {own.dtype.name}; got {_inputs.described(a)}"
        )
    if not own.flags.writeable:
        raise ValueError(f"{who}: {name} must be writeable to take a state; got an array that is not; replace it first")
    with np.errstate(over="ignore"):
        value = a.astype(own.dtype)
    lost = value != a if own.dtype.kind == "i" else np.isinf(value) & np.isfinite(a)
    if lost.any():
        raise ValueError(
            f"{who}: {name} must fit {own.dtype.name}; got {a[lost].flat[0]}, {a.dtype.name}"
            + ("" if own.dtype.kind == "i" else "; build the layer with dtype=np.float64")
        )
    return value
