"""The table of channels, and below it what to look at twice."""

from __future__ import annotations

import numpy as np

from ..text.language import Words
from ..text.lines import EMPTY, INDENT, Line, cells, fit, line, paragraph, tied
from .digits import decimals, digits_for, fitted, short
from .facts import Facts
from .suspicions_shown import suspicions, tags

#: Channels with something suspicious are shown up to this many, also where the table is shorter.
SUSPICIOUS_ROWS = 24

#: Columns of a number before and after, of the line between them, and of a tag.
BEFORE, AFTER, RULE, TAG = 9, 8, 2, 10
LONGEST_NAME = 28
#: In a narrower report, the least and the greatest value are left out.
NARROW = 76


def table(e: Facts, words: Words, columns: int, rows: int | None) -> list[Line]:
    """Return the table: suspicious channels first, then in order, ``rows`` in all (None: every one)."""
    tagged = tags(e)
    chosen = _choose(len(e.channels), tagged, e.formulas.channel, rows)
    numbers = ("mean", "std") if columns < NARROW else ("mean", "std", "minimum", "maximum")
    unit = words(e.labels.unit)
    names = [e.labels.head(c) for c in chosen]
    taken = len(INDENT) + len(numbers) * BEFORE + RULE + 2 * AFTER + TAG * any(c in tagged for c in chosen)
    left = max(cells(unit), min(max(map(cells, names)), columns - taken, LONGEST_NAME))
    heads = "".join(_right(words(name), BEFORE) for name in numbers)
    before, after = _right(words("drawn_before"), len(numbers) * BEFORE), _right(words("drawn_after"), 2 * AFTER)
    after_heads = "".join(_right(words(name), AFTER) for name in ("mean", "std"))
    lines = [
        line(INDENT, (f"{' ' * left}{before} │{after}", "quiet")),
        line(INDENT, (f"{fit(unit, left)}{heads} │{after_heads}", "quiet")),
    ]
    for c, name in zip(chosen, names, strict=True):
        tag = words(f"tag {tagged[c]}") if c in tagged else ""
        lines.append(_row(e, c, fit(name, left), len(numbers), tag))
    if hidden := len(e.channels) - len(chosen):
        lines += paragraph(words("more_rows", n=hidden), columns, style="quiet")
    if summary := _summary(e, words, columns):
        lines += [EMPTY, *summary]
    if tagged:
        lines += [EMPTY, *suspicions(e, words, columns)]
    return lines


def _right(text: str, columns: int) -> str:
    return " " * (columns - cells(text)) + text


def _choose(count: int, tagged: dict[int, str], lit: int, rows: int | None) -> list[int]:
    if rows is None or count <= rows:
        return list(range(count))
    suspicious = sorted(tagged)[:SUSPICIOUS_ROWS]
    in_order = dict.fromkeys([lit, *range(min(count, rows + SUSPICIOUS_ROWS))])
    others = [c for c in in_order if c not in suspicious]
    return suspicious + sorted(others[: max(rows - len(suspicious), 3)])


def _row(e: Facts, c: int, name: str, numbers: int, tag: str) -> Line:
    t = e.channels
    mean, std = float(t.mean[c]), float(t.std[c])
    digits = max(4, digits_for(mean, std) - 1)
    values = (
        fitted(mean, digits),
        fitted(std, 4),
        fitted(float(t.minimum[c]), digits),
        fitted(float(t.maximum[c]), digits),
    )
    before = "".join(_right(v, BEFORE) for v in values[:numbers])
    after = "".join(_right(decimals(float(v[c])), AFTER) for v in (t.mean_after, t.std_after))
    style = "heading" if c == e.formulas.channel else ""
    return line(INDENT, (name, style), before, (" │", "quiet"), after, ("  " + tag, "warning"))


def _summary(e: Facts, words: Words, columns: int) -> list[Line]:
    """Return what became of the channels that nothing is wrong with."""
    t, kind = e.channels, e.labels.kind
    troubled = [c for s in e.suspicions if s.tag != "16-bit" for c in s.channels]
    fine = np.setdiff1d(np.arange(len(t)), troubled)
    if len(fine) == 0:
        return []
    now = words.count(f"now_others_{kind}", len(fine)) if troubled else words(f"now_{kind}")
    far, low, high = float(abs(t.mean_after[fine]).max()), t.std_after[fine].min(), t.std_after[fine].max()
    mean = words("mean_near", far=short(far, 2)) if far else words("mean_exact")
    a, b = f"{low:.6f}", f"{high:.6f}"
    std = words("std_exact", std=a) if a == b else words("std_range", low=a, high=b)
    expected = np.sqrt(t.var[fine] / (t.var[fine] + e.eps))
    rounded = abs(t.std_after[fine] - expected).max() > 5e-7
    key = "exactly_rounded" if rounded else "exactly"
    exactly = words(key, mean=mean, std=std, formula=tied("√(var/(var + eps))"), dtype=e.working_dtype)
    return paragraph(words.sentences([now, exactly]), columns)
