"""The plan: which positions are averaged together, as plain integers. No arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from operator import index
from typing import Any

import numpy as np

Axis = int | Sequence[int]


@dataclass(frozen=True)
class Plan:
    """Shape and channel axes, reduced to (N, C, S).

    Attributes
    ----------
    shape
        Of the data.
    axis
        The channel axes, counted from 0, ascending.
    reduced
        The other axes: those that are averaged over, ascending.
    channel_shape
        Lengths of the channel axes: the shape of every per-channel array.
    N
        Length of the first reduced axis.
    C
        Number of channels.
    S
        Number of positions that one of the N gives to a channel.
    m
        N * S, the number of positions of a channel.
    """

    shape: tuple[int, ...]
    axis: tuple[int, ...]
    reduced: tuple[int, ...]
    channel_shape: tuple[int, ...]
    N: int
    C: int
    S: int

    @property
    def m(self) -> int:
        """Positions averaged together for one channel."""
        return self.N * self.S

    @property
    def reduced_shape(self) -> tuple[int, ...]:
        """Shape of the positions of one channel."""
        return tuple(self.shape[i] for i in self.reduced)

    def words(self) -> str:
        """Say the plan in one sentence.

        >>> make_plan((8, 3, 4, 4), 1).words()
        'shape (8, 3, 4, 4), channels on axis 1: 3 channels; each averages 128 = 8 x 4 x 4 positions (axes 0, 2, 3)'
        """
        kept = _axes(self.axis, "channels on axis", "channels on axes", "no channel axis")
        over = _axes(self.reduced, "axis", "axes", "no axis")
        count = "1 channel" if self.C == 1 else f"{self.C} channels; each"
        averages = f"averages {self.m}"
        if len(self.reduced) > 1:
            averages += " = " + " x ".join(map(str, self.reduced_shape))
        return f"shape {self.shape}, {kept}: {count} {averages} position{'s' * (self.m != 1)} ({over})"


def _axes(axes: tuple[int, ...], one: str, many: str, none: str) -> str:
    if not axes:
        return none
    return f"{one if len(axes) == 1 else many} {', '.join(map(str, axes))}"


def make_plan(shape: tuple[int, ...], axis: Axis) -> Plan:
    """Plan for data of `shape` with channels on `axis`; ValueError or TypeError where there is none."""
    return _make_plan(shape, axis if type(axis) is int else channel_axes(axis))


def channel_axes(axis: Axis, who: str = "") -> int | tuple[int, ...]:
    """An axis as an int, several as a tuple of ints; TypeError for anything else (1.0 and True, too)."""
    several = isinstance(axis, Sequence) and not isinstance(axis, str)
    given = tuple(axis) if isinstance(axis, Sequence) and several else (axis,)
    try:
        ints = tuple(_index(i) for i in given)
    except TypeError:
        raise TypeError(
            (f"{who}: " if who else "")
            + f"axis must be an int or a tuple of ints (the axes of the channels); got {axis!r} of type "
            f"{type(axis).__name__}" + ("; use tuple(axis)" if hasattr(axis, "tolist") else "")
        ) from None
    return ints if several else ints[0]


def _index(i: Any) -> int:
    if isinstance(i, (bool, np.bool_)):
        raise TypeError
    return index(i)


@lru_cache(maxsize=4096)
def _make_plan(shape: tuple[int, ...], axis: int | tuple[int, ...]) -> Plan:
    ndim = len(shape)
    if ndim == 0:
        raise ValueError("batch normalization needs at least one axis to average over; got a scalar (shape ())")
    given = axis if isinstance(axis, tuple) else (axis,)
    kept = []
    for i in given:
        if not -ndim <= i < ndim:
            raise ValueError(
                f"axis {i} does not exist: input of shape {shape} has axes 0 to {ndim - 1} (or -{ndim} to -1). "
                "axis names the channels, the axes that are kept"
            )
        kept.append(i % ndim)
    if len(set(kept)) != len(kept):
        raise ValueError(f"axis names each axis of the channels once; got {axis!r} for an input of shape {shape}")
    kept.sort()
    reduced = tuple(i for i in range(ndim) if i not in kept)
    channel_shape = tuple(shape[i] for i in kept)
    lengths = [shape[i] for i in reduced]
    return Plan(
        shape=shape,
        axis=tuple(kept),
        reduced=reduced,
        channel_shape=channel_shape,
        N=lengths[0] if lengths else 1,
        C=prod(channel_shape),
        S=prod(lengths[1:]),
    )
