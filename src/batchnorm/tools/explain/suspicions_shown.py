"""What to look at twice, as sentences: which channels have it, and what it does to the first of them."""

from __future__ import annotations

from ..text.language import Listed, Said, Words, many
from ..text.lines import INDENT, Line, cells, fit, line, paragraph, tied
from .digits import normal, percent, short
from .facts import Facts
from .outliers import Outlier
from .suspicions import ENDS, Suspicion

#: Channels named one by one.
NAMED = 6


def tags(e: Facts) -> dict[int, str]:
    """Return the gravest tag of every channel that has one."""
    found: dict[int, str] = {}
    for suspicion in e.suspicions:
        for c in suspicion.channels:
            found.setdefault(c, suspicion.tag)
    for outlier in e.outliers:
        found.setdefault(outlier.channel, "outlier")
    return found


def suspicions(e: Facts, words: Words, columns: int) -> list[Line]:
    """Return a paragraph for every suspicion, its tag before it."""
    said = [(s.tag, words.sentences([_about(e, s), *_same(e, s)])) for s in e.suspicions]
    said += [("outlier", words.told(about_outlier(e, o))) for o in e.outliers]
    said = [(words(f"tag {tag}"), text) for tag, text in said]
    left = max(cells(tag) for tag, _ in said)
    lines: list[Line] = []
    for tag, text in said:
        lines += paragraph(text, columns, first=line(INDENT, (fit(tag, left), "warning"), "  "))
    return lines


def _same(e: Facts, s: Suspicion) -> list[Said]:
    """Return which other channels have it, too."""
    others = s.channels[1:]
    if not others:
        return []
    if len(s.channels) == len(e.channels):
        return [Said("same_as", others=Said(f"all_others_{e.labels.unit}"))]
    named = tuple(e.labels.of(c) for c in others[:NAMED])
    if len(others) > NAMED:
        return [Said("same_as", others=Said("listed_more", listed=Listed(named), n=many(len(others) - NAMED)))]
    return [Said("same_as", others=named)]


def _about(e: Facts, s: Suspicion) -> Said:
    c, value = s.channels[0], s.values[0]
    who = e.labels.of(c)
    if s.kind == "non-finite":
        t = e.channels
        counts = (("nan_count", int(t.nans[c])), ("infinite_count", int(t.infinities[c])))
        kinds = [Said(f"{key}_{'one' if n == 1 else 'many'}", n=many(n)) for key, n in counts if n]
        return Said("is_nonfinite", who=who, what=tuple(kinds), m=many(e.plan.m))
    if s.kind == "overflow":
        return Said("is_overflow", who=who, value=short(value, 3))
    if s.kind == "one value":
        return Said("is_one_value", who=who)
    if s.kind == "constant":
        return Said("is_constant", who=who, value=short(value))
    if s.kind == "near eps":
        formula, eps = tied(f"√(var/(var + eps)) = {short(value**0.5, 3)}"), tied(f"eps = {short(e.eps)}")
        return Said("is_near_eps", who=who, var=short(float(e.channels.var[c]), 3), eps=eps, formula=formula)
    name = s.kind.split()[0]
    if s.kind.endswith("range"):
        return Said("is_beyond", who=who, value=short(value, 3), format=name, end=short(ENDS[name], 3))
    steps = f"{value:.0f}" if value >= 10 else short(value, 2)
    return Said("is_coarse" if name == e.working_dtype else "would_be_coarse", who=who, format=name, steps=steps)


def about_outlier(e: Facts, o: Outlier) -> Said:
    """Return what an outlier is, and what it does to the other values of its channel."""
    where = e.labels.element(o.position, o.channel)
    known = {
        "value": short(o.value), "where": where, "share": percent(o.share, 2),
        "low": normal(o.low_after), "high": normal(o.high_after),
    }  # fmt: skip
    return Said("is_outlier", **known) if o.count == 1 else Said("are_outliers", **known, more=o.count - 1, n=o.count)
