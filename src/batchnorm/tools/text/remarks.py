"""Sentences that several commands say of the channels of some data."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ..._left_out import NAMED, LeftOut, grouped, shown
from ..._left_out import Remark as LeftOutRemark
from .language import Listed, Said, Words
from .words import WORDS

#: Below this many eps, a variance loses more than 1 % of itself to eps.
NEAR_EPS = 100.0


def gaps(counts: np.ndarray, total: int, name: Callable[[int], str], cells: bool) -> tuple[str, ...]:
    """Say which of ``total`` values of each channel are missing, given how many are there; ``cells`` of a table.

    >>> gaps(np.array([5, 3]), 5, "column {}".format, True)
    ('2 missing cells are left out of the statistics, in column 1',)
    """
    missing = {c: total - int(n) for c, n in enumerate(counts.ravel()) if n < total}
    if not missing:
        return ()
    number = sum(missing.values())
    what = Said(f"gap_{'cells' if cells else 'nan'}_{'one' if number == 1 else 'many'}", n=number)
    if len(missing) == 1:
        where = Said("gap_in", name=name(next(iter(missing))))
    else:
        listed = Listed(Said("gap_some_in", n=missing[c], name=name(c)) for c in [*missing][:NAMED])
        where = Said("gap_listed", listed=listed)
        if len(missing) > NAMED:
            where = Said("gap_and_others", listed=listed, n=len(missing) - NAMED)
    return (Said("gaps", what=what, where=where),)


def told(remark: str, words: Words) -> str:
    """Return a remark in the language of ``words``; one that the caller wrote stays as it is.

    >>> from batchnorm._left_out import remark as left_out
    >>> told(left_out([LeftOut(4, "species", "text")]), Words("zh"))
    "列 'species' 未使用：其内容是文本"
    """
    return words.told(_of_columns(remark.left) if isinstance(remark, LeftOutRemark) else remark)


def _of_columns(left: Sequence[LeftOut]) -> Said:
    """Return what ``_left_out.remark`` says, as other languages know it."""
    groups = grouped(left)
    if len(groups) == 1:
        (holds, fix), columns = groups[0]
        several = "left_out_many" if len(left) > 1 else "left_out_one"
        said, fixes = Said(several, who=_columns(columns), holds=_held(holds)), [fix] if fix else []
    else:
        kinds = (Said("left_out_kind", who=_columns(columns), holds=_held(holds)) for (holds, _), columns in groups)
        said = Said("left_out_kinds", n=len(left), listed=Listed(kinds))
        fixes = [*dict.fromkeys(fix for (_, fix), _ in groups if fix)]
    for fix in fixes:
        said = Said("and_then", first=said, then=fix)
    return said


def _held(holds: str) -> str:
    return Said(f"holds {holds}") if f"holds {holds}" in WORDS else holds


def _columns(columns: Sequence[LeftOut]) -> Said:
    if len(columns) == 1 and columns[0].name is None:
        return Said("column_number", index=columns[0].column)
    names = tuple(str(c.column) if c.name is None else shown(c.name) for c in columns)
    if len(names) > NAMED:
        return Said("columns_and_more", names=Listed(names[:NAMED]), n=len(names) - NAMED)
    return Said("column_name", name=names[0]) if len(names) == 1 else Said("columns_listed", names=names)


def narrow(var: np.ndarray, eps: float, name: Callable[[int], str], own: bool) -> tuple[str, ...]:
    """Say which channels do not get a standard deviation of 1: constant ones, and those that eps scales.

    ``own``: the variance is that of the data normalized, not of other data.

    >>> narrow(np.array([1.0, 0.0]), 1e-5, "column {}".format, own=True)
    ('column 1 is constant, so all its output is 0',)
    """
    var = var.ravel()
    constant, near = np.flatnonzero(var == 0), np.flatnonzero((var > 0) & (var < NEAR_EPS * eps))
    said = []
    if len(constant):
        is_, its = ("is", "its") if len(constant) == 1 else ("are", "their")
        if own:
            said.append(f"{_listed(constant, name)} {is_} constant, so all {its} output is 0")
        else:
            rule = f"what differs from {its} mean is multiplied by 1/√eps = {eps**-0.5:.3g}"
            said.append(f"{_listed(constant, name)} {is_} constant in the data of the moments, so {rule}")
    if len(near):
        c = int(near[0])
        std = f"{np.sqrt(var[c] / (var[c] + eps)):.3g}"
        first = f"{name(c)} has var = {var[c]:.3g}, not large beside eps = {eps:g}: its std becomes {std}, not 1"
        more = f"; so {'is' if len(near) == 2 else 'are'} {_listed(near[1:], name)}" if len(near) > 1 else ""
        said.append(f"{first}{more}; scale it up, or take a smaller --eps")
    return tuple(said)


def _listed(channels: np.ndarray, name: Callable[[int], str]) -> str:
    shown = [name(int(c)) for c in channels[:NAMED]]
    if len(channels) > NAMED:
        return f"{', '.join(shown)} and {len(channels) - NAMED} more"
    return " and ".join(filter(None, (", ".join(shown[:-1]), shown[-1])))
