"""Columns of a table that hold no numbers: why each is left out, in one remark."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from .refused import Refused
from .text_form import COMMA_NUMBER, GROUPED_NUMBER, Form, is_missing

#: Columns named one by one, of each kind.
NAMED = 6
#: Cells looked at to say what a column holds.
LOOKED_AT = 200

_BOOLEANS = frozenset(("true", "false", "yes", "no", "t", "f", "y", "n"))
_DATE = re.compile(
    r"\s*(\d{4}[-/.]\d{1,2}([-/.]\d{1,2})?|\d{1,2}[-/.]\d{1,2}[-/.]\d{2,4}|\d{4}年\d{1,2}月\d{1,2}日"
    r"|\d{1,2}[- ][A-Za-z]{3,9}\.?[- ]\d{2,4}|[A-Za-z]{3,9}\.? \d{1,2},? \d{4})"
    r"([T ]\d{1,2}:\d{2}(:\d{2}([.,]\d+)?)?\s*(Z|[AaPp][Mm]|[+-]\d{2}:?\d{2})?)?\s*"
)
_TIME = re.compile(r"\s*\d{1,2}:\d{2}(:\d{2}([.,]\d+)?)?\s*([AaPp][Mm])?\s*")
_UNIT = re.compile(r"\s*([$€£¥]\s?)?[+-]?\d[\d.,'’ \u00a0\u202f]*([eE][+-]?\d+)?\s*(%|[^\d\s.,;:-][^\d;:]{0,11})?\s*")

_CONVERTIBLE = "take such signs out of the cells to have them counted"


@dataclass(frozen=True)
class LeftOut:
    """A column that was left out, what it holds, and what would make numbers of it, if anything.

    A column with a name is called by it alone: its number is another one among those that are left.
    """

    column: int
    name: str | None
    holds: str
    fix: str | None = None


def of_text(column: int, name: str | None, cells: Sequence[str], form: Form, bad: tuple[int, str] | None) -> LeftOut:
    """Say what a column of text holds; ``bad`` are the line and the text of its first cell that is no number."""
    filled = [c for c in cells[: LOOKED_AT * 50] if not is_missing(c)][:LOOKED_AT]
    if not filled and bad is None:
        return LeftOut(column, name, "no value")
    filled = filled or [bad[1]] if bad is not None else filled
    if all(c.strip().lower() in _BOOLEANS for c in filled):
        return LeftOut(column, name, "booleans")
    if all(_DATE.fullmatch(c) or _TIME.fullmatch(c) for c in filled):
        return LeftOut(column, name, "dates")
    numbers = sum(form.number(c) is not None for c in filled)
    odd = next((c for c in filled if form.number(c) is None), bad[1] if bad else filled[0])
    rest = [c for c in filled if form.number(c) is None]
    shown = _shown(odd)
    if form.decimal == "." and all(map(COMMA_NUMBER.fullmatch, rest)) and rest:
        fix = 'if commas stand before decimals, add --decimal ","; if they separate thousands, remove them'
        return LeftOut(column, name, f"numbers with commas, such as {shown}", fix)
    if rest and all(map(GROUPED_NUMBER.fullmatch, rest)):
        return LeftOut(column, name, f"numbers with separators of thousands, such as {shown}", _CONVERTIBLE)
    if 2 * numbers >= len(filled) and bad is not None:
        fix = "correct what is not a number, or leave the cell empty, to have the column counted"
        return LeftOut(column, name, f"numbers, but {_shown(bad[1])} in line {bad[0]}", fix)
    if rest and all(map(_UNIT.fullmatch, rest)):
        return LeftOut(column, name, f"numbers with units, such as {shown}", _CONVERTIBLE)
    return LeftOut(column, name, "text")


def remark(left: Sequence[LeftOut]) -> str:
    """Return one sentence about all columns that were left out.

    >>> remark([LeftOut(4, "species", "text")])
    "column 'species' was left out: it holds text"
    """
    groups = _groups(left)
    if len(groups) == 1:
        ((holds, fix), columns), several = groups[0], len(left) > 1
        who = f"{_columns(columns)} {'were' if several else 'was'} left out: {'they hold' if several else 'it holds'}"
        return f"{who} {holds}{f'; {fix}' if fix else ''}"
    listed = ", ".join(f"{_columns(columns)} ({holds})" for (holds, _), columns in groups)
    fixes = [*dict.fromkeys(fix for (_, fix), _ in groups if fix)]
    return "; ".join([f"{len(left)} columns were left out: {listed}", *fixes])


def refusal(source: str, left: Sequence[LeftOut], advice: str | None = None) -> Refused:
    """Return the refusal of a table that has no column of numbers."""
    listed = ", ".join(f"{_columns(columns)} {_hold(columns)} {holds}" for (holds, _), columns in _groups(left))
    fixes = [f"{fix[0].upper()}{fix[1:]}." for fix in dict.fromkeys(fix for (_, fix), _ in _groups(left) if fix)]
    fix = " ".join([advice] if advice else fixes or ["A table needs at least one column of numbers."])
    return Refused(f"{source}: no column holds numbers: {listed}. {fix}")


def _hold(columns: Sequence[LeftOut]) -> str:
    return "hold" if len(columns) > 1 else "holds"


def _groups(left: Sequence[LeftOut]) -> list[tuple[tuple[str, str | None], list[LeftOut]]]:
    groups: dict[tuple[str, str | None], list[LeftOut]] = {}
    for one in left:
        groups.setdefault((one.holds, one.fix), []).append(one)
    return [*groups.items()]


def _columns(columns: Sequence[LeftOut]) -> str:
    shown = [str(c.column) if c.name is None else _shown(c.name) for c in columns[:NAMED]]
    if len(columns) > NAMED:
        return f"columns {', '.join(shown)} and {len(columns) - NAMED} more"
    if len(shown) == 1:
        return f"column {shown[0]}"
    return f"columns {', '.join(shown[:-1])} and {shown[-1]}"


def _shown(text: str) -> str:
    return repr(text if len(text) <= 32 else text[:31] + "…")
