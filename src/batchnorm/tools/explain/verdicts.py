"""What is kept and what is lost, as the counts say it."""

from __future__ import annotations

from ..text.lines import INDENT, Line, line, paragraph
from .comparing import Pair
from .digits import many, normal, short
from .facts import Facts

NOTHING = "–"
STYLES = {"kept": "kept", "changed": "lost", "lost": "lost", NOTHING: "quiet"}
Verdict = tuple[str, list[str]]


def verdicts(e: Facts, columns: int) -> list[Line]:
    """Return three verdicts, each a word, what it is about, and the counts behind it."""
    unit = e.labels.unit
    found = (
        (f"the order inside a {unit}", _order(e)),
        (f"relative distances inside a {unit}", _distances(e)),
        (f"comparisons between {unit}s", _between(e)),
    )
    lines: list[Line] = []
    for about, (word, sentences) in found:
        lines.append(line(INDENT, (word.ljust(8), STYLES[word]), (about, "heading")))
        for sentence in sentences:
            lines += paragraph(sentence, columns, first=line(INDENT, " " * 8))
    return lines


def _order(e: Facts) -> Verdict:
    i, unit = e.inside, e.labels.unit
    if i.pairs == 0:
        return NOTHING, [_nothing_inside(e)]
    equal = f"; rounding made {many(i.made_equal)} equal" if i.made_equal else ""
    pairs = f"{many(i.pairs)} {'' if i.complete else 'sampled '}pairs of values in the same {unit}"
    sentences = [f"None of the {pairs} changed sides{equal}."]
    if i.reversed:
        sentences = [f"Among the {pairs}, {many(i.reversed)} neighbors in sorted order changed sides{equal}."]
    if n := i.without_order:
        sentences.append(
            f"{e.labels.plural(n)} with NaN or infinity {'is' if n == 1 else 'are'} left out; there, nothing is kept."
        )
    return "changed" if i.reversed else "kept", sentences


def _nothing_inside(e: Facts) -> str:
    if e.inside.without_order:
        return f"No {e.labels.unit} free of NaN and infinity has two values to compare."
    return f"A {e.labels.unit} has one value: there is nothing to compare."


def _distances(e: Facts) -> Verdict:
    i, unit = e.inside, e.labels.unit
    if i.pairs == 0:
        return NOTHING, [_nothing_inside(e)]
    sentences = []
    if (p := i.example) is not None:
        sentences.append(
            f"{short(p.value)} lies {short(p.fraction, 4)} of the way from {short(p.low)} to {short(p.high)}; "
            "afterwards "
            f"{normal(p.value_after)} lies {short(p.fraction_after, 4)} of the way from {normal(p.low_after)} to "
            f"{normal(p.high_after)}."
        )
    if i.moved <= i.tolerance:
        if i.moved == 0:
            return "kept", [*sentences, "Every value keeps its place exactly."]
        most = f"No value moved by more than {short(i.moved, 2)} of its {unit}'s range: that is rounding."
        return "kept", [*sentences, most]
    return "changed", [
        *sentences,
        f"Some value moved by {short(i.moved, 2)} of its {unit}'s range, more than rounding explains.",
    ]


def _between(e: Facts) -> Verdict:
    b, unit = e.between, e.labels.unit
    if b.pairs == 0:
        few = "There is only one" if e.plan.C == 1 else "Fewer than two are free of NaN and infinity"
        return NOTHING, [f"{few}: no two {unit}s to compare."]
    sentences = [] if b.example is None else [_example(e, b.example)]
    kinds = ((b.reversed, "reversed"), (b.made_equal, "became equal"), (b.made_different, "no longer equal"))
    counts = ", ".join(f"{many(n)} {what}" for n, what in kinds if n)
    pairs = f"{many(b.pairs)} {'' if b.complete else 'sampled '}pairs of values in different {unit}s"
    if not b.changed:
        return "kept", [*sentences, f"Not one of the {pairs} compares differently: these {unit}s were alike already."]
    place = "in the same row" if unit == "column" else "at the same position"
    beside = (
        f" Of the {many(b.beside)} pairs {place}, {many(b.beside_changed)} {'does' if b.beside_changed == 1 else 'do'}."
        if b.beside
        else ""
    )
    sentences.append(
        f"Of {pairs}, {many(b.changed)} compare{'s' * (b.changed == 1)} differently now ({counts}).{beside}"
    )
    return "lost", sentences


def _example(e: Facts, p: Pair) -> str:
    a, b = (e.labels.element(*at) for at in ((p.position_a, p.channel_a), (p.position_b, p.channel_b)))
    before = f"{short(p.a)} ({a}) {'>' if p.a > p.b else '='} {short(p.b)} ({b})"
    if p.a_after == p.b_after:
        return f"Before, {before}. After, both are {normal(p.a_after)}."
    return f"Before, {before}. After, {normal(p.a_after)} {'<' if p.a_after < p.b_after else '>'} {normal(p.b_after)}."
