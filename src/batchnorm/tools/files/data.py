"""One file of numbers, opened and described, and how it was asked to be read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..._options import nan_policy_of
from ..text.language import Said
from .refused import Refused
from .table import Table
from .text_source import said


@dataclass(frozen=True)
class Reading:
    """How a file is to be read; None leaves it to the file.

    ``key`` names an array of an archive, ``columns`` the columns of a table. Of a text table, ``header`` says whether
    its first line holds names, ``delimiter`` what stands between cells, ``decimal`` what stands before decimals.
    ``names`` are the columns that other data had: those are chosen where the table has names.
    """

    key: str | None = None
    columns: str | None = None
    header: bool | None = None
    delimiter: str | None = None
    decimal: str | None = None
    names: tuple[str, ...] | None = None

    def chosen(self, header: bool) -> str | tuple[str, ...] | None:
        """Return the columns of a table that are asked for: as --columns has them, or by name, or None."""
        return self.names if self.columns is None and header else self.columns


AS_FOUND = Reading()


@dataclass(frozen=True, eq=False)
class Data:
    """The numbers of a file: an array of any rank, or the chosen columns of a table. ``values`` may be a memory map."""

    path: Path
    values: np.ndarray
    key: str | None = None
    table: Table | None = None

    @property
    def names(self) -> tuple[str, ...] | None:
        """The names of a table's columns, where the file has them."""
        return None if self.table is None else self.table.chosen_names

    @property
    def rounded(self) -> str | None:
        """Where an integer of a table stood that float64 does not hold, if any."""
        return None if self.table is None else self.table.rounded

    @property
    def remarks(self) -> tuple[str, ...]:
        """What the reader of the numbers must know about how they were read."""
        if self.table is None:
            return ()
        rounded = self.rounded is not None and self.values.dtype.kind == "f"
        return (*self.table.remarks, *([Said("rounded", where=self.rounded)] * rounded))

    def nan_policy(self, asked: str | None) -> str:
        """Return what a missing value, NaN, does: what was asked, else it is left out of a table's statistics."""
        return nan_policy_of(asked, self.table is not None)

    def refuse_gaps(self) -> None:
        """Refuse a value that is missing, and say where it stands."""
        x = self.values
        if x.dtype.kind != "f" or not (found := np.isnan(x)).any():
            return
        where = None if self.table is None else self.table.first_gap
        if where is None:
            index = tuple(int(i) for i in np.argwhere(found)[0])
            where = (
                f"index {index} is NaN" if self.table is None else f"row {index[0]}, {self.channel(index[1])} is NaN"
            )
        fix = "Fill it in, remove the row, or leave missing values out of the statistics with --nan-policy omit."
        raise Refused(f"{self}, {where}. With --nan-policy raise no value may be missing. {fix}")

    def channel(self, c: int) -> str:
        """Return how a sentence calls a channel: a column of a table by its name, or its number in the file."""
        if self.table is None:
            return f"channel {c}"
        names = self.table.chosen_names
        return f"column {repr(names[c]) if names is not None and names[c] else self.table.chosen[c]}"

    def __str__(self) -> str:
        return said(self.path) if self.key is None else f"{self.path}, array {self.key!r}"
