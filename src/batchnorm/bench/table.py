"""A document as lines for a terminal: a group for each shape, a line for each operation, and how to read them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any, NamedTuple

from ..explanation.lines import EMPTY, Line, fit, line, paragraph, printable
from .ratios import LOST, OTHERS, Loss, gigabytes_a_second, in_copies, losses, mean, seconds, times_faster

Row = dict[str, Any]
LAYOUT = {"contiguous": "NCHW", "channels_last": "NHWC"}
OPERATION, OTHER = 20, 7
SHOWN_LOSSES = 12


class Column(NamedTuple):
    """A heading, the width of its cells, and what stands in them for a row and fresh or reused outputs."""

    heading: str
    columns: int
    cell: Callable[[Row, str], tuple[str, str]]


def number(value: float | None) -> str:
    """Three digits, a dash for nothing."""
    if value is None:
        return "–"
    return f"{value:.0f}" if value >= 99.95 else f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"


def _milliseconds(row: Row, outputs: str) -> tuple[str, str]:
    ours = seconds(row, "ours", outputs)
    return ("–" if ours is None else f"{ours * 1e3:#.3g}".rstrip(".") if ours < 1 else f"{ours * 1e3:.0f}"), "number"


def _spread(row: Row, outputs: str) -> tuple[str, str]:
    """Half of what lies between the quartiles."""
    times = row["times"].get(f"ours {outputs}")
    if times is None:
        return "–", "quiet"
    low, high = times["quartiles_s"]
    return f"±{50 * (high - low) / times['median_s']:.0f}%", "quiet"


def _copies(copy: str) -> Callable[[Row, str], tuple[str, str]]:
    return lambda row, outputs: (number(in_copies(row, copy, outputs)), "")


def _faster(other: str) -> Callable[[Row, str], tuple[str, str]]:
    def cell(row: Row, outputs: str) -> tuple[str, str]:
        ratio = times_faster(row, other, outputs)
        lost = ratio is not None and ratio < LOST
        return number(ratio) + ("!" if lost else " "), "lost" if lost else ""

    return cell


FIXED = (
    Column("ms", 7, _milliseconds),
    Column("", 5, _spread),
    Column("memcpy", 7, _copies("memcpy")),
    Column("stream", 7, _copies("streaming copy")),
    Column("GB/s", 5, lambda row, outputs: (number(gigabytes_a_second(row, outputs)), "quiet")),
)
HEADINGS = {
    "eager": "eager",
    "compiled": "comp.",
    "onednn": "oneDNN",
    "jax": "JAX",
    "numpy": "NumPy",
    "scikit-learn": "sklearn",
}


def table(document: dict[str, Any], columns: int) -> list[Line]:
    """The whole document, in so many columns; contestants that do not fit are named below."""
    rows = document["rows"]
    measured = [
        o for o in OTHERS if any(f"{o} {outputs}" in row["times"] for row in rows for outputs in ("fresh", "reused"))
    ]
    room = (columns - OPERATION - sum(c.columns for c in FIXED)) // OTHER
    shown = [*FIXED, *(Column(HEADINGS[o], OTHER, _faster(o)) for o in measured[:room])]
    lines = [line((fit("", OPERATION), ""), *((f"{c.heading:>{c.columns}}", "heading") for c in shown))]
    for heading, group in groupby(rows, _heading):
        lines += [line((printable(heading), "title"))]
        for row in group:
            lines += [
                _line(row, outputs, shown) for outputs in ("fresh", "reused") if f"ours {outputs}" in row["times"]
            ]
    return [*lines, EMPTY, *_footer(document, measured[room:], columns)]


def _shape(row: Row) -> str:
    layout = f" {LAYOUT[row['layout']]}" if len(row["shape"]) > 2 else ""
    return "×".join(map(str, row["shape"])) + layout


def _heading(row: Row) -> str:
    threads = f"{row['threads']} thread{'s' * (row['threads'] > 1)}"
    return f"{_shape(row)} · {row['dtype']} · {threads} · {row['name']}"


def _line(row: Row, outputs: str, shown: Sequence[Column]) -> Line:
    name = row["operation"].replace(" + ", "+") if outputs == "fresh" else "  output reused"
    cells = [(c, *c.cell(row, outputs)) for c in shown]
    return line((fit(f"  {name}", OPERATION), ""), *((f"{text:>{c.columns}}", style) for c, text, style in cells))


def _footer(document: dict[str, Any], hidden: Sequence[str], columns: int) -> list[Line]:
    texts = [
        "ms: ours, the median of rounds in which all take turns, and half the distance of the quartiles. memcpy, "
        "stream: ours in copies of the tensor, by memcpy and past the cache. GB/s: the bytes that must be moved, by "
        "our time. Then the others' times divided by ours: below 1 they are faster.",
        f"Results are new memory in each call, or, where it says so, written into memory that exists. ! marks what we "
        f"lose by more than {100 * (1 - LOST):.0f} %.",
    ]
    for text in (_means(document["rows"]), _lost(losses(document["rows"]))):
        texts += [text] if text else []
    if hidden:
        texts.append(f"Measured, but too wide for this table: {', '.join(HEADINGS[o] for o in hidden)}; see --json.")
    texts += _notes(document)
    texts.append(_machine(document["machine"]))
    return [one for text in texts for one in paragraph(printable(text), columns, first=line(" "))]


def _means(rows: Sequence[Row]) -> str:
    parts = []
    for other in OTHERS:
        ratios = [
            r for row in rows for outputs in ("fresh", "reused") if (r := times_faster(row, other, outputs)) is not None
        ]
        if ratios:
            parts.append(f"{HEADINGS[other]} {number(mean(ratios))} ({len(ratios)})")
    return f"Geometric mean of each column (and of how many rows): {', '.join(parts)}." if parts else ""


def _lost(lost: Sequence[Loss]) -> str:
    if not lost:
        return ""
    named = [
        f"{_shape(one.row)} {one.row['operation']} "
        f"({one.outputs}, {one.row['dtype']}, {one.row['threads']} thr.) {number(one.ratio)} {HEADINGS[one.other]}"
        for one in lost[:SHOWN_LOSSES]
    ]
    more = len(lost) - len(named)
    return f"We lose {len(lost)}, the worst first: {'; '.join(named)}{f'; and {more} more' if more else ''}."


def _notes(document: dict[str, Any]) -> list[str]:
    """Who is not in the table, and why; each reason once."""
    notes = [f"Left out: {name}: {reason}." for name, reason in document["absent"].items()]
    reasons: dict[tuple[str, str], int] = {}
    for row in document["rows"]:
        for key, reason in row["unable"].items():
            name = key.rpartition(" ")[0]
            reasons[name, reason] = reasons.get((name, reason), 0) + 1
    return [
        *notes,
        *(f"A dash in {count} cell{'s' * (count > 1)}: {name}: {reason}." for (name, reason), count in reasons.items()),
    ]


def _machine(m: dict[str, Any]) -> str:
    versions = [f"{name} {m[key]}" for key, name in NAMES.items() if m.get(key)]
    commit = f", commit {m['commit']}" if m.get("commit") else ""
    return f"{m['cpu']}, {m['kernels']} kernels{commit}; {', '.join(versions)}."


NAMES = {
    "python": "Python", "numpy": "NumPy", "torch": "PyTorch", "onednn": "oneDNN (package)", "jax": "JAX",
    "scikit-learn": "scikit-learn",
}  # fmt: skip
