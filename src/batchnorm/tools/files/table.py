"""A table in memory: the chosen columns as numbers, the others as they came, to be written back in place."""

from __future__ import annotations

import csv
import io
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .refused import Refused
from .text_form import Form


@dataclass(frozen=True, eq=False)
class Table:
    """A table read from a file.

    ``values`` has one row per row of the file and one column per entry of ``chosen``; ``others`` holds every column
    that was not chosen, by its number. ``names`` names all columns; without a header they are the columns' numbers.
    ``rounded`` says where an integer stood that float64 does not hold, if any. ``gaps`` are the missing cells of chosen
    columns, by column and row, as they were written; ``first_gap`` says where the first stands. ``form`` is how a text
    file was written. ``arrow`` is the pyarrow table of a Parquet file, which knows types and metadata, and the other
    columns.
    """

    names: tuple[str, ...]
    header: bool
    chosen: tuple[int, ...]
    values: np.ndarray
    others: dict[int, Sequence[Any]]
    remarks: tuple[str, ...] = ()
    rounded: str | None = None
    gaps: dict[int, dict[int, str]] = field(default_factory=dict)
    first_gap: str | None = None
    form: Form | None = None
    arrow: Any = None

    @property
    def chosen_names(self) -> tuple[str, ...] | None:
        """The names of the chosen columns, or None for a file without a header."""
        return tuple(self.names[i].strip() for i in self.chosen) if self.header else None


def choose(
    columns: str | tuple[str, ...] | None, names: tuple[str, ...], source: str, index: Sequence[int] = ()
) -> tuple[int, ...]:
    """Return the numbers of the columns asked for: by names or numbers between commas, or a tuple of names.

    None means all but those of ``index``, which number the rows.
    """
    names = tuple(name.strip() for name in names)
    if isinstance(columns, tuple):
        return _named(columns, names, source)
    if columns is None:
        return tuple(i for i in range(len(names)) if i not in index)
    try:
        asked = [c.strip() for c in next(csv.reader([columns], strict=True), [])]
    except csv.Error as error:
        raise Refused(
            f"--columns {columns!r} is not a list of names ({error}). Quote a name that holds a comma or a line's end."
        ) from error
    if not any(asked):
        raise Refused("--columns names no column. Give names or numbers separated by commas, such as --columns 0,1,2.")
    chosen = tuple(_find(name, names, source) for name in asked)
    for i in chosen:
        if chosen.count(i) > 1:
            raise Refused(f"--columns {columns} names column {i} ({names[i]!r}) twice. Name each column once.")
    return chosen


def _named(asked: tuple[str, ...], names: tuple[str, ...], source: str) -> tuple[int, ...]:
    """Return where names stand; of several that are alike, the first is the first."""
    found = []
    for i, name in enumerate(asked):
        places = [j for j, other in enumerate(names) if other == name]
        if not places:
            raise Refused(f"{source} has no column {name!r}, which the moments have; {_listed(names)}.")
        if len(places) != asked.count(name):
            raise Refused(
                f"{source} has {len(places)} columns named {name!r}, and the moments have {asked.count(name)}. Choose "
                "by number: --columns counts from 0."
            )
        found.append(places[asked[:i].count(name)])
    return tuple(found)


def _listed(names: tuple[str, ...]) -> str:
    return f"it has {len(names)}: {', '.join(names[:12])}{', …' * (len(names) > 12)}"


def _find(asked: str, names: tuple[str, ...], source: str) -> int:
    if (found := names.count(asked)) > 1:
        raise Refused(f"{source} has {found} columns named {asked!r}. Choose by number: --columns counts from 0.")
    if found:
        return names.index(asked)
    if asked.isascii() and asked.isdigit() and len(asked) < 10 and int(asked) < len(names):
        return int(asked)
    raise Refused(
        f"{source} has no column {asked!r}; {_listed(names)}. Give names, or numbers from 0 to {len(names) - 1}."
    )


def columns_option(names: Sequence[str]) -> str:
    """Return the option that chooses these columns, quoted for a shell.

    >>> columns_option(["a", "b c"])
    "--columns 'a,b c'"
    """
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(names)
    return f"--columns {shlex.quote(text.getvalue())}"


def other_columns_hint(numeric: Sequence[int], width: int) -> str:
    """Return the sentence that says how to leave out a column without numbers."""
    if not numeric:
        return "No column of this file holds numbers."
    shown = (
        ",".join(map(str, numeric))
        if len(numeric) <= 12 or len(numeric) < width // 2
        else f"{numeric[0]},{numeric[1]},…"
    )
    return f"Leave this column out by choosing the others, by name or number: --columns {shown}."
