"""Each kind of suspicion as a sentence: which channels have it, and what it does to the first of them."""

from __future__ import annotations

from ..text.lines import INDENT, Line, line, paragraph, tied
from .digits import joined, many, short
from .facts import Facts
from .suspicions import Suspicion

#: Channels named one by one.
NAMED = 6


def suspicions(e: Facts, columns: int) -> list[Line]:
    """Return a paragraph for every suspicion, its tag before it."""
    lines: list[Line] = []
    for s in e.suspicions:
        text = f"{_who(e, s)}: {_meaning(e, s)}."
        lines += paragraph(text, columns, first=line(INDENT, (s.tag.ljust(8), "warning"), "  "))
    return lines


def _who(e: Facts, s: Suspicion) -> str:
    count, unit = len(s.channels), e.labels.unit
    if count == len(e.channels) > 1:
        return f"Both {unit}s" if count == 2 else f"All {e.labels.plural(count)}"
    named = joined([e.labels.index(c) for c in s.channels], NAMED)
    return f"{unit.capitalize()}{'s' * (count > 1)} {named}" + f" ({many(count)} in all)" * (count > NAMED)


def _meaning(e: Facts, s: Suspicion) -> str:
    c, value = s.channels[0], s.values[0]
    it = "it" if len(s.channels) == 1 else e.labels.of(c)
    if s.kind == "non-finite":
        return _nonfinite(e, c, it)
    if s.kind == "overflow":
        return f"{it} reaches {short(value, 3)}, whose square float64 cannot hold, so all its output is NaN"
    if s.kind == "one value":
        return "a value that is its own mean becomes 0, whatever it was; a layer in training refuses such a batch"
    if s.kind == "constant":
        return f"{it} is {short(value)} everywhere; its variance is 0, so all its output is 0"
    if s.kind == "near eps":
        return _near_eps(e, c, it, value)
    if s.kind.endswith("range"):
        return f"{it} reaches {short(value, 3)}, and {s.meaning.split('; ')[1]}"
    return _steps(e, s, it, value)


def _nonfinite(e: Facts, c: int, it: str) -> str:
    t = e.channels
    kinds = [f"{many(int(n))} {what}" for n, what in ((t.nans[c], "NaN"), (t.infinities[c], "infinite")) if n]
    held = f"{it} holds {' and '.join(kinds)} of {many(e.plan.m)} values"
    return f"{held}, so its mean or variance is not a number, and all its output is NaN"


def _near_eps(e: Facts, c: int, it: str, share: float) -> str:
    has = "" if it == "it" else f"{it} has "
    var = tied(f"var = {short(float(e.channels.var[c]), 3)}")
    ratio = tied(f"var/(var + eps) = {short(share, 3)}")
    return (
        f"{has}{var}, not large beside {tied(f'eps = {short(e.eps)}')}; {ratio}, so its std becomes "
        f"{short(share**0.5, 3)}, not 1. Scale it up, or take a smaller eps"
    )


def _steps(e: Facts, s: Suspicion, it: str, value: float) -> str:
    name = s.kind.split()[0]
    where = "its mean" if it == "it" else f"the mean of {it}"
    steps = f"{value:.0f}" if value >= 10 else short(value, 2)
    fall = "fall" if name == e.working_dtype else "would fall"
    return f"around {where}, {name} steps by {steps} std, so that different values {fall} together"
