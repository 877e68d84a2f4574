"""The four formulas as lines, filled in with one channel's numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..text.language import Words
from ..text.lines import EMPTY, INDENT, Line, line, paragraph, tied, width
from .digits import digits_for, in_sum, normal, short
from .formulas import Formulas

#: A name and an equals sign, before every formula.
MARGIN = len(INDENT) + len("mean = ")


def formulas(f: Formulas, words: Words, columns: int) -> list[Line]:
    """Return the formulas of one channel, then what the variance divides by."""
    digits = digits_for(f.mean, f.std)
    values = [in_sum(v, digits) for v in (*f.x, *(() if f.last is None else (f.last,)))]
    center = in_sum(f.mean, digits)
    squares = [f"({v} - {center})²" for v in values]
    y = normal(f.xhat[0])
    xhat = f"({values[0]} - {center}) / √({short(f.var)} + {short(f.eps)})"
    undone = f"{short(f.weight)} · {_bracketed(y)} + {center}"
    undo = _result("", undone, short(f.y[0], digits), columns, note=words("undoes"))
    return [
        *_result("mean", _average(values, "x", f, columns), short(f.mean, digits), columns),
        *_result("var", _average(squares, "(x - mean)²", f, columns), short(f.var), columns),
        _named("xhat", "(x - mean) / √(var + eps)"),
        *_result("", xhat, y, columns, note="" if f.m == 1 else words("for_the_first")),
        *_others(f, digits, columns),
        _named("y", "weight · xhat + bias"),
        *_result("", f"1 · {_bracketed(y)} + 0", y, columns, note=words("new_layer")),
        *(undo if f.var > 0 and math.isfinite(f.y[0]) else []),
        EMPTY,
        *paragraph(_divisor(f, words), columns),
    ]


def _bracketed(text: str) -> str:
    return f"({text})" if text.startswith("-") else text


def _named(name: str, text: str) -> Line:
    return line(INDENT, (f"{name:<4}", "heading"), " = " if name else "   ", text)


def _result(name: str, text: str, result: str, columns: int, note: str = "") -> list[Line]:
    """Return "name = text = result", the result on a line of its own and the note left out where they do not fit."""
    whole = line(*_named(name, text), " = ", (result, "result"))
    if width(_named(name, text)) > columns:
        broken = paragraph(text, columns, first=_named(name, ""))
        return [*broken, line(INDENT, "     = ", (result, "result"))]
    if width(whole) > columns:
        return [_named(name, text), line(INDENT, "     = ", (result, "result"))]
    noted = (*whole, ("   " + note, "quiet"))
    return [noted if note and width(noted) <= columns else whole]


def _average(terms: Sequence[str], term: str, f: Formulas, columns: int) -> str:
    """Return "(1 + 2 + … + 9) / 9" with as many of the first terms as fit beside a short result.

    ``term`` is the general term, for a line on which not even the first and the last fit.
    """
    if f.m == 1:
        return f"{terms[0]} / 1"
    for count in range(len(terms), 1, -1):
        left_out = count < len(terms) or f.last is not None
        shown = [*terms[: count - 1], *(["…"] if left_out else []), terms[-1]]
        text = f"({' + '.join(shown)}) / {f.m}"
        if MARGIN + len(text) + len(" = 12345") <= columns:
            return text
    return text if MARGIN + len(text) <= columns else f"Σ {term} / {f.m}"


def _others(f: Formulas, digits: int, columns: int) -> list[Line]:
    """Return one line of the other values and what they become, as many as fit."""
    pairs = [f"{short(x, digits)} → {normal(y)}" for x, y in zip(f.x[1:], f.xhat[1:], strict=True)]
    last = [] if f.last is None or f.xhat_last is None else ["…", f"{short(f.last, digits)} → {normal(f.xhat_last)}"]
    while pairs:
        text = ",  ".join(pairs + last).replace(",  …,  ", ",  …  ")
        if MARGIN + len(text) <= columns:
            return [line(*_named("", ""), (text, "quiet"))]
        if not last:
            last = ["…"]
        pairs.pop()
    return []


def _divisor(f: Formulas, words: Words) -> str:
    if f.m == 1:
        return words("no_spread")
    if not math.isfinite(f.var):
        return words("no_variance")
    return words(
        "divides_by_m",
        m=tied(f"m = {f.m}"),
        std=tied(f"√{short(f.var)} = {short(f.std)}"),
        less=tied("m - 1"),
        product=tied(f"{f.m}/{f.m - 1} · {short(f.var)} = {short(f.var_running)}"),
    )
