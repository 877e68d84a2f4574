"""CSV and TSV: a bad cell is named by line, column and text; tables are written back with the columns in place."""

from __future__ import annotations

import csv
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .refused import Refused
from .table import Table, choose, other_columns_hint

Row = tuple[int, list[str]]  # the number of its last line in the file, and its cells


def read_text_table(path: Path, delimiter: str, columns: str | None = None, header: bool | None = None) -> Table:
    """Return the table in ``path``.

    ``header`` None decides by the first row: data if every cell of it is a number, else names.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            return _read(_rows(file, delimiter, path), path, delimiter, columns, header)
    except UnicodeDecodeError as error:
        raise Refused(
            f"{path} is not text in UTF-8 (byte {error.start} cannot be read). Save the table as UTF-8."
        ) from error


def write_text_table(path: Path, table: Table, values: np.ndarray, delimiter: str) -> None:
    """Write ``table`` with ``values`` in the chosen columns; numbers have the digits that give the same value back."""
    columns: dict[int, Iterable[Any]] = dict(table.others)
    columns |= {column: _texts(values[:, i]) for i, column in enumerate(table.chosen)}
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter, lineterminator="\n")
        if table.header:
            writer.writerow(table.names)
        writer.writerows(zip(*(columns[i] for i in range(len(table.names))), strict=True))


def _texts(column: np.ndarray) -> list[str]:
    return [str(v) for v in column]  # NumPy's str of a scalar is the shortest text that gives the same bits back


def _rows(file: Iterable[str], delimiter: str, path: Path) -> Iterator[Row]:
    """Yield the rows that are not blank; a blank line is fine at the end only: elsewhere it may be a missing value."""
    reader = csv.reader(file, delimiter=delimiter, strict=True)
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


def _read(rows: Iterator[Row], path: Path, delimiter: str, columns: str | None, header: bool | None) -> Table:
    first = next(rows, None)
    if first is None:
        raise Refused(f"{path} is empty: it holds no row. A table needs at least one row of numbers.")
    line, cells = first
    numbers = [_number(c) is not None for c in cells]
    has_header = not all(numbers) if header is None else header
    names = tuple(c.strip() for c in cells) if has_header else tuple(map(str, range(len(cells))))
    chosen = choose(columns, names, str(path))
    body = rows if has_header else _chain(first, rows)
    values, others = _columns(body, line, names, chosen, path, delimiter)
    if len(values) == 0:
        raise Refused(f"{path} holds column names and no row. If its only line is data, add --no-header.")
    return Table(names, has_header, chosen, values, others, _remarks(header, has_header, numbers))


def _remarks(header: bool | None, has_header: bool, numbers: Sequence[bool]) -> tuple[str, ...]:
    if header is not None or not has_header or not any(numbers):
        return ()
    count = "one cell is a number" if sum(numbers) == 1 else f"{sum(numbers)} cells are numbers"
    return (f"line 1 was taken as column names, although {count}; if it is data, add --no-header",)


def _chain(first: Row, rows: Iterator[Row]) -> Iterator[Row]:
    yield first
    yield from rows


def _columns(
    rows: Iterator[Row], first_line: int, names: tuple[str, ...], chosen: tuple[int, ...], path: Path, delimiter: str
) -> tuple[np.ndarray, dict[int, Sequence[str]]]:
    numbers = array("d")
    texts: dict[int, list[str]] = {i: [] for i in range(len(names)) if i not in chosen}
    for line, cells in rows:
        if len(cells) != len(names):
            raise Refused(
                f"{path}, line {line}: expected {len(names)} cells as in line {first_line}, found {len(cells)}. "
                "Every row must have "
                "the same number of cells; quote a cell that holds the separator."
            )
        picked = [cells[i] for i in chosen]
        try:
            if "_" in "".join(picked):  # float() reads 1_000, which no other program writes for a number
                raise ValueError
            numbers.extend(map(float, picked))
        except ValueError:
            raise _bad_cell(path, line, cells, names, chosen, delimiter) from None
        for i, column in texts.items():
            column.append(cells[i])
    return np.frombuffer(numbers, dtype=np.float64).reshape(-1, len(chosen)), dict(texts)


def _number(text: str) -> float | None:
    try:
        return None if "_" in text else float(text)
    except ValueError:
        return None


def _bad_cell(
    path: Path, line: int, cells: list[str], names: tuple[str, ...], chosen: tuple[int, ...], delimiter: str
) -> Refused:
    column = next(i for i in chosen if _number(cells[i]) is None)
    name = f" {names[column]!r}" if names[column] != str(column) else ""
    where = f"{path}, line {line}, column {column}{name}"
    if not cells[column].strip():
        return Refused(
            f"{where} is empty. A mean has no place for a missing value: fill it in, remove the row, or leave the "
            "column out with --columns."
        )
    if len(cells) == 1 and ";" in cells[0] and delimiter == ",":
        return Refused(
            f"{where}: {_shown(cells[0])} is not a number. The cells seem to be separated by semicolons; save "
            "them with commas."
        )
    numeric = [i for i, c in enumerate(cells) if _number(c) is not None]
    return Refused(f"{where}: {_shown(cells[column])} is not a number. {other_columns_hint(numeric, len(cells))}")


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:39] + "…")
