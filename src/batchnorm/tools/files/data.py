"""One file of numbers, whatever its kind: chosen by its extension, opened, and described."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .arrays import read_npy, read_npz
from .parquet_tables import read_parquet
from .refused import Refused
from .table import Table
from .text_form import DELIMITERS, Form
from .text_tables import read_text_table

TABLES = (*DELIMITERS, ".parquet")
KINDS = (".npy", ".npz", *TABLES)


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


def open_data(
    path: str | Path,
    *,
    key: str | None = None,
    columns: str | None = None,
    header: bool | None = None,
    delimiter: str | None = None,
    decimal: str | None = None,
) -> Data:
    """Open a file of numbers.

    Parameters
    ----------
    path : a .npy, .npz, .csv, .tsv or .parquet
    key : the array's name in an .npz
    columns : names or numbers of a table's columns, separated by commas; None means all
    header : whether the first line of a .csv or .tsv holds names; None decides by whether it holds anything but numbers
    delimiter : what stands between the cells of a .csv or .tsv; None means a comma or a tab
    decimal : what stands before decimals in a .csv or .tsv, a point or a comma; None means a point

    Raises
    ------
    Refused
        When the file does not hold what was asked for. The message says what came and what to do.
    """
    path = Path(path)
    kind = check_input(path)
    if key is not None and kind != ".npz":
        raise Refused(f"--key chooses an array of an .npz, and {path} is not one. Leave --key out.")
    if kind not in TABLES and columns is not None:
        raise Refused(
            f"--columns chooses columns of a table, and {path} is an array. Choose the channels' axis with --axis "
            "instead."
        )
    stated = {"header": header, "delimiter": delimiter, "decimal": decimal}
    for name, value in stated.items():
        if kind not in DELIMITERS and value is not None:
            option = "--header and --no-header are" if name == "header" else f"--{name} is"
            raise Refused(f"{option} for .csv and .tsv, and {path} is not one. Leave it out.")
    form = Form(delimiter or DELIMITERS[kind], decimal or ".") if kind in DELIMITERS else None
    try:
        return _open(path, kind, key, columns, header, form)
    except OSError as error:
        raise Refused(
            f"{path} cannot be read: {error.strerror or error}. Check the file and its permissions."
        ) from error


def check_input(path: Path) -> str:
    """Return the file's kind, its extension in small letters, or refuse it."""
    kind = path.suffix.lower()
    if path.is_dir():
        raise Refused(f"{path} is a directory. Name a file in it.")
    if not path.exists():
        raise Refused(f"{path} does not exist. Check the name, and the directory it is looked for in.")
    if kind not in KINDS:
        raise Refused(
            f"{path} has {f'the extension {path.suffix}' if kind else 'no extension'}; files of these kinds can "
            f"be read: {', '.join(KINDS)}."
        )
    if path.is_file() and path.stat().st_size == 0:
        raise Refused(f"{path} is empty (0 bytes). Write it again.")
    return kind


def _open(path: Path, kind: str, key: str | None, columns: str | None, header: bool | None, form: Form | None) -> Data:
    if kind == ".npy":
        return Data(path, read_npy(path))
    if kind == ".npz":
        values, key = read_npz(path, key)
        return Data(path, values, key=key)
    table = read_parquet(path, columns) if form is None else read_text_table(path, form, columns, header)
    return Data(path, table.values, table=table)
