"""What a reader should conclude, and where to go from there."""

from __future__ import annotations

import numpy as np

from ..text.language import Words
from ..text.lines import EMPTY, INDENT, Line, cells, fit, line, paragraph, tied, width
from .digits import digits_for, short
from .facts import EXAMPLE, Facts
from .formulas import Formulas


def conclusion(e: Facts, words: Words, columns: int) -> list[Line]:
    """Return a few sentences, each on a line of its own."""
    kind = e.labels.kind
    unlike = {c for s in e.suspicions if s.tag != "16-bit" for c in s.channels}
    but = "_but" if unlike and e.plan.axis else ""
    said = [
        *([words(f"scale_{kind}{but}")] if len(unlike) < len(e.channels) else []),
        words(f"compare_{kind}"),
        words("stays_outlier" if e.outliers else "stays"),
        *_undone(e, words),
    ]
    bullet = line(INDENT, ("* ", "quiet"))
    lines = [one for text in said for one in paragraph(text, columns, first=bullet)]
    return [*lines, EMPTY, *where_next(e, words, columns)]


def _undone(e: Facts, words: Words) -> list[str]:
    f = e.formulas
    if not f.var > 0:
        return []
    weight, bias = f"weight = √(var + eps) = {short(f.weight)}", f"bias = mean = {short(f.bias)}"
    known = {"weight": tied(weight), "bias": tied(bias), "values": _values(f)}
    if e.plan.axis:
        return [words("undone", which=e.labels.of(f.channel), **known)]
    return [words("undone_all", **known)]


def _values(f: Formulas) -> str:
    digits = digits_for(f.mean, f.std)
    return ", ".join([*(short(v, digits) for v in f.y), *(["…"] if f.m > len(f.y) else [])])


def where_next(e: Facts, words: Words, columns: int) -> list[Line]:
    """Return the commands and the document that lead on, each with what it does."""
    own = e.excerpt.values.shape == EXAMPLE.shape and np.array_equal(e.excerpt.values, EXAMPLE)
    led = [
        (f"batchnorm explain{'' if own else ' FILE'} --html page.html", words("next_page")),
        *([("batchnorm explain FILE", words("next_own"))] if own else []),
        ("batchnorm why", words("next_why")),
        (words("tutorial"), words("next_tutorial")),
    ]
    left = max(cells(command) for command, _ in led)
    lines = [line(INDENT, (words("where_next"), "heading"))]
    for command, sentence in led:
        beside = line(INDENT, "  ", (fit(command, left), "result"), "  ")
        if width(beside) + 24 <= columns:
            lines += paragraph(sentence, columns, first=beside)
        else:
            lines.append(line(INDENT, "  ", (command, "result")))
            lines += paragraph(sentence, columns, first=line(INDENT, "    "))
    return lines
