"""Tables of cases made shorter: products thinned to pairs, and what is left to the slow tests."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import pytest


def pairs(*axes: Iterable[Any]) -> list[tuple[Any, ...]]:
    """A few rows of the product of the axes, the same ones every time; two axes give their product.

    Each row begins with a pair that no row has yet, and takes of the other axes what brings most new pairs.
    """
    values = [list(axis) for axis in axes]
    numbers = [range(len(axis)) for axis in values]
    missing = {
        ((i, a), (j, b)): None
        for i, j in itertools.combinations(range(len(values)), 2)
        for a, b in itertools.product(numbers[i], numbers[j])
    }
    rows = []
    while missing:
        row = dict(next(iter(missing)))
        for i in set(range(len(values))) - row.keys():

            def gains(a: int, i: int = i, row: dict[int, int] = row) -> int:
                return sum(tuple(sorted(((i, a), at))) in missing for at in row.items())

            row[i] = max(numbers[i], key=gains)
        for pair in itertools.combinations(sorted(row.items()), 2):
            missing.pop(pair, None)
        rows.append(tuple(values[i][a] for i, a in sorted(row.items())))
    return rows


def covering(rows: Sequence[tuple[Any, ...]]) -> list[int]:
    """The places of a few rows, in which every two values meet that meet in one of all rows."""
    found = [set(itertools.combinations([*enumerate(map(str, row))], 2)) for row in rows]
    missing, places = set[Any]().union(*found), []
    while missing:
        places.append(max(range(len(rows)), key=lambda i: len(found[i] & missing)))
        missing -= found[places[-1]]
    return places


def rest_slow(cases: Sequence[Any], *quick: int) -> list[Any]:
    """All cases, those marked slow that do not stand at one of these places."""
    return [case if i in quick else _slow(case) for i, case in enumerate(cases)]


def _slow(case: Any) -> Any:
    return pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow)
