"""What a reader should look at twice, found in the statistics of the channels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..text.remarks import NEAR_EPS
from .channels import ChannelTable
from .digits import short

#: Name, significand bits (the hidden one included) and greatest value of the 16-bit formats.
SIXTEEN_BIT = (("float16", 11, 65504.0), ("bfloat16", 8, 3.3895313892515355e38))
#: The greatest value of each.
ENDS = {name: greatest for name, _, greatest in SIXTEEN_BIT}

#: A format whose step at the mean is more than this part of std leaves a few dozen distinct values at most.
COARSE = 0.125

TAGS = {"non-finite": "NaN, inf", "one value": "1 value", "constant": "constant", "near eps": "near eps"}


@dataclass(frozen=True)
class Suspicion:
    """One kind of trouble, the channels that have it, and one number for each that says how much.

    ``kind`` is a short tag; ``meaning`` says what ``values`` are.
    """

    kind: str
    meaning: str
    channels: tuple[int, ...]
    values: tuple[float, ...]

    @property
    def tag(self) -> str:
        """At most eight letters for a row of a table."""
        return TAGS.get(self.kind, "16-bit" if "float16" in self.kind else self.kind.split()[0])


def find_suspicions(table: ChannelTable, eps: float, dtype: np.dtype, omits: bool) -> tuple[Suspicion, ...]:
    """Return the suspicions that some channel gives rise to, the gravest first; NaN is none where it is left out."""
    m = table.count
    bad = table.infinities if omits else table.nans + table.infinities
    clean = (bad == 0) & np.isfinite(table.var)
    near = clean & (table.maximum > table.minimum) & (table.var < NEAR_EPS * eps)
    constant = clean & (table.maximum == table.minimum) & (m > 1)
    largest = np.maximum(abs(table.minimum), abs(table.maximum))
    share = table.var / (table.var + eps)
    found = [
        _suspicion("non-finite", "number of NaN and infinite values", bad > 0, bad),
        _suspicion("overflow", "largest |x|, whose square float64 cannot hold", (bad == 0) & ~clean, largest),
        _suspicion("one value", "number of values", m == 1, m),
        _suspicion("constant", "the one value", constant, table.minimum),
        _suspicion("near eps", "var / (var + eps): the variance after, which should be 1", near, share),
    ]
    return tuple(s for s in found + _precision(table, largest, clean, dtype) if s is not None)


def _precision(table: ChannelTable, largest: np.ndarray, clean: np.ndarray, dtype: np.dtype) -> list[Suspicion | None]:
    spread = clean & (table.std > 0)
    own = np.finfo(dtype).nmant + 1 if dtype.itemsize > 2 else None
    formats = [(str(dtype), own, np.inf)] if own is not None else []
    found = []
    for name, bits, greatest in (*formats, *SIXTEEN_BIT):
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            coarse = spread & (_step(table.mean, bits) > COARSE * table.std)
            steps = _step(table.mean, bits) / table.std
        ends = f"largest |x|; {name} ends at {short(greatest, 3)}"
        size = f"{name}'s step at the mean, in units of std"
        found.append(_suspicion(f"{name} range", ends, clean & (largest > greatest), largest))
        found.append(_suspicion(f"{name} steps", size, coarse & (largest <= greatest), steps))
    return found


def _step(at: np.ndarray, bits: int) -> np.ndarray:
    """Return the distance between neighboring numbers of a format around ``at``."""
    return np.where(at == 0, 0.0, np.ldexp(1.0, np.frexp(at)[1] - bits))


def _suspicion(kind: str, meaning: str, where: np.ndarray, values: np.ndarray) -> Suspicion | None:
    channels = np.flatnonzero(where)
    if len(channels) == 0:
        return None
    return Suspicion(kind, meaning, tuple(channels.tolist()), tuple(float(v) for v in values[channels]))
