"""What rows say, as tables: for a terminal, and as Markdown for the documents. What is lost is marked."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import NamedTuple

from ..text.lines import EMPTY, Line, line, paragraph, printable
from .functions import ACCELERATED, COPIES, MEMORY, ONEDNN, OURS, PYTORCH
from .problem import CONTIGUOUS, OPERATIONS
from .results import Document, Row
from .timing import IN_TURN, WARM


class Lost(str):
    """A cell that says we are slower."""


class Table(NamedTuple):
    """A heading, lines of cells of which the first `words` are texts, and a note below."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: int
    note: str = ""


# --- numbers


def seconds(row: Row, who: str, step: str, mode: str = WARM) -> float:
    """The median, NaN where it was not measured; a step with one mode has that one."""
    modes = row["times"].get(who, {}).get(step, {IN_TURN: [math.nan]})
    return float(modes.get(mode, modes.get(IN_TURN))[0])


def ratio(row: Row, who: str, step: str, mode: str = WARM, other: str = PYTORCH) -> float:
    """How many times faster `who` is than another: below 1 slower."""
    return seconds(row, other, step, mode) / seconds(row, who, step, mode)


def copy_seconds(row: Row) -> float:
    """Of the faster copy of x, into memory that exists."""
    return min(seconds(row, MEMORY, name) for name in COPIES if name in row["times"][MEMORY])


def least(row: Row, operation: str) -> float:
    """The seconds that an operation takes at least, by the roofline of the same turns.

    A pass takes as long as all its reading or as a copy, whichever is more. Forward: x is read; x is read and y is
    written. Backward: x and g are read; both are read and dx is written. Contiguous tensors are taken some channels at
    a time, so what is read again comes from a nearer cache and costs nothing here.
    """
    read, copy = seconds(row, MEMORY, "read"), copy_seconds(row)
    near = row["layout"] == CONTIGUOUS
    if operation == "forward":
        return max(read, copy) if near else read + copy
    if operation == "backward":
        return max(2 * read, copy) + (0 if near else 2 * read)
    return copy


def mean(ratios: Iterable[float]) -> float:
    """The geometric mean of those that are there."""
    logs = [math.log(r) for r in ratios if not math.isnan(r)]
    return math.exp(sum(logs) / len(logs)) if logs else math.nan


# --- cells


def number(value: float, form: str = ".2f") -> str:
    """A dash for what was not measured."""
    return "–" if math.isnan(value) else f"{value:{form}}"


def digits(value: float) -> str:
    """Three of them."""
    return number(value, ".0f") if value >= 999.5 else number(value, "#.3g").rstrip(".")


def times(value: float) -> str:
    """A ratio; what shows as less than 1 is a loss."""
    return Lost(number(value)) if round(value, 2) < 1 else number(value)


def spread(row: Row, who: str, step: str) -> str:
    """Half of the distance between the quartiles, in per cent of the median."""
    modes = row["times"].get(who, {}).get(step, {IN_TURN: [math.nan] * 3})
    middle, low, high = modes.get(WARM, modes.get(IN_TURN))
    return "–" if math.isnan(middle) else f"±{50 * (high - low) / middle:.0f} %"


def shape(row: Row) -> str:
    return "×".join(map(str, row["shape"]))


def threads(of: Row) -> str:
    """One thread, two threads."""
    return f"{of['threads']} thread{'s' * (of['threads'] > 1)}"


def where(document: Document) -> str:
    """Machine, versions, commit and day, in words."""
    words = "{cpu}, {of}, {kernels} kernels".format(of=threads(document["machine"]), **document["machine"])
    words += f", PyTorch {version}" if (version := document["machine"]["torch"]) else ""
    words += f", commit {commit}" if (commit := document["machine"]["commit"]) else ""
    return f"{words}, {document['date']}"


# --- as Markdown, and for a terminal


def markdown(table: Table) -> str:
    """Losses are bold."""
    rule = ["---"] * table.words + ["---:"] * (len(table.head) - table.words)
    rows = [[f"**{cell}**" if isinstance(cell, Lost) else cell for cell in cells] for cells in table.rows]
    text = "\n".join("| " + " | ".join(cells) + " |" for cells in (table.head, rule, *rows))
    return text + (f"\n\n{table.note}" if table.note else "")


def functions(document: Document, columns: int) -> list[Line]:
    """The rows of functions: a group for each tensor, a line for each operation."""
    first, other = 13, 12
    heads = ("ms", "", "copies", "least", PYTORCH, f"{ACCELERATED}", ONEDNN)
    widths = (8, 8, 8, 7, *(other,) * 3)
    lines = [line(" " * first, *((f"{h:>{w}}", "heading") for h, w in zip(heads, widths, strict=True)))]
    for title, rows in groupby(document["rows"], _title):
        lines.append(line((printable(title), "title")))
        for row in rows:
            for step in OPERATIONS:
                ours = seconds(row, OURS, step)
                cells = [digits(ours * 1e3), spread(row, OURS, step)]
                cells += [f"{ours / unit:.2f}" for unit in (copy_seconds(row), least(row, step))]
                cells += [times(ratio(row, OURS, step)), times(ratio(row, ACCELERATED, step))]
                cells += [times(ratio(row, OURS, step, other=ONEDNN))]
                lines.append(line(f"  {step:<{first - 2}}", *map(_cell, cells, widths)))
    return [*lines, EMPTY, *_notes(document, columns)]


def _cell(text: str, columns: int) -> tuple[str, str]:
    return (f"{text + '!':>{columns}}", "lost") if isinstance(text, Lost) else (f"{text:>{columns - 1}} ", "")


def _title(row: Row) -> str:
    return f"{shape(row)} · {row['layout']} · {row['dtype']} · {threads(row)}"


def _notes(document: Document, columns: int) -> list[Line]:
    rows = document["rows"]
    notes = [
        "ms: our functions on arrays, the median of the second of two calls in a row, and half the distance of the "
        "quartiles. copies: the same in copies of the tensor; least: in the least that reading and writing it takes "
        "here. PyTorch, oneDNN: their time divided by ours. accelerated: PyTorch's calls, and how many times faster "
        "they are with our kernels. ! marks what we lose."
    ]
    for who, other in ((OURS, PYTORCH), (ACCELERATED, PYTORCH), (OURS, ONEDNN)):
        ratios = [ratio(row, who, step, other=other) for row in rows for step in OPERATIONS]
        ratios = [r for r in ratios if not math.isnan(r)]
        if ratios:
            lost = sum(isinstance(times(r), Lost) for r in ratios)
            notes.append(f"{who} beside {other}: geometric mean {mean(ratios):.2f}; lost {lost} of {len(ratios)}.")
    reasons = {f"{who}: {why}." for row in rows for who, why in row["unable"].items()}
    notes += sorted(reasons)
    notes.append(where(document) + ".")
    return [one for text in notes for one in paragraph(printable(text), columns, first=line(" "))]
