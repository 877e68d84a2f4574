"""Missing cells: values of x that are NaN, each of which is missing for its own channel alone."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import _inputs, _options, _refusals

Array = NDArray[Any]

#: The policies of arrays that need no look at their values.
COMMON = (None, "propagate")


def policy(value: object, who: str) -> str:
    """Check a `nan_policy`."""
    return str(_options.NAN_POLICY.checked(value, who))


def refuse(d: _inputs.Data, s: _inputs.Selection, mean: Array) -> None:
    """Raise, as nan_policy="raise" asks for, where a value that counts is NaN; `mean` is that of the channels."""
    if np.isnan(mean).any() and (where := first_nan(d.x, s)) is not None:
        raise ValueError(refusal(d.who, where, d.plan.axis))


def counted_nan(x: Array, s: _inputs.Selection | None) -> Array:
    """Whether each value is NaN, and counts."""
    found: Array = np.isnan(x)
    for counts in (None, None) if s is None else (s.position_weight, s.cells):
        if counts is not None:
            found &= counts != 0
    return found


def first_nan(x: Array, s: _inputs.Selection | None = None) -> tuple[int, ...] | None:
    """Index of the first NaN that counts."""
    found = counted_nan(x, s)
    first = int(found.argmax()) if found.size else 0
    return tuple(int(i) for i in np.unravel_index(first, x.shape)) if found.any() else None


def refusal(who: str, where: tuple[int, ...], axis: tuple[int, ...]) -> str:
    """Say where the first NaN is."""
    channel = tuple(where[i] for i in axis)
    return (
        f"{who}: x must have no NaN (nan_policy='raise'); got one at index {where}, in channel "
        f"{channel[0] if len(channel) == 1 else channel}; use nan_policy='omit' where NaN is a missing value"
    )


def trainable(d: _inputs.Data, counts: Array) -> None:
    """Refuse a channel, or a ghost of it, that has fewer than two values left."""
    if not counts.size or counts.min() >= 2:
        return
    where = tuple(int(i) for i in np.unravel_index(int(counts.argmin()), counts.shape))
    channel = where[len(where) - len(d.plan.channel_shape) :]
    ghost = f" of ghost batch {where[0]}" if len(where) > len(channel) else ""
    said = f"channel {channel[0] if len(channel) == 1 else channel}" if channel else "the one channel"
    raise ValueError(
        f"{d.who}: every channel needs at least two values that count, where NaN or a mask leaves some out; "
        f"{said}{ghost} has {counts.min():g} (input {d.x.shape}), so its variance would be 0. Leave the channel out, "
        f"or {_refusals.KNOWN_MOMENTS}"
    )
