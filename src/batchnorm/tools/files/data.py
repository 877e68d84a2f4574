"""One file of numbers, opened and described, and how it was asked to be read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .table import Table


@dataclass(frozen=True)
class Reading:
    """How a file is to be read; None leaves it to the file.

    ``key`` names an array of an archive, ``columns`` the columns of a table. Of a text table, ``header`` says whether
    its first line holds names, ``delimiter`` what stands between cells, ``decimal`` what stands before decimals.
    """

    key: str | None = None
    columns: str | None = None
    header: bool | None = None
    delimiter: str | None = None
    decimal: str | None = None


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
        return (*self.table.remarks, *([f"{self.rounded} was rounded: float64 holds integers up to 2^53"] * rounded))

    def __str__(self) -> str:
        return str(self.path) if self.key is None else f"{self.path}, array {self.key!r}"
