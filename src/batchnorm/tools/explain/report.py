"""An explanation in words: sections of lines, at most as wide as asked, in one language."""

from __future__ import annotations

import math

from ..text.language import Words, language_of
from ..text.lines import EMPTY, Line, line, paragraph, plain, printable, tied
from ..text.remarks import told
from .conclusion import conclusion
from .digits import short
from .drawing import Grid
from .facts import Facts
from .formulas_shown import formulas
from .pictures import grid, stack
from .table import table
from .verdicts import verdicts


def report(e: Facts, words: Words, columns: int = 80, *, rows: int | None = 12) -> list[Line]:
    """Return the whole explanation; ``rows`` limits the table of channels, None shows all."""
    kind = e.labels.kind
    which = e.labels.of(e.formulas.channel)
    with_numbers = words("formulas", which=which) if e.plan.axis else words("formulas_all")
    sections = (
        (words("averaged"), _plan(e, words, columns)),
        (with_numbers, formulas(e.formulas, words, columns)),
        (words(f"every_{kind}"), table(e, words, columns, rows)),
        (words("found"), verdicts(e, words, columns)),
        (words("conclude"), conclusion(e, words, columns)),
    )
    lines = [*_title(e, words, columns), EMPTY, *_opening(e, words, columns), EMPTY]
    for number, (heading, section) in enumerate(sections, 1):
        lines += paragraph(heading, columns, style="heading", first=line(" ", (str(number), "number"), "  "))
        lines += [EMPTY, *section, EMPTY]
    return lines


def to_text(e: Facts, columns: int = 80, *, rows: int | None = 12, lang: str | None = None) -> str:
    """Return the report without styles."""
    return "\n".join(map(plain, report(e, Words(language_of(lang)), columns, rows=rows))).rstrip() + "\n"


def _title(e: Facts, words: Words, columns: int) -> list[Line]:
    source = printable(words("an_array") if e.source is None else words.told(e.source))
    lines = paragraph(words("title_of", source=source), columns, style="title", first=line(" "))
    lines += paragraph(facts(e, words), columns, style="quiet", first=line(" "))
    for note in e.remarks:
        text = words("note", text=printable(told(note, words)))
        lines += paragraph(text, columns, style="quiet", first=line(" "))
    return lines


def facts(e: Facts, words: Words) -> str:
    """Return the size of the data, their type, and eps."""
    p = e.plan
    known = {"dtype": e.dtype, "eps": short(e.eps)}
    if e.labels.kind == "column":
        size = {"rows": words.count("rows", p.m), "columns": words.count("columns", p.C)}
        return words("facts_table", **size, **known)
    return words("facts_array", shape=str(p.shape), channels=words.count("channels", p.C), **known)


def _opening(e: Facts, words: Words, columns: int) -> list[Line]:
    """Return what batch normalization does and why, and the numbers before and after."""
    omits = e.nan_policy == "omit"
    drawn = (
        grid(e.drawing, e.labels, words, columns, omits)
        if isinstance(e.drawing, Grid)
        else stack(e.drawing, e.labels, words, columns)
    )
    return [
        *paragraph(words(f"lead_{e.labels.kind}"), columns),
        EMPTY,
        *drawn,
        EMPTY,
        *paragraph(_caption(e, words), columns, style="quiet"),
    ]


def _caption(e: Facts, words: Words) -> str:
    which = e.labels.of(e.drawing.lit)
    if isinstance(e.drawing, Grid):
        values = words.count("numbers", e.formulas.m)
        if not e.plan.axis:
            return words("box_all", values=values)
        return words("box" if e.formulas.m > 1 else "box_one", which=which, values=values)
    sizes = " · ".join(map(str, e.drawing.plane))
    values = words.count("numbers", math.prod(e.drawing.plane))
    return words("bars", which=which, values=tied(f"{sizes} = {values}" if len(e.drawing.plane) > 1 else values))


def _plan(e: Facts, words: Words, columns: int) -> list[Line]:
    p = e.plan
    said = [words(f"own_{e.labels.kind}", values=words.count("numbers", p.m), m=tied(f"m = {p.m}"))]
    least, most = int(e.channels.count.min()), int(e.channels.count.max())
    if least < p.m:
        which = e.labels.of(int(e.channels.count.argmin()))
        said.append(words("gaps_all" if least == most else "gaps_some", least=tied(f"m = {least}"), which=which))
    return [one for sentences in (words.sentences(said), _axes(e, words)) for one in paragraph(sentences, columns)]


def _axes(e: Facts, words: Words) -> str:
    p = e.plan
    if not p.axis or not p.reduced:
        return words("axes_none" if p.axis else "axes_all", shape=str(p.shape))
    channels = words.count(f"{e.labels.unit}s", p.C)
    kept = words("kept_axes_one" if len(p.axis) == 1 else "kept_axes_many", axes=p.axis, channels=channels)
    over = words("over_axes_one" if len(p.reduced) == 1 else "over_axes_many", axes=p.reduced)
    lengths = " · ".join(str(p.shape[i]) for i in p.reduced)
    product = " " + tied(f"({lengths} = {p.m})") if len(p.reduced) > 1 else ""
    return words("axes", shape=str(p.shape), kept=kept, over=over, product=product)
