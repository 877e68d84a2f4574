"""An explanation in words: four sections of lines, at most as wide as asked."""

from __future__ import annotations

import math

from ..text.lines import EMPTY, Line, line, paragraph, plain, printable, tied
from .digits import joined, many, short
from .drawing import Grid
from .facts import Facts
from .formulas_shown import formulas
from .pictures import grid, stack
from .table import table
from .verdicts import verdicts


def report(e: Facts, columns: int = 80, *, rows: int | None = 12) -> list[Line]:
    """Return the whole explanation; ``rows`` limits the table of channels, None shows all."""
    parts = [
        _title(e, columns),
        _heading(1, "Which values are averaged together", columns),
        _plan(e, columns),
        _heading(2, f"The four formulas, with the numbers of {e.labels.of(e.formulas.channel)}", columns),
        formulas(e.formulas, columns),
        _heading(3, f"Every {e.labels.unit}, before and after", columns),
        table(e, columns, rows),
        _heading(4, "What is kept, and what is lost", columns),
        verdicts(e, columns),
    ]
    return [one for part in parts for one in (*part, EMPTY)]


def to_text(e: Facts, columns: int = 80, *, rows: int | None = 12) -> str:
    """Return the report without styles."""
    return "\n".join(map(plain, report(e, columns, rows=rows))).rstrip() + "\n"


def _heading(number: int, text: str, columns: int) -> list[Line]:
    return paragraph(text, columns, style="heading", first=line(" ", (str(number), "number"), "  "))


def _title(e: Facts, columns: int) -> list[Line]:
    p = e.plan
    axis = str(p.axis[0]) if len(p.axis) == 1 else str(p.axis)
    facts = f"shape {p.shape} · {e.dtype} · axis {axis} · eps {short(e.eps)}"
    first = line(" ", ("Batch normalization of ", "title"))
    lines = paragraph(printable(e.source or "an array"), columns, style="title", first=first)
    lines.append(line(" ", (facts, "quiet")))
    for note in e.remarks:
        lines += paragraph(f"Note: {printable(note)}.", columns, style="quiet", first=line(" "))
    return lines


def _plan(e: Facts, columns: int) -> list[Line]:
    lines = [one for sentence in _plan_in_words(e) for one in paragraph(sentence, columns)]
    drawn = grid(e.drawing, columns) if isinstance(e.drawing, Grid) else stack(e.drawing, e.labels)
    return [*lines, EMPTY, *drawn, *paragraph(_caption(e), columns, style="quiet")]


def _plan_in_words(e: Facts) -> list[str]:
    p, unit = e.plan, e.labels.unit
    least, most = int(e.channels.count.min()), int(e.channels.count.max())
    m = tied(f"m = {many(p.m)}")
    if least < p.m:
        m = f"{tied(f'm = {many(least)}' + f' to {many(most)}' * (least < most))} without the missing ones"
    if not p.axis:
        return [f"No axis is kept: all {many(p.m)} values are averaged together, {m}."]
    kept = f"Axis {p.axis[0]} is" if len(p.axis) == 1 else f"Axes {joined(p.axis)} are"
    each = "each with a mean and a variance of its own" if p.C > 1 else "with one mean and one variance"
    first = f"{kept} kept: {e.labels.plural(p.C)}, {each}."
    if not p.reduced:
        return [first, f"No axis is averaged over: every {unit} is a single value, {m}."]
    over = f"Axis {p.reduced[0]} is" if len(p.reduced) == 1 else f"Axes {joined(p.reduced)} are"
    product = f"{' · '.join(str(p.shape[i]) for i in p.reduced)} = " if len(p.reduced) > 1 else ""
    return [
        first,
        f"{over} averaged over: {tied(f'{product}{many(p.m)} value' + 's' * (p.m != 1))} in every {unit}, {m}.",
    ]


def _caption(e: Facts) -> str:
    lit = f"{e.labels.unit} {e.labels.index(e.drawing.lit)}" if e.plan.axis else "everything"
    if isinstance(e.drawing, Grid):
        of_channel = e.formulas.m
        values = f"{many(of_channel)} values give" if of_channel > 1 else "one value gives"
        return f"In the box is {lit}: its {values} one mean and one variance, and these normalize all of it."
    sizes = " · ".join(map(str, e.drawing.plane))
    count = f" = {many(math.prod(e.drawing.plane))}" if len(e.drawing.plane) > 1 else ""
    return (
        f"A bar is one {e.labels.unit} of one sample: {tied(f'{sizes}{count} values')}. The solid bars together "
        f"give {lit} "
        "one mean and one variance, and these normalize all of it."
    )
