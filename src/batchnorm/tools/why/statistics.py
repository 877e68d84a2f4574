"""Means and spreads over seeds, and the rule by which a difference counts.

The rule: both sides of a comparison share each seed's initial weights and batches, so they are compared seed by seed,
and a difference is clear when every seed says the same. With five seeds, chance alone does that one time in sixteen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .sentences import Sentence, say

GUESSING = 10.0  # per cent right, of ten classes
CONFIRMS, TIE, CONTRADICTS = "confirms", "no clear difference", "contradicts"
PARTLY, ONE_SEED = "confirms in part", "one seed"


@dataclass(frozen=True)
class Spread:
    """The mean of a number over seeds, and its smallest and largest value."""

    mean: float
    low: float
    high: float

    def text(self, decimals: int = 1, unit: str = "") -> str:
        """Return, for instance, ``97.2 % (96.8–97.6)``."""
        mean, low, high = (number(v, decimals) for v in (self.mean, self.low, self.high))
        return f"{mean}{unit}" if low == high == mean else f"{mean}{unit} ({low}–{high})"


def number(value: float, decimals: int = 1) -> str:
    """Return ``value`` with so many decimals; very large and very small ones in powers of ten."""
    if not math.isfinite(value):
        return "∞"
    if value and (abs(value) >= 1e5 or abs(value) < 10.0**-decimals / 2):
        digits, _, power = f"{value:.1e}".partition("e")
        return f"{digits}e{int(power)}"
    return f"{value:.{decimals}f}"


def spread(values: Sequence[float]) -> Spread:
    """Return the mean and the range of values, one a seed."""
    return Spread(math.fsum(values) / len(values), min(values), max(values))


def percent(values: Sequence[float]) -> str:
    """Return the spread of percentages as text."""
    return spread(values).text(1, " %")


def verdict(high: Sequence[float], low: Sequence[float]) -> str:
    """Return what the numbers say about the claim that ``high`` is higher than ``low``; each holds one a seed."""
    if len(high) < 2:
        return ONE_SEED
    pairs = list(zip(high, low, strict=True))
    if all(a > b for a, b in pairs):
        return CONFIRMS
    return CONTRADICTS if all(a < b for a, b in pairs) else TIE


def together(verdicts: Sequence[str]) -> str:
    """Return the verdict on several claims of one paper."""
    kinds = set(verdicts)
    if len(kinds) == 1:
        return verdicts[0]
    if CONFIRMS in kinds:
        return PARTLY
    return CONTRADICTS if CONTRADICTS in kinds else TIE


def judged(of: str, confirmed: str, contradicted: str, tie: str) -> list[Sentence]:
    """Return the sentence of these keys for a verdict; of one seed there is none."""
    keys = {CONFIRMS: confirmed, CONTRADICTS: contradicted, TIE: tie}
    return [say(keys[of])] if of in keys else []


def unclear(of: str) -> list[Sentence]:
    """Return what is said behind the numbers of a comparison if the seeds do not agree on it."""
    return [say("unclear")] if of == TIE else []


def warned(who: str, right: Sequence[float]) -> list[Sentence]:
    """Return what is said of a side that knows little more than chance; ``who`` is the key of its name."""
    little = spread(right).mean < 2 * GUESSING
    return [say("nothing", who=say(f"net {who}"), right=percent(right))] if little else []


def count(seeds: Sequence[object]) -> Sentence:
    """Return, for instance, ``5 seeds``."""
    return say("seed") if len(seeds) == 1 else say("seeds", n=len(seeds))
