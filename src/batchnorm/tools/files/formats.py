"""The kinds of files, by the suffix of their names: how each is read and written. A new kind is a line here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..._blocks import working_dtype
from .arrays import create_npy, read_npy, read_npz, replace_in_npz
from .data import Data, Reading
from .parquet_tables import gaps, read_parquet, texts, write_parquet
from .refused import Refused
from .text_form import BLANK, Form
from .text_source import STDIN
from .text_tables import read_text_table, write_text_table

#: Writes the results for some data into an array.
Fill = Callable[[np.ndarray], None]


@dataclass(frozen=True)
class Format:
    """What files of one suffix hold, and how they are read and written.

    ``arrays`` are the suffixes of the files that may be written from one that is no table; ``form`` is how a text table
    is written by default.
    """

    suffix: str
    read: Callable[[Path, Format, Reading], Data]
    write: Callable[[Path, Format, Data, Fill], None]
    holds: str
    form: Form | None = None
    arrays: tuple[str, ...] = ()

    @property
    def into(self) -> tuple[str, ...]:
        """The suffixes of the files that may be written from one: a table becomes any table."""
        return _suffixes(lambda kind: kind.holds == "table") if self.holds == "table" else self.arrays


def _read_npy(path: Path, _: Format, __: Reading) -> Data:
    return Data(path, read_npy(path))


def _write_npy(path: Path, _: Format, data: Data, fill: Fill) -> None:
    mapped = create_npy(path, data.values.shape, working_dtype(data.values.dtype), _fortran(data.values))
    fill(mapped)
    mapped.flush()


def _read_npz(path: Path, _: Format, reading: Reading) -> Data:
    values, key = read_npz(path, reading.key)
    return Data(path, values, key=key)


def _write_npz(path: Path, _: Format, data: Data, fill: Fill) -> None:
    assert data.key is not None  # only an archive becomes one
    replace_in_npz(data.path, data.key, _filled(data, fill), path)


def _read_parquet(path: Path, _: Format, reading: Reading) -> Data:
    table = read_parquet(path, reading.chosen(header=True))
    return Data(path, table.values, table=table)


def _write_parquet(path: Path, _: Format, data: Data, fill: Fill) -> None:
    assert data.table is not None  # only a table becomes one
    write_parquet(path, data.table, _filled(data, fill))


def _read_text(path: Path, kind: Format, reading: Reading) -> Data:
    assert kind.form is not None
    table = read_text_table(path, kind.form, reading)
    return Data(path, table.values, table=table)


def _write_text(path: Path, kind: Format, data: Data, fill: Fill) -> None:
    table = data.table
    assert table is not None  # only a table becomes one
    assert kind.form is not None
    y = _filled(data, fill)
    form = kind.form
    if table.arrow is not None:
        table = replace(table, others=texts(table, data.path), gaps=gaps(table))
    elif table.form is not None and _usual_form(data.path).delimiter == form.delimiter:
        delimiter = form.delimiter if table.form.delimiter == BLANK else table.form.delimiter  # blanks lose empty cells
        form = replace(table.form, packed=form.packed, delimiter=delimiter)  # the same kind: as the table was written
    write_text_table(path, table, y, form)


def _usual_form(path: Path) -> Form:
    """Return the form of a text table's name; standard input is as a .csv."""
    kind = format_of(path)
    assert kind is not None
    assert kind.form is not None
    return kind.form


def _fortran(x: np.ndarray) -> bool:
    return x.flags.f_contiguous and not x.flags.c_contiguous


def _filled(data: Data, fill: Fill) -> np.ndarray:
    x = data.values
    y = np.empty(x.shape, working_dtype(x.dtype), order="F" if _fortran(x) else "C")
    fill(y)
    return y


FORMATS = {
    known.suffix: known
    for known in (
        Format(".npy", _read_npy, _write_npy, "array", arrays=(".npy",)),
        Format(".npz", _read_npz, _write_npz, "archive", arrays=(".npz", ".npy")),
        Format(".csv", _read_text, _write_text, "table", Form(",")),
        Format(".tsv", _read_text, _write_text, "table", Form("\t")),
        Format(".txt", _read_text, _write_text, "table", Form("\t")),
        Format(".csv.gz", _read_text, _write_text, "table", Form(",", packed=True)),
        Format(".tsv.gz", _read_text, _write_text, "table", Form("\t", packed=True)),
        Format(".parquet", _read_parquet, _write_parquet, "table"),
    )
}


def _suffixes(of: Callable[[Format], bool] = lambda _: True) -> tuple[str, ...]:
    return tuple(kind.suffix for kind in FORMATS.values() if of(kind))


def _or(suffixes: tuple[str, ...]) -> str:
    return " or ".join(", ".join(suffixes).rsplit(", ", 1))


#: For sentences: the files that can be read; the tables; the text tables, but for those that are another, compressed.
READABLE = ", ".join(FORMATS)
READABLE_OR = _or(_suffixes())
TABLES_OR = _or(_suffixes(lambda kind: kind.holds == "table"))
TEXTS = _or(_suffixes(lambda kind: kind.form is not None and not kind.form.packed))


def format_of(path: Path) -> Format | None:
    """Return the format that a file's name tells, if any; standard input is read as a .csv."""
    return FORMATS[".csv"] if path == STDIN else FORMATS.get(suffix_of(path))


def suffix_of(path: Path) -> str:
    """Return the suffix that tells a file's format, in small letters; ``.gz`` tells one with the suffix before it."""
    both = "".join(path.suffixes[-2:]).lower()
    return both if both in FORMATS else path.suffix.lower()


def wrong_suffix(path: Path) -> str:
    """Return what is wrong with a name of no known suffix, in words."""
    return f"{path} has {f'the extension {path.suffix}' if path.suffix else 'no extension'}"


def how_to_save(path: Path) -> str:
    """Return the advice for a file of another program, or nothing."""
    sheet = path.suffix.lower() in (".xlsx", ".xls", ".xlsm", ".ods", ".numbers")
    return " Save the sheet as CSV first." if sheet else ""


def check_reading(path: Path, kind: Format, reading: Reading) -> None:
    """Refuse what cannot be asked of a file of this format."""
    if reading.key is not None and kind.holds != "archive":
        raise Refused(f"--key chooses an array of an .npz, and {path} is not one. Leave --key out.")
    if reading.columns is not None and kind.holds != "table":
        raise Refused(
            f"--columns chooses columns of a table, and {path} is an array. Choose the channels' axis with --axis "
            "instead."
        )
    for name in ("header", "delimiter", "decimal"):
        if kind.form is None and getattr(reading, name) is not None:
            option = "--header and --no-header are" if name == "header" else f"--{name} is"
            raise Refused(f"{option} for {TEXTS.replace(' or ', ' and ')}, and {path} is not one. Leave it out.")
