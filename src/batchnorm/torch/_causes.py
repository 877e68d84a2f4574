"""What a layer's running statistics are off by, in four parts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from .._records import Doubles

CAUSES = ("lag", "dropout", "batching", "shift")


class Causes(NamedTuple):
    """What each cause does to a statistic, for each channel."""

    lag: Doubles
    dropout: Doubles
    batching: Doubles
    shift: Doubles


@dataclass(frozen=True, eq=False)
class DiagnosedLayer:
    """One layer: what its running statistics are off by, in four parts.

    Attributes
    ----------
    name
        Which layer.
    variance
        Factors for each channel; their product is the running variance over that of the test.
    mean
        Distances for each channel, in standard deviations of the test; their sum is that of the running mean.
    m, m_eff
        Positions of a channel in a batch, and how many independent ones they are worth, by how far the means of batches
        lie apart; at most m.
    loss
        With the running statistics of this layer, and recalibrated ones in all others.
    """

    name: str
    variance: Causes
    mean: Causes
    m: float
    m_eff: float
    loss: float | None


def typical(distances: Doubles) -> float:
    """Channels that are off in opposite directions do not cancel."""
    return float(np.sqrt(np.mean(np.square(distances))))


def positions_said(m: float) -> str:
    """A count of positions in digits; a small one may be a fraction, of an effective count."""
    return f"{m:.0f}" if m >= 100 else f"{m:.3g}"


def typical_factor(factors: Doubles) -> float:
    """As `typical`, of logarithms."""
    with np.errstate(all="ignore"):
        logs = np.log(factors)
    return math.exp(math.copysign(typical(logs), float(np.mean(logs))))
