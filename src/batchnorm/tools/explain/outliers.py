"""Values so far out that they squeeze the rest of their channel into a small part of its range."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..._blocks import working_dtype
from ..._moments import Moments
from .channels import ChannelTable
from .one_channel import moments_of, normalized, placed
from .sampling import Sample

#: The rest keeps this part of the range at most: of ten normal values that happens once in thousands of columns.
SQUEEZED = 0.2
#: Of a channel, at most one value in a hundred is an outlier, and at most so many; one always may be, two of FEW.
MOST, FEW = 15, 20
#: In a channel of fewer values none is called so.
FEWEST = 5
#: Channels looked at value by value.
CHANNELS = 8


@dataclass(frozen=True)
class Outlier:
    """What squeezes a channel: ``count`` values, of which ``value`` at ``position`` lies furthest out.

    The other values lie between ``low`` and ``high``, which is ``share`` of the range of all, and between ``low_after``
    and ``high_after`` once they are normalized.
    """

    channel: int
    position: int
    value: float
    count: int
    low: float
    high: float
    share: float
    low_after: float
    high_after: float


def find_outliers(
    x: np.ndarray, m: Moments, kept: tuple[int, ...], eps: float, table: ChannelTable, sample: Sample
) -> tuple[Outlier, ...]:
    """Return the channels' outliers, in the order of the channels; at most one entry for a channel."""
    found = []
    for channel in _suspects(table, sample)[:CHANNELS]:
        outlier = _look(x, m, kept, eps, int(channel), int(table.count[channel]))
        if outlier is not None:
            found.append(outlier)
    return tuple(sorted(found, key=lambda o: o.channel))


def _allowed(count: int) -> int:
    return min(MOST, max(2 if count >= FEW else 1, count // 100))


def _suspects(table: ChannelTable, sample: Sample) -> np.ndarray:
    """Return the channels whose sampled values, but for a few, lie in a small part of the range; the gravest first."""
    ordered = np.sort(sample.x, axis=0)  # NaN comes last
    there = np.count_nonzero(~np.isnan(ordered), axis=0)
    cut = np.array([_allowed(n) for n in there], np.int64)
    across = np.arange(ordered.shape[1])
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        inner = ordered[np.maximum(there - 1 - cut, 0), across] - ordered[np.minimum(cut, len(ordered) - 1), across]
        share = inner / (table.maximum - table.minimum)[sample.channels]
    fine = np.isfinite(table.std[sample.channels]) & (there >= FEWEST) & (share > 0) & (share <= SQUEEZED)
    order = np.argsort(share, kind="stable")
    suspects: np.ndarray = sample.channels[order[fine[order]]]
    return suspects


def _look(x: np.ndarray, m: Moments, kept: tuple[int, ...], eps: float, channel: int, count: int) -> Outlier | None:
    """Set aside as few of the least and the greatest values as leave the rest a small part of the range."""
    most = _allowed(count)
    values, positions = _ends(x, kept, channel, most + 1)
    n = len(values)
    whole = values[-1] - values[0]
    for aside in range(1, min(most, n - 2) + 1):
        rest, below = min((values[n - 1 - aside + b] - values[b], b) for b in range(aside + 1))
        if not 0 < rest <= SQUEEZED * whole:
            continue
        low, high = float(values[below]), float(values[n - 1 - aside + below])
        furthest = 0 if below and (below == aside or low - values[0] > values[-1] - high) else n - 1
        one = moments_of(m, tuple(x.shape[a] for a in kept), channel)
        after = normalized(np.array([low, high]).astype(working_dtype(x.dtype)), one, eps)
        return Outlier(
            channel=channel,
            position=int(positions[furthest]),
            value=float(values[furthest]),
            count=aside,
            low=low,
            high=high,
            share=float(rest / whole),
            low_after=float(after[0]),
            high_after=float(after[1]),
        )
    return None


def _ends(x: np.ndarray, kept: tuple[int, ...], channel: int, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the ``most`` least and greatest values of a channel, in order, and their positions."""
    values, positions = np.zeros(0), np.zeros(0, np.int64)
    for more, where in placed(x, kept, channel):
        there = ~np.isnan(more)
        values = np.concatenate([values, more[there].astype(np.float64)])
        positions = np.concatenate([positions, where[there]])
        if len(values) > 2 * most:
            order = np.argpartition(values, [most - 1, len(values) - most])
            ends = np.concatenate([order[:most], order[-most:]])
            values, positions = values[ends], positions[ends]
    order = np.argsort(values, kind="stable")
    return values[order], positions[order]
