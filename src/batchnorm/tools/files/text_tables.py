"""CSV and TSV: a bad cell is named by line, column and text; tables are written back with the columns in place."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import zlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from .refused import Refused
from .table import Table, choose, other_columns_hint
from .text_form import MISSING, Form, cut_up, number_advice, other_form, rounded_integer

Row = tuple[int, list[str]]  # the number of its last line in the file, and its cells


def read_text_table(path: Path, form: Form, columns: str | None = None, header: bool | None = None) -> Table:
    """Return the table in ``path``.

    ``header`` None decides by the first row: data if every cell of it is a number or blank, else names.
    """
    with _open(path, form) as file, _cells_of_any_length():
        form = replace(form, marked=file.peek(3).startswith(codecs.BOM_UTF8))
        text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
        try:
            return _read(_rows(text, form, path), path, form, columns, header)
        except UnicodeDecodeError as error:
            raise Refused(f"{path} is not text in UTF-8{_not_utf8(path, form)}. Save the table as UTF-8.") from error


def write_text_table(path: Path, table: Table, values: np.ndarray, form: Form) -> None:
    """Write ``table`` with ``values`` in the chosen columns; numbers have the digits that give the same value back."""
    columns: dict[int, Sequence[Any]] = dict(table.others)
    columns |= {column: [form.text(v) for v in values[:, i]] for i, column in enumerate(table.chosen)}
    rows = zip(*(columns[i] for i in range(len(table.names))), strict=True)
    first = table.names[0] if table.header else columns[0][0]
    marked = form.marked or str(first).startswith("\ufeff")  # reading takes one mark away
    encoding = "utf-8-sig" if marked else "utf-8"
    with _create(path, form) as binary, io.TextIOWrapper(binary, encoding, newline="") as file:
        # A writer quotes the cells that hold a character of its line's end; before Python 3.11.9, no other CR or LF.
        writer = csv.writer(_EndedByLf(file), delimiter=form.delimiter, lineterminator="\r\n")
        try:
            if table.header:
                writer.writerow(table.names)
            writer.writerows(rows)
        except csv.Error as error:
            raise Refused(
                f"{path}: a cell holds NUL, which Python 3.10 does not write ({error}). Write Parquet."
            ) from error


@contextmanager
def _open(path: Path, form: Form) -> Iterator[Any]:
    """Open a table's bytes; what is damaged in a compressed one, found now or later, is refused in one sentence."""
    with open(path, "rb") as file:
        if not form.packed:
            yield file
            return
        try:
            with gzip.GzipFile(fileobj=file) as unpacked, io.BufferedReader(unpacked) as buffered:
                yield buffered
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise Refused(f"{path} is not a whole gzip file ({error}). Compress the table again.") from error


@contextmanager
def _create(path: Path, form: Form) -> Iterator[Any]:
    """Open a new table's bytes; the same table gives the same bytes, without a name or a time in them."""
    with open(path, "wb") as file:
        if not form.packed:
            yield file
            return
        with gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as packed:
            yield packed


class _EndedByLf:
    """Takes rows that end in CR LF, and writes them ended by LF."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, row: str) -> int:
        return self._file.write(row[:-2] + "\n")


@contextmanager
def _cells_of_any_length() -> Iterator[None]:
    """Lift the limit of 131072 characters a cell, which a document in a column of texts exceeds."""
    before = csv.field_size_limit(2**31 - 1)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _not_utf8(path: Path, form: Form) -> str:
    """Say where the first byte stands that is not UTF-8, line by line: no letter of UTF-8 holds a line's end."""
    if not path.is_file():  # what a pipe held is gone
        return ""
    with _open(path, form) as file:
        for number, line in enumerate(file, 1):
            if number == 1 and line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                return " but in UTF-16"
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                return f" (line {number} holds the byte 0x{line[error.start]:02x})"
    return ""


def _rows(file: Iterable[str], form: Form, path: Path) -> Iterator[Row]:
    """Yield the rows that are not blank; a blank line is fine at the end only: elsewhere it may be a missing value."""
    reader = csv.reader(file, delimiter=form.delimiter, strict=True)
    blank = None
    while True:
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise Refused(
                f"{path}, line {reader.line_num}: not a row of a table ({error}). Close every quote, and save as text."
            ) from error
        if cells is None:
            return
        if len(cells) == 0 or (len(cells) == 1 and not cells[0].strip()):
            blank = blank or reader.line_num
            continue
        if blank:
            raise Refused(
                f"{path}, line {blank} is blank, but rows follow. Remove the line, or fill in what is missing."
            )
        yield reader.line_num, cells


