"""The table of channels, and below it what to look at twice."""

from __future__ import annotations

import numpy as np

from ..text.lines import EMPTY, INDENT, Line, cells, fit, line, paragraph, printable, tied
from .digits import decimals, digits_for, fitted, many, short
from .facts import Facts
from .suspicions_shown import suspicions

#: Channels with something suspicious are shown up to this many, also where the table is shorter.
SUSPICIOUS_ROWS = 24

#: Columns that a row takes besides the channel's name: margin, four numbers, a line, two numbers, a tag.
BESIDES_NAME = len(INDENT) + 4 * 9 + 2 + 8 + 8 + 10
LONGEST_NAME = 28


def table(e: Facts, columns: int, rows: int | None) -> list[Line]:
    """Return the table: suspicious channels first, then in order, ``rows`` in all (None: every one)."""
    tags = _tags(e)
    chosen = _choose(len(e.channels), tags, e.formulas.channel, rows)
    names = [_name(e, c) for c in chosen]
    room = columns - BESIDES_NAME + 10 * (not any(c in tags for c in chosen))
    left = max(len(e.labels.unit), min(max(map(cells, names)), room, LONGEST_NAME))
    before = "".join(f"{t:>9}" for t in ("mean", "std", "min", "max"))
    lines = [
        line(INDENT, (f"{'':<{left}}{'before':>36} │{'after':>16}", "quiet")),
        line(INDENT, (f"{e.labels.unit:<{left}}{before} │{'mean':>8}{'std':>8}", "quiet")),
    ]
    lines += [_row(e, c, fit(name, left), tags.get(c, "")) for c, name in zip(chosen, names, strict=True)]
    if hidden := len(e.channels) - len(chosen):
        more = f"{many(hidden)} more {e.labels.unit}{'s' * (hidden > 1)}"
        text = f"{more}: --rows all shows every one, --json gives every number."
        lines += paragraph(text, columns, style="quiet")
    if summary := _summary(e, columns):
        lines += [EMPTY, *summary]
    if e.suspicions:
        lines += [EMPTY, *suspicions(e, columns)]
    return lines


def _choose(count: int, tags: dict[int, str], lit: int, rows: int | None) -> list[int]:
    if rows is None or count <= rows:
        return list(range(count))
    suspicious = sorted(tags)[:SUSPICIOUS_ROWS]
    in_order = dict.fromkeys([lit, *range(min(count, rows + SUSPICIOUS_ROWS))])
    others = [c for c in in_order if c not in suspicious]
    return suspicious + sorted(others[: max(rows - len(suspicious), 3)])


def _tags(e: Facts) -> dict[int, str]:
    """Return the gravest tag of every channel that has one."""
    tags: dict[int, str] = {}
    for suspicion in e.suspicions:
        for c in suspicion.channels:
            tags.setdefault(c, suspicion.tag)
    return tags


def _name(e: Facts, c: int) -> str:
    index = e.labels.index(c)
    return index if e.labels.names is None else f"{index} {printable(e.labels.names[c])}"


def _row(e: Facts, c: int, name: str, tag: str) -> Line:
    t = e.channels
    mean, std = float(t.mean[c]), float(t.std[c])
    digits = max(4, digits_for(mean, std) - 1)
    values = (
        fitted(mean, digits),
        fitted(std, 4),
        fitted(float(t.minimum[c]), digits),
        fitted(float(t.maximum[c]), digits),
    )
    after = f"{decimals(float(t.mean_after[c])):>8}{decimals(float(t.std_after[c])):>8}"
    style = "heading" if c == e.formulas.channel else ""
    return line(
        INDENT, (name, style), "".join(f"{v:>9}" for v in values), (" │", "quiet"), after, ("  " + tag, "warning")
    )


def _summary(e: Facts, columns: int) -> list[Line]:
    """Return what became of the channels that nothing is wrong with."""
    t = e.channels
    troubled = [c for s in e.suspicions if s.tag != "16-bit" for c in s.channels]
    fine = np.setdiff1d(np.arange(len(t)), troubled)
    if len(fine) == 0:
        return []
    who, has = f"Every {e.labels.unit}", "has"
    if troubled:
        several = len(fine) > 1
        who, has = f"The other {e.labels.plural(len(fine)) if several else e.labels.unit}", "have" if several else "has"
    mean, low, high = float(abs(t.mean_after[fine]).max()), t.std_after[fine].min(), t.std_after[fine].max()
    a, b = f"{low:.6f}", f"{high:.6f}"
    std = a if a == b else f"{a} to {b}"
    expected = np.sqrt(t.var[fine] / (t.var[fine] + e.eps))
    rounded = abs(t.std_after[fine] - expected).max() > 5e-7
    rest = f", and rounding to {e.working_dtype} does the rest" if rounded else ""
    away = f"at most {short(mean, 2)} away" if mean else "exactly"
    text = f"{who} now {has} mean 0 ({away}) and std 1 ({std}: eps makes it {tied('√(var/(var + eps))')}{rest})."
    return paragraph(text, columns)
