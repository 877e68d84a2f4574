"""Moments: count, mean and M2 of every channel, and the merge that makes them a monoid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import _formulas, _inputs, _native
from ._plan import channel_axes

Doubles = NDArray[np.float64]

COUNT, MEAN, LOW, M2 = range(4)

#: Channels that a notebook shows.
_SHOWN = 20


class Moments:
    """Count, mean and sum of squared deviations (M2) of every channel, in float64; immutable.

    Moments of parts of the data, merged in any order and grouping, are the moments of the whole (to rounding):
    mini-batches, files, processes. `Moments.empty` is the zero.

    Parameters
    ----------
    count
        Positions counted in each channel, or the sum of their weights; at least 0. A scalar serves every channel. It is
        a float64: positions are counted exactly up to 2**53.
    mean
        Mean of each channel; its shape is the lengths of the channel axes.
    m2
        Sum of the squared deviations from the mean, at least 0. The biased variance is `m2 / count`.
    mean_low
        What rounding `mean` to float64 left out: the mean is `mean + mean_low`. Default 0.
    names
        Names of the channels, where they have some.

    Notes
    -----
    Merging follows Chan, Golub and LeVeque (1983): with ``delta = mean_b - mean_a`` and ``n = n_a + n_b``,
    ``mean = mean_a + delta * n_b / n`` and ``M2 = M2_a + M2_b + delta**2 * n_a * n_b / n``.

    Examples
    --------
    >>> import numpy as np
    >>> import batchnorm as bn
    >>> x = np.array([[1.0], [2.0], [3.0], [6.0]])
    >>> whole = bn.moments(x)
    >>> parts = bn.moments(x[:1]) + bn.moments(x[1:])
    >>> parts.count, parts.mean, parts.var()
    (array([4.]), array([3.]), array([3.5]))
    >>> bool(np.allclose(parts.m2, whole.m2))
    True
    """

    __slots__ = ("_names", "_table")
    _table: Doubles  # rows count, mean, mean_low, m2: what the kernels read and write
    _names: tuple[str, ...]  # set where there are some

    def __init__(
        self,
        count: ArrayLike,
        mean: ArrayLike,
        m2: ArrayLike,
        mean_low: ArrayLike | None = None,
        names: Sequence[str] | None = None,
    ) -> None:
        parts = [
            _inputs.statistic(value, name)
            for name, value in (("count", count), ("mean", mean), ("mean_low", mean_low), ("m2", m2))
            if value is not None
        ]
        if mean_low is None:
            parts.insert(LOW, np.zeros(()))
        shape = parts[MEAN].shape
        for name, part in zip(("count", "mean", "mean_low", "m2"), parts, strict=True):
            if part.shape not in (shape, ()):
                raise ValueError(
                    f"Moments: {name} must have one value for each channel; got shape {part.shape}, mean has {shape}"
                )
        for name, part in (("count", parts[COUNT]), ("m2", parts[M2])):
            if (part < 0).any():
                raise ValueError(f"Moments: {name} is a sum of non-negative terms; the smallest value is {part.min()}")
        if not np.isfinite(parts[COUNT]).all():
            raise ValueError(f"Moments: count must be finite; got {parts[COUNT]}")
        table = np.empty((4, *shape))
        for row, part in enumerate(parts):
            table[row] = part
        self._set(table)
        if names is not None:
            _set_names(self, self._checked_names(names))

    def _set(self, table: Doubles) -> None:
        table.flags.writeable = False
        _set_table(self, table)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"Moments are immutable: cannot set {name!r}; build new ones")

    @classmethod
    def _of_table(cls, table: Doubles) -> Moments:
        moments = object.__new__(cls)
        table.flags.writeable = False
        _set_table(moments, table)
        return moments

    def named(self, names: Sequence[str] | None) -> Moments:
        """The same moments with names for the channels, as the columns of a table have; None takes names away.

        >>> import batchnorm as bn
        >>> bn.moments([[1.0, 2.0], [3.0, 6.0]]).named(["height", "weight"]).names
        ('height', 'weight')
        """
        moments = Moments._of_table(self._table)
        if names is not None:
            _set_names(moments, moments._checked_names(names))
        return moments

    def _checked_names(self, names: Sequence[str]) -> tuple[str, ...]:
        if isinstance(names, str) or not all(isinstance(name, str) for name in names):
            raise TypeError(f"Moments: names must be texts, one for each channel; got {names!r}")
        if self._table.ndim < 2 or len(names) != self._table.shape[-1]:
            raise ValueError(
                f"Moments: names must be one for each channel, for channels on one axis; got {len(names)} for "
                f"moments of shape {self.shape}"
            )
        return tuple(names)

    @property
    def names(self) -> tuple[str, ...] | None:
        """Names of the channels: those of a table's columns, or None."""
        return getattr(self, "_names", None)

    @classmethod
    def empty(cls, shape: int | tuple[int, ...]) -> Moments:
        """The moments of nothing, for `shape` channels: the zero of the merge.

        >>> import batchnorm as bn
        >>> bn.Moments.empty(2).count
        array([0., 0.])
        """
        return cls._of_table(np.zeros((4, *_inputs.channel_shape(shape, "Moments.empty"))))

    @classmethod
    def from_statistics(cls, mean: ArrayLike, var: ArrayLike, count: ArrayLike = 1.0) -> Moments:
        """Moments with a given mean and biased variance, as running statistics give them.

        >>> import batchnorm as bn
        >>> bn.Moments.from_statistics([0.5], [4.0]).std()
        array([2.])
        """
        n, v = _inputs.statistic(count, "count"), _inputs.statistic(var, "var")
        if (v < 0).any():
            raise ValueError(f"Moments: a variance is not negative; got {v.min()}")
        if not (n > 0).all():
            raise ValueError(f"Moments: count must be positive where a variance is given; got {n.min()}")
        with np.errstate(over="ignore"):
            m2 = v * n
        if (np.isinf(m2) & np.isfinite(v) & np.isfinite(n)).any():
            raise ValueError(
                f"Moments: var * count, which is M2, must fit float64; got a variance of {v.max():g} and a count of "
                f"{n.max():g}; use a smaller count"
            )
        return cls(np.broadcast_to(n, v.shape), mean, m2)

    @property
    def count(self) -> Doubles:
        """Positions counted, or the sum of their weights."""
        count: Doubles = self._table[COUNT]
        return count

    @property
    def mean(self) -> Doubles:
        """Mean of each channel, rounded to float64."""
        mean: Doubles = self._table[MEAN]
        return mean

    @property
    def mean_low(self) -> Doubles:
        """What `mean` left out, so that `mean + mean_low` is the mean to about 106 bits."""
        low: Doubles = self._table[LOW]
        return low

    @property
    def m2(self) -> Doubles:
        """Sum of squared deviations from the mean."""
        m2: Doubles = self._table[M2]
        return m2

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of every per-channel array, which is the lengths of the channel axes."""
        return self._table.shape[1:]

    def var(self, correction: float = 0) -> Doubles:
        """Variance of each channel, ``m2 / (count - correction)``.

        Parameters
        ----------
        correction
            0 for the biased variance that normalizes; 1 (Bessel) for the unbiased one that PyTorch's running_var keeps.

        Raises
        ------
        ValueError
            Where a channel's count is not greater than the correction.
        """
        below = ~(self.count > correction)
        if below.any():
            where = tuple(int(i[0]) for i in np.nonzero(np.atleast_1d(below)))
            channel = where[0] if len(where) == 1 else where
            raise ValueError(
                f"a variance with correction {correction:g} needs a count above {correction:g} in every channel; "
                f"channel {channel} has a count of {np.atleast_1d(self.count)[where]:g}"
            )
        return self.m2 / (self.count - correction)

    def std(self, correction: float = 0) -> Doubles:
        """Standard deviation of each channel: the square root of `var(correction)`."""
        return np.sqrt(self.var(correction))

    def merge(self, *others: Moments) -> Moments:
        """Moments of all the data of this and the others, as if gathered at once.

        >>> import batchnorm as bn
        >>> a, b = bn.moments([[1.0], [3.0]]), bn.moments([[8.0]])
        >>> a.merge(b).mean
        array([4.])
        """
        table, names = self._table, self.names
        for other in others:
            if not isinstance(other, Moments):
                raise TypeError(f"Moments merge with Moments; got {type(other).__name__}")
            if other.shape != self.shape:
                raise ValueError(
                    f"Moments merge channel by channel; got channel shapes {self.shape} and {other.shape}; gather all "
                    "parts with the same channels"
                )
            names = _one_of(names, other.names)
            with np.errstate(all="ignore"):
                merged: Doubles = _formulas.merge_moments(np, table, other._table)
            table = _with_finite_count(merged)
        merged_all = Moments._of_table(table.copy() if table is self._table else table)
        return merged_all if names is None else merged_all.named(names)

    def reduce(self, axis: int | tuple[int, ...] | None = 0) -> Moments:
        """Merge along an axis, or several, which the result does not have: of ghosts, the moments of the whole batch.

        `axis` is that of `numpy.add.reduce`: an int, a tuple, or None for all. The parts are merged pairwise, neighbors
        first, in a tree that depends on their number alone.

        >>> import numpy as np
        >>> import batchnorm as bn
        >>> ghosts = bn.moments(np.array([[1.0], [3.0], [8.0]]), virtual_batch_size=2)
        >>> ghosts.mean.tolist(), ghosts.reduce().mean.tolist()
        ([[2.0], [8.0]], [4.0])
        """
        ndim = len(self.shape)
        given = tuple(range(ndim)) if axis is None else channel_axes(axis, "Moments.reduce")
        axes = given if isinstance(given, tuple) else (given,)
        for i in axes:
            if not -ndim <= i < ndim:
                raise ValueError(f"Moments.reduce: moments of shape {self.shape} have no axis {i} to merge along")
        along = [i % ndim for i in axes]
        if len(set(along)) != len(along):
            raise ValueError(
                f"Moments.reduce: axis names each axis once; got {axis!r} for moments of shape {self.shape}"
            )
        kept = [i for i in range(ndim) if i not in along]
        parts = math.prod(self.shape[i] for i in along)
        shape = tuple(self.shape[i] for i in kept)
        table = self._table.transpose(0, *(1 + i for i in sorted(along)), *(1 + i for i in kept))
        merged = np.empty((4, *shape))
        _native.merge(np.ascontiguousarray(table).reshape(4, parts, *shape), merged)
        whole = Moments._of_table(_with_finite_count(merged))
        return whole if self.names is None or ndim - 1 in along else whole.named(self.names)

    def __add__(self, other: Moments) -> Moments:
        return self.merge(other) if isinstance(other, Moments) else NotImplemented

    def __radd__(self, other: object) -> Moments:
        return self if other == 0 else NotImplemented  # sum() starts with 0

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Moments):
            return NotImplemented
        return bool(np.array_equal(self._table, other._table, equal_nan=True))

    __hash__ = None  # type: ignore[assignment]  # compared by value, like the arrays it holds

    def __reduce__(self) -> tuple[Any, ...]:
        named = () if self.names is None else (self.names,)
        return Moments, (self.count, self.mean, self.m2, self.mean_low, *named)

    def __copy__(self) -> Moments:
        return self

    def __deepcopy__(self, memo: object) -> Moments:
        return self

    def __repr__(self) -> str:
        with np.errstate(invalid="ignore", divide="ignore"):
            std = np.sqrt(self.m2 / self.count)
        shown = [
            np.array2string(np.asarray(v), separator=", ", threshold=6, precision=6)
            for v in (self.count, self.mean, std)
        ]
        named = "" if self.names is None else f"names={self.names}, "
        return "Moments({}count={}, mean={}, std={})".format(named, *shown)

    def _repr_html_(self) -> str:
        """Return a table for notebooks: a row for each channel, up to twenty of them."""
        from html import escape

        channels = self.mean.size
        with np.errstate(invalid="ignore", divide="ignore"):
            var = self.m2 / self.count
        numbers = [np.ravel(v) for v in (self.count, self.mean, var, np.sqrt(var))]
        rows = ""
        for c, index in zip(range(min(channels, _SHOWN)), np.ndindex(self.shape), strict=False):
            name = ", ".join(map(str, index)) if self.names is None else escape(self.names[c])
            rows += f"<tr><th>{name}</th>{''.join(f'<td>{v[c]:.6g}</td>' for v in numbers)}</tr>"
        head = "".join(f"<th>{title}</th>" for title in ("channel", "count", "mean", "variance", "std"))
        more = f"<p>{channels - _SHOWN} more channels are not shown.</p>" if channels > _SHOWN else ""
        count = "1 channel" if channels == 1 else f"{channels} channels"
        table = f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
        return f"<p><b>Moments</b> of {count}</p>{table}{more}"


_set_table = Moments._table.__set__  # type: ignore[attr-defined, misc]  # the slot's own, past __setattr__


_set_names = Moments._names.__set__  # type: ignore[attr-defined, misc]  # likewise


def _one_of(a: tuple[str, ...] | None, b: tuple[str, ...] | None) -> tuple[str, ...] | None:
    """The names of what is merged: those of either, or of both."""
    if a is None or b is None or a == b:
        return b if a is None else a
    first = next(i for i, (one, other) in enumerate(zip(a, b, strict=True)) if one != other)
    raise ValueError(
        f"Moments merge column by column; got {a[first]!r} and {b[first]!r} as names of channel {first}; bring the "
        "columns into one order, or name them alike with named()"
    )


def _with_finite_count(table: Doubles) -> Doubles:
    if not np.isfinite(table[COUNT]).all():
        raise ValueError(
            "Moments: the counts that are merged must add up to a float64, at most 1.8e308; got counts whose sum is "
            "infinite; scale the weights (only their ratios matter)"
        )
    return table