def _read(rows: Iterator[Row], path: Path, form: Form, columns: str | None, header: bool | None) -> Table:
    first = next(rows, None)
    if first is None:
        raise Refused(f"{path} is empty: it holds no row. A table needs at least one row of numbers.")
    line, cells = first
    if cut_up(cells, form):
        raise Refused(
            f"{path}, line {line}: {_shown(form.delimiter.join(cells))} would be cut up at its decimal commas. "
            f"{other_form(cells, cells, form)}"
        )
    numbers = [form.number(c) is not None for c in cells]
    has_header = _is_header(cells, numbers) if header is None else header
    names = tuple(cells if has_header else map(str, range(len(cells))))
    chosen = choose(columns, names, str(path))
    body = _Body(path, form, first, names, chosen)
    values, others = body.columns(rows if has_header else _chain(first, rows))
    if len(values) == 0:
        advice = other_form(cells, cells, form) or "If its only line is data, add --no-header."
        raise Refused(f"{path} holds column names and no row. {advice}")
    remarks = _remarks(header, names, numbers, 0 in chosen) if has_header else ()
    return Table(names, has_header, chosen, values, others, remarks, rounded=body.rounded, form=form)


def _is_header(cells: Sequence[str], numbers: Sequence[bool]) -> bool:
    """Whether a first row names columns: a row of numbers and blanks does not."""
    return _counts(cells) or not all(n or not c.strip() for c, n in zip(cells, numbers, strict=True))


def _counts(cells: Sequence[str]) -> bool:
    """Whether a row is a blank and 0, 1, …: what pandas writes above numbered rows and columns."""
    return not cells[0].strip() and list(cells[1:]) == [str(i) for i in range(len(cells) - 1)]


def _remarks(header: bool | None, names: Sequence[str], numbers: Sequence[bool], first: bool) -> tuple[str, ...]:
    remarks = []
    if header is None and any(numbers) and not _counts(names):
        count = "one cell is a number" if sum(numbers) == 1 else f"{sum(numbers)} cells are numbers"
        remarks.append(f"line 1 was taken as column names, although {count}; if it is data, add --no-header")
    if first and not names[0].strip():
        remarks.append("column 0 has no name; if it numbers the rows, leave it out with --columns")
    return tuple(remarks)


def _chain(first: Row, rows: Iterator[Row]) -> Iterator[Row]:
    yield first
    yield from rows


class _Body:
    """The rows under the names, taken apart into numbers and other columns."""

    def __init__(self, path: Path, form: Form, first: Row, names: tuple[str, ...], chosen: tuple[int, ...]) -> None:
        self.path, self.form, self.names, self.chosen = path, form, names, chosen
        self.first_line, self.first = first
        self.rounded: str | None = None

    def columns(self, rows: Iterator[Row]) -> tuple[np.ndarray, dict[int, Sequence[str]]]:
        """Return the chosen columns as numbers, the others as they came."""
        numbers = array("d")
        texts: dict[int, list[str]] = {i: [] for i in range(len(self.names)) if i not in self.chosen}
        for line, cells in rows:
            if len(cells) != len(self.names):
                raise self._bad_row(line, cells)
            picked = [cells[i] for i in self.chosen]
            try:
                numbers.extend(self.form.numbers(picked))
            except ValueError:
                raise self._bad_cell(line, cells) from None
            if self.rounded is None and (i := rounded_integer(picked)) is not None:
                self.rounded = f"{self._where(line, self.chosen[i])}: {picked[i].strip()}"
            for i, column in texts.items():
                column.append(cells[i])
        return np.frombuffer(numbers, dtype=np.float64).reshape(-1, len(self.chosen)), dict(texts)

    def _where(self, line: int, column: int) -> str:
        name = self.names[column]
        return f"line {line}, column {column}{f' {name.strip()!r}' if name != str(column) else ''}"

    def _bad_row(self, line: int, cells: list[str]) -> Refused:
        advice = other_form(cells, self.first, self.form)
        return Refused(
            f"{self.path}, line {line}: expected {len(self.names)} cells as in line {self.first_line}, found "
            f"{len(cells)}. "
            + (advice or "Every row must have the same number of cells; quote a cell that holds the separator.")
        )

    def _bad_cell(self, line: int, cells: list[str]) -> Refused:
        column = next(i for i in self.chosen if self.form.number(cells[i]) is None)
        where, cell = f"{self.path}, {self._where(line, column)}", cells[column]
        if cell.strip().lower() in MISSING:
            came = f": {_shown(cell)} stands for a missing value" if cell.strip() else " is empty"
            return Refused(
                f"{where}{came}. A mean has no place for a missing value: fill it in, remove the row, or leave the "
                "column out with --columns."
            )
        numeric = [i for i, c in enumerate(cells) if self.form.number(c) is not None]
        advice = (
            other_form(cells, self.first, self.form)
            or number_advice(cell, self.form)
            or other_columns_hint(numeric, len(cells))
        )
        return Refused(f"{where}: {_shown(cell)} is not a number. {advice}")


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:39] + "…")
