"""The drawings of a plan as lines: a table with a box around one column, or samples with one channel lit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..text.lines import EMPTY, INDENT, Line, line, width
from .digits import normal, short
from .drawing import Grid, Shown, Stack, with_gaps
from .labels import Labels

GAP, SKIP = "…", "⋮"
BAR = 9


def grid(drawing: Grid, columns: int) -> list[Line]:
    """Draw the table before and after; side by side where ``columns`` allow it, if need be with fewer columns shown."""
    for drop in ((), (2,), (2, 1)):
        beside = _beside(_without(drawing, drop))
        if max(map(width, beside)) <= columns:
            return [*beside, EMPTY]
    labels = _row_labels(drawing)
    return [line(INDENT, *one) for one in (*_before(drawing, labels), EMPTY, *_after(drawing, labels))] + [EMPTY]


def _beside(drawing: Grid) -> list[Line]:
    labels = _row_labels(drawing)
    before, after = _before(drawing, labels), _after(drawing, [""] * len(labels))
    left = max(map(width, before))
    return [line(INDENT, *a, " " * (left - width(a) + 4), *b) for a, b in zip(before, after, strict=True)]


def _before(drawing: Grid, labels: Sequence[str]) -> list[Line]:
    return _boxed("before", drawing, labels, [[short(v, 4) for v in row] for row in drawing.before])


def _after(drawing: Grid, labels: Sequence[str]) -> list[Line]:
    return _boxed("after", drawing, labels, [[normal(v) for v in row] for row in drawing.after])


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


def _boxed(title: str, drawing: Grid, labels: Sequence[str], shown: Sequence[Sequence[str]]) -> list[Line]:
    header = [GAP if c is None else str(c) for c in drawing.columns]
    rows = _spaced(drawing.rows, drawing.columns, shown)
    widths = [max(len(cells[j]) for cells in (header, *rows)) for j in range(len(header))]
    lit = drawing.columns.index(drawing.lit)
    margin = " " * len(labels[0])
    top, bottom = (_cells([""] * len(widths), widths, lit, *corners, "─") for corners in (("┌", "┐"), ("└", "┘")))
    body = [
        line((label + " ", "quiet"), *_cells(cells, widths, lit, "│", "│"))
        for label, cells in zip(labels, rows, strict=True)
    ]
    head = line(margin, " ", (title, "heading"))
    names = line(margin, " ", *((t, "quiet") for t, _ in _cells(header, widths, lit, " ", " ")))
    return [head, names, line(margin, " ", *top), *body, line(margin, " ", *bottom)]


def _spaced(rows: Shown, columns: Shown, shown: Sequence[Sequence[str]]) -> list[list[str]]:
    result = []
    values = iter(shown)
    for r in rows:
        cells = iter(() if r is None else next(values))
        result.append([SKIP if r is None else GAP if c is None else next(cells) for c in columns])
    return result


def _cells(texts: Sequence[str], widths: Sequence[int], lit: int, left: str, right: str, fill: str = " ") -> Line:
    """Return one row of cells, the lit one between ``left`` and ``right``."""
    spans = []
    for j, (text, w) in enumerate(zip(texts, widths, strict=True)):
        if j != lit:
            spans.append(((" " if j else "") + text.rjust(w) + " ", ""))
        elif fill != " ":
            spans.append((left + fill * (w + 2) + right, "number"))
        else:
            inside = f" {text.rjust(w)} "
            spans += [(left, "number"), (inside, "lit" if left == "│" else "quiet"), (right, "number")]
    return tuple(spans)


def stack(drawing: Stack, labels: Labels) -> list[Line]:
    """Draw samples side by side, a bar for each channel of each sample."""
    names = [SKIP if c is None else f"{labels.unit} {labels.index(c)}" for c in drawing.channels]
    left = max(map(len, names))
    samples = [GAP if s is None else f"sample {s}" for s in drawing.samples]
    widths = [1 if s is None else max(BAR, len(t)) for s, t in zip(drawing.samples, samples, strict=True)]
    head = " " * left + "".join("  " + t.ljust(w) for t, w in zip(samples, widths, strict=True))
    lines = [line(INDENT, (head, "quiet"))]
    for c, name in zip(drawing.channels, names, strict=True):
        style = "number" if c == drawing.lit else "quiet"
        bars = [
            "  "
            + (
                SKIP.ljust(w)
                if c is None
                else GAP
                if s is None
                else ("█" if c == drawing.lit else "░") * BAR + " " * (w - BAR)
            )
            for s, w in zip(drawing.samples, widths, strict=True)
        ]
        lines.append(
            line(INDENT, (name.ljust(left), "heading" if c == drawing.lit else "quiet"), ("".join(bars), style))
        )
    return [*lines, EMPTY]
