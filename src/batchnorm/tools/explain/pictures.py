"""The drawings of a plan as lines: a table with a box around one column, or samples with one channel lit."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from math import isnan

from ..text.language import Words
from ..text.lines import EMPTY, INDENT, Line, cells, cut, fit, line, width
from .digits import normal, short
from .drawing import Grid, Shown, Stack, with_gaps
from .labels import Labels

GAP, SKIP = "…", "⋮"
BAR = 9
#: Columns that a name takes over a column of the drawing: fewer where it would not fit.
LONGEST = (14, 10, 7)


def grid(drawing: Grid, labels: Labels, words: Words, columns: int, omits: bool) -> list[Line]:
    """Draw the table before and after; side by side where ``columns`` allow it, if need be with fewer columns shown.

    ``omits``: NaN is a value that is missing, and shown as a dash.
    """
    for longest, drop in itertools.product(LONGEST if labels.names else LONGEST[:1], ((), (2,), (2, 1))):
        shown = _Shown(_without(drawing, drop), labels, longest, words, omits)
        for picture in (shown.beside(), shown.below()):
            if max(map(width, picture)) <= columns:
                return picture
    return picture


class _Shown:
    """A drawing as texts: the two tables, and the rows' labels."""

    def __init__(self, drawing: Grid, labels: Labels, longest: int, words: Words, omits: bool) -> None:
        self._drawing = drawing
        self._header = [GAP if c is None else cut(labels.head(c), longest) for c in drawing.columns]
        self._labels = _row_labels(drawing)
        gap = "–" if omits else "NaN"
        before = [[gap if isnan(v) else short(v, 4) for v in row] for row in drawing.before]
        after = [[gap if isnan(v) else normal(v) for v in row] for row in drawing.after]
        self._sides = ((words("drawn_before"), before), (words("drawn_after"), after))

    def beside(self) -> list[Line]:
        """Return the tables side by side."""
        before, after = (self._boxed(side, self._labels if side == 0 else [""] * len(self._labels)) for side in (0, 1))
        left = max(map(width, before))
        return [line(INDENT, *a, " " * (left - width(a) + 4), *b) for a, b in zip(before, after, strict=True)]

    def below(self) -> list[Line]:
        """Return one table below the other."""
        before, after = (self._boxed(side, self._labels) for side in (0, 1))
        return [line(INDENT, *one) for one in (*before, EMPTY, *after)]

    def _boxed(self, side: int, labels: Sequence[str]) -> list[Line]:
        title, shown = self._sides[side]
        return _boxed(title, self._drawing, self._header, labels, shown)


def _without(drawing: Grid, drop: Sequence[int]) -> Grid:
    """Return the drawing without some columns, where it leaves out others already."""
    if None not in drawing.columns:
        return drawing
    numbers = [c for c in drawing.columns if c is not None]
    kept = [c for c in numbers if c not in drop or c == drawing.lit]
    before, after = (
        tuple(tuple(v for c, v in zip(numbers, row, strict=True) if c in kept) for row in rows)
        for rows in (drawing.before, drawing.after)
    )
    return replace(drawing, columns=with_gaps(kept), before=before, after=after)


def _row_labels(drawing: Grid) -> list[str]:
    indices = iter(drawing.row_indices)
    texts = [SKIP if r is None else ", ".join(map(str, next(indices))) for r in drawing.rows]
    if all(r is None or "," not in t for r, t in zip(drawing.rows, texts, strict=True)):
        texts = [SKIP if r is None else str(r) for r in drawing.rows]
    return [t.rjust(max(map(len, texts))) for t in texts]


def _boxed(
    title: str, drawing: Grid, header: Sequence[str], labels: Sequence[str], shown: Sequence[Sequence[str]]
) -> list[Line]:
    rows = _spaced(drawing.rows, drawing.columns, shown)
    widths = [max(cells(row[j]) for row in (header, *rows)) for j in range(len(header))]
    lit = drawing.columns.index(drawing.lit)
    margin = " " * len(labels[0])
    top, bottom = (_cells([""] * len(widths), widths, lit, *corners, "─") for corners in (("┌", "┐"), ("└", "┘")))
    body = [
        line((label + " ", "quiet"), *_cells(row, widths, lit, "│", "│"))
        for label, row in zip(labels, rows, strict=True)
    ]
    head = line(margin, " ", (title, "heading"))
    names = line(margin, " ", *((t, "quiet") for t, _ in _cells(header, widths, lit, " ", " ")))
    return [head, names, line(margin, " ", *top), *body, line(margin, " ", *bottom)]


def _spaced(rows: Shown, columns: Shown, shown: Sequence[Sequence[str]]) -> list[list[str]]:
    result = []
    values = iter(shown)
    for r in rows:
        row = iter(() if r is None else next(values))
        result.append([SKIP if r is None else GAP if c is None else next(row) for c in columns])
    return result


def _cells(texts: Sequence[str], widths: Sequence[int], lit: int, left: str, right: str, fill: str = " ") -> Line:
    """Return one row of cells, the lit one between ``left`` and ``right``."""
    spans = []
    for j, (text, w) in enumerate(zip(texts, widths, strict=True)):
        if j != lit:
            spans.append(((" " if j else "") + _right(text, w) + " ", ""))
        elif fill != " ":
            spans.append((left + fill * (w + 2) + right, "number"))
        else:
            inside = f" {_right(text, w)} "
            spans += [(left, "number"), (inside, "lit" if left == "│" else "quiet"), (right, "number")]
    return tuple(spans)


def _right(text: str, columns: int) -> str:
    return " " * (columns - cells(text)) + text


def stack(drawing: Stack, labels: Labels, words: Words, columns: int) -> list[Line]:
    """Draw samples side by side, a bar for each channel of each sample; narrower bars where that is needed."""
    names = [SKIP if c is None else words.told(labels.of(c)) for c in drawing.channels]
    left = max(map(cells, names))
    samples = [GAP if s is None else words("sample_number", n=s) for s in drawing.samples]
    for bar in (BAR, 1):
        widths = [1 if s is None else max(bar, cells(t)) for s, t in zip(drawing.samples, samples, strict=True)]
        if len(INDENT) + left + sum(w + 2 for w in widths) <= columns:
            break
    head = " " * left + "".join("  " + fit(t, w) for t, w in zip(samples, widths, strict=True))
    lines = [line(INDENT, (head, "quiet"))]
    for c, name in zip(drawing.channels, names, strict=True):
        lit = c == drawing.lit
        parts = [
            SKIP if c is None else GAP if s is None else ("█" if lit else "░") * min(w, BAR)
            for s, w in zip(drawing.samples, widths, strict=True)
        ]
        bars = "".join("  " + fit(text, w) for text, w in zip(parts, widths, strict=True))
        lines.append(
            line(INDENT, (fit(name, left), "heading" if lit else "quiet"), (bars, "number" if lit else "quiet"))
        )
    return lines
