"""What is kept and what is lost: a verdict on each, and what it means to the reader."""

from __future__ import annotations

from ..text.language import Words, many
from ..text.lines import EMPTY, INDENT, Line, cells, fit, line, paragraph, width
from .comparing import Pair
from .digits import normal, percent, short
from .distribution import Side
from .facts import Facts

STYLES = {"kept": "kept", "changed": "lost", "lost": "lost", "nothing": "quiet"}
MARGIN = 8
#: A bar of a histogram, by its height in eighths; no value has no bar.
BARS = " ▁▂▃▄▅▆▇█"

Verdict = tuple[str, list[str]]


def verdicts(e: Facts, words: Words, columns: int) -> list[Line]:
    """Return the verdicts, each a word, what it is about, and the sentences behind it."""
    kind = e.labels.kind
    margin = line(INDENT, " " * MARGIN)
    found = [("order", _order(e, words)), ("distances", _distances(e, words)), ("shape", _shape(e, words))]
    if e.plan.axis:
        found.append(("between", _between(e, words)))
    lines: list[Line] = []
    for about, (verdict, sentences) in found:
        word = words(verdict)
        lines.append(
            line(
                INDENT,
                (fit(word, max(MARGIN, cells(word) + 1)), STYLES[verdict]),
                (words(f"{about}_{kind}"), "heading"),
            )
        )
        if about == "shape" and e.distribution is not None:
            sides = (("drawn_before", e.distribution.before), ("drawn_after", e.distribution.after))
            lines += _histograms([(words(name), side) for name, side in sides], words, columns)
        lines += paragraph(words.sentences(sentences), columns, first=margin)
        lines.append(EMPTY)
    return lines[:-1]


def _order(e: Facts, words: Words) -> Verdict:
    i, kind = e.inside, e.labels.kind
    if i.pairs == 0:
        return "nothing", [_nothing_inside(e, words)]
    pairs = words(f"{'pairs' if i.complete else 'sampled'}_{kind}", n=many(i.pairs))
    sentences = [
        words("sides_changed", pairs=pairs, n=i.reversed) if i.reversed else words("no_side_changed", pairs=pairs)
    ]
    if i.made_equal:
        sentences.append(words.count("rounded_equal", i.made_equal))
    if i.without_order:
        sentences.append(words.count("without_order", i.without_order))
    return "changed" if i.reversed else "kept", sentences


def _nothing_inside(e: Facts, words: Words) -> str:
    return words(f"{'none_finite' if e.inside.without_order else 'single'}_{e.labels.kind}")


def _distances(e: Facts, words: Words) -> Verdict:
    i = e.inside
    if i.pairs == 0:
        return "nothing", [_nothing_inside(e, words)]
    sentences = []
    if (p := i.example) is not None:
        before = {"value": short(p.value), "low": short(p.low), "high": short(p.high)}
        after = {
            "value_after": normal(p.value_after),
            "low_after": normal(p.low_after),
            "high_after": normal(p.high_after),
        }
        fractions = {"fraction": percent(p.fraction), "fraction_after": percent(p.fraction_after)}
        sentences.append(words("lies", **before, **after, **fractions))
    if i.moved == 0:
        return "kept", [*sentences, words("same_place")]
    rounding = i.moved <= i.tolerance
    moved = words("rounded_place" if rounding else "moved_place", moved=percent(i.moved, 2))
    return "kept" if rounding else "changed", [*sentences, moved]


def _shape(e: Facts, words: Words) -> Verdict:
    d = e.distribution
    which = e.labels.of(e.formulas.channel)
    if d is None:
        return "nothing", [words("no_shape", which=which) if e.plan.axis else words("no_shape_all")]
    known = {"before": skewness(d.before.skewness), "after": skewness(d.after.skewness)}
    if not e.plan.axis:
        return (
            ("kept", [words("not_normal_all", **known)])
            if d.is_kept
            else ("changed", [words("shape_rounded_all", **known)])
        )
    if d.is_kept:
        return "kept", [words("not_normal", which=which, **known)]
    return "changed", [words("shape_rounded", which=which, **known)]


def skewness(value: float) -> str:
    """Return a skewness with two or three digits; what is only rounding is 0."""
    return short(value, 3) if abs(value) >= 5e-4 else "0"


def _histograms(sides: list[tuple[str, Side]], words: Words, columns: int) -> list[Line]:
    """Draw histograms below each other, and beside each from where to where it reaches."""
    left = max(cells(name) for name, _ in sides)
    (_, before), (_, after) = sides
    ends = (
        words("side_ends", low=short(before.low, 4), high=short(before.high, 4)),
        words("side_ends", low=normal(after.low), high=normal(after.high)),
    )
    lines = [
        line(INDENT, " " * MARGIN, fit(name, left), "  ", (_bars(side), "number"), "  ", (end, "quiet"))
        for (name, side), end in zip(sides, ends, strict=True)
    ]
    if max(map(width, lines)) <= columns:
        return lines
    return [one[:-2] for one in lines]


def _bars(side: Side) -> str:
    most = max(side.counts)
    return "".join(BARS[-(-8 * n // most)] for n in side.counts)


def _between(e: Facts, words: Words) -> Verdict:
    b, unit = e.between, e.labels.unit
    if b.pairs == 0:
        return "nothing", [words(f"only_one_{unit}" if e.plan.C == 1 else f"few_{unit}")]
    if not b.changed:
        return "kept", [words(f"alike_{unit}")]
    such = words("such_whole" if b.complete else "such_sampled")
    share = percent(b.changed / b.pairs, 2)
    meaning = words(f"do_not_compare_{unit}", share=share, such=such)
    return "lost", [meaning] if b.example is None else [_example(e, words, b.example), meaning]


def _example(e: Facts, words: Words, p: Pair) -> str:
    a_at, b_at = (e.labels.element(*at) for at in ((p.position_a, p.channel_a), (p.position_b, p.channel_b)))
    known = {"a": short(p.a), "b": short(p.b), "a_at": a_at, "b_at": b_at}
    if p.a == p.b:
        return words("pair_different_now", **known, a_after=normal(p.a_after), b_after=normal(p.b_after))
    if p.a_after == p.b_after:
        return words("pair_equal_now", **known, after=normal(p.a_after))
    return words("pair_smaller_now", **known, a_after=normal(p.a_after), b_after=normal(p.b_after))
