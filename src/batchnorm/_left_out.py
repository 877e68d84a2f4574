"""Columns of a table that hold no numbers: that they were left out, in one sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

#: Columns named one by one, of each kind.
NAMED = 6
#: What a column without a value holds.
NOTHING = "no value"
_RULE = "A table needs at least one column of numbers."


@dataclass(frozen=True)
class LeftOut:
    """A column that was left out, what it holds, and what would make numbers of it, if anything.

    A column with a name is called by it alone: its number is another one among those that are left.
    """

    column: int
    name: str | None
    holds: str
    fix: str | None = None


class Remark(str):
    """A sentence about the columns ``left`` out, and they themselves, for who says it in another language."""

    left: tuple[LeftOut, ...]


def remark(left: Sequence[LeftOut]) -> Remark:
    """Return one sentence about all columns that were left out.

    >>> remark([LeftOut(4, "species", "text")])
    "column 'species' was left out: it holds text"
    """
    said = Remark(_sentence(left))
    said.left = tuple(left)
    return said


def _sentence(left: Sequence[LeftOut]) -> str:
    groups = grouped(left)
    if len(groups) == 1:
        ((holds, fix), columns), several = groups[0], len(left) > 1
        who = f"{_columns(columns)} {'were' if several else 'was'} left out: {'they hold' if several else 'it holds'}"
        return f"{who} {holds}{f'; {fix}' if fix else ''}"
    listed = ", ".join(f"{_columns(columns)} ({holds})" for (holds, _), columns in groups)
    fixes = [*dict.fromkeys(fix for (_, fix), _ in groups if fix)]
    return "; ".join([f"{len(left)} columns were left out: {listed}", *fixes])


def refusal(left: Sequence[LeftOut], advice: str | None = None) -> str:
    """Return what is wrong with a table that has no column of numbers, and the fix."""
    if not left:
        return f"no column is there. {advice or _RULE}"
    listed = ", ".join(f"{_columns(columns)} {_hold(columns)} {holds}" for (holds, _), columns in grouped(left))
    fixes = [f"{fix[0].upper()}{fix[1:]}." for fix in dict.fromkeys(fix for (_, fix), _ in grouped(left) if fix)]
    fix = " ".join([advice] if advice else fixes or [_RULE])
    return f"no column holds numbers: {listed}. {fix}"


def _hold(columns: Sequence[LeftOut]) -> str:
    return "hold" if len(columns) > 1 else "holds"


def grouped(left: Sequence[LeftOut]) -> list[tuple[tuple[str, str | None], list[LeftOut]]]:
    """Return the columns that hold the same and have the same fix, beside each other."""
    groups: dict[tuple[str, str | None], list[LeftOut]] = {}
    for one in left:
        groups.setdefault((one.holds, one.fix), []).append(one)
    return [*groups.items()]


def _columns(columns: Sequence[LeftOut]) -> str:
    names = [str(c.column) if c.name is None else shown(c.name) for c in columns[:NAMED]]
    if len(columns) > NAMED:
        return f"columns {', '.join(names)} and {len(columns) - NAMED} more"
    if len(names) == 1:
        return f"column {names[0]}"
    return f"columns {', '.join(names[:-1])} and {names[-1]}"


def shown(text: str) -> str:
    """Return a text in quotes, cut where it is long."""
    return repr(text if len(text) <= 32 else text[:31] + "…")
