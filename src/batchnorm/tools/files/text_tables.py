"""CSV and TSV: columns of numbers are found, a bad cell is named by line, column and text; written back in place."""

from __future__ import annotations

import csv
import itertools
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import numpy as np

from ..._left_out import LeftOut, refusal, remark
from ..text.language import Said
from .data import AS_FOUND, Reading
from .left_out import of_text
from .refused import Refused
from .table import Table, choose, other_columns_hint
from .text_form import (
    Form,
    declared,
    form_in_words,
    found_form,
    is_missing,
    may_be_thousands,
    number_advice,
    other_form,
    reader,
    rounded_integer,
)
from .text_source import cells_of_any_length, created, decoded, opened, said

Row = tuple[int, list[str]]  # the number of its last line in the file, and its cells

#: Lines looked at before a table is read, to find its form and its columns of numbers.
LOOKED_AT = 64

#: What a row of totals begins with.
_TOTALS = frozenset(
    (
        "total",
        "totals",
        "grand total",
        "subtotal",
        "sum",
        "gesamt",
        "summe",
        "insgesamt",
        "somme",
        "totaal",
        "合计",
        "总计",
    )
)


def read_text_table(path: Path, usual: Form, reading: Reading = AS_FOUND) -> Table:
    """Return the table in ``path``, whose form is the usual one but for what its first lines, or ``reading``, say.

    Columns that hold no numbers are left out, unless ``reading`` names them: then the cell is refused.
    """

    def read(encoding: str, marked: bool, text: Callable[[], IO[str]]) -> Table:
        return _Reader(path, replace(usual, encoding=encoding, marked=marked), reading, text).table()

    with opened(path) as file, cells_of_any_length():
        return decoded(file, path, read)


def write_text_table(path: Path, table: Table, values: np.ndarray, form: Form) -> None:
    """Write ``table`` with ``values`` in the chosen columns; numbers have the digits that give the same value back.

    Cells that were missing stay as they were.
    """
    columns: dict[int, Sequence[Any]] = dict(table.others)
    for j, i in enumerate(table.chosen):
        written = [form.text(v) for v in values[:, j]]
        for row, cell in table.gaps.get(i, {}).items():
            written[row] = cell
        columns[i] = written
    rows = zip(*(columns[i] for i in range(len(table.names))), strict=True)
    first = table.names[0] if table.header else columns[0][0]
    if str(first).startswith("\ufeff"):  # reading takes one mark away
        form = replace(form, marked=True)
    with created(path, form) as file:
        # A writer quotes the cells that hold a character of its line's end; before Python 3.11.9, no other CR or LF.
        writer = csv.writer(_EndedByLf(file), delimiter=form.delimiter, lineterminator="\r\n")
        try:
            if form.declared:
                file.write(f"sep={form.delimiter}\n")
            if table.header:
                writer.writerow(table.names)
            writer.writerows(rows)
        except csv.Error as error:
            raise Refused(
                f"{path}: a cell holds NUL, which Python 3.10 does not write ({error}). Write Parquet."
            ) from error


class _EndedByLf:
    """Takes rows that end in CR LF, and writes them ended by LF."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file

    def write(self, row: str) -> int:
        return self._file.write(row[:-2] + "\n")


class _NoNumber(Exception):
    """A cell that is neither a number nor missing, in a column that was taken for one of numbers."""

    def __init__(self, line: int, column: int, cells: list[str]) -> None:
        super().__init__(line)
        self.line, self.column, self.cells = line, column, cells


@dataclass
class _Columns:
    """What the rows under the names hold: numbers, the cells missing among them, and other columns as they came."""

    chosen: list[int]
    numbers: array[float] = field(default_factory=lambda: array("d"))
    gaps: dict[int, dict[int, str]] = field(default_factory=dict)
    first_gap: str | None = None
    others: dict[int, list[str]] = field(default_factory=dict)
    rounded: str | None = None
    last_line: int = 0

    def values(self) -> np.ndarray:
        return np.frombuffer(self.numbers, dtype=np.float64).reshape(-1, len(self.chosen))


class _Reader:
    """One text, read as often as it takes to know which columns hold numbers: mostly once."""

    def __init__(self, path: Path, usual: Form, reading: Reading, text: Callable[[], IO[str]]) -> None:
        self.path, self.source, self.reading, self.text = path, said(path), reading, text
        self.blanks: list[int] = []
        lines = [*itertools.islice(text(), LOOKED_AT + 1)]
        whole = len(lines) <= LOOKED_AT
        named = declared(lines[0]) if lines and reading.delimiter is None else None
        asked = replace(usual, delimiter=reading.delimiter or named or usual.delimiter, declared=named is not None)
        self.form = found_form(lines[named is not None :], whole, asked, reading.delimiter or named, reading.decimal)
        self.in_words = form_in_words(self.form, replace(asked, encoding="utf-8", decimal=reading.decimal or "."))

    def table(self) -> Table:
        looked_at = [*itertools.islice(self._rows(), LOOKED_AT)]
        if not looked_at:
            raise Refused(f"{self.source} is empty: it holds no row. A table needs at least one row of numbers.")
        (self.first_line, self.first), below = looked_at[0], [cells for _, cells in looked_at[1:]]
        numbers = [self.form.number(c) is not None for c in self.first]
        self.header = self._is_header(numbers, below) if self.reading.header is None else self.reading.header
        rows = (cells for _, cells in looked_at)
        self.point = self.reading.decimal is None and may_be_thousands(itertools.chain.from_iterable(rows), self.form)
        self.names = tuple(self.first if self.header else map(str, range(len(self.first))))
        if self.header and not below:
            advice = other_form(self.first, self.first, self.form) or "If its only line is data, add --no-header."
            raise Refused(f"{self.source} holds column names and no row. {advice}")
        asked = self.reading.chosen(self.header)
        if asked is None:
            columns, left = self._columns_of_numbers(looked_at[self.header :])
        else:
            columns, left = self._chosen(choose(asked, self.names, self.source)), []
        return self._made(columns, left, numbers)

    # Rows

    def _rows(self) -> Iterator[Row]:
        """Yield the rows that are not blank, from the first."""
        self.blanks, blanks = [], list[int]()
        text = self.text()
        skipped = 0
        if self.form.declared:
            next(text)
            skipped = 1
        rows = reader(text, self.form.delimiter, strict=True)
        while True:
            try:
                cells = next(rows, None)
            except csv.Error as error:
                raise Refused(
                    f"{self.source}, line {rows.line_num + skipped}: not a row of a table ({error}). Close every "
                    "quote, and save as text."
                ) from error
            if cells is None:
                return
            if len(cells) == 0 or (len(cells) == 1 and not cells[0].strip()):
                blanks.append(rows.line_num + skipped)
                continue
            self.blanks += blanks  # those at the end are no one's concern
            blanks.clear()
            yield rows.line_num + skipped, cells

    def _body(self) -> Iterator[Row]:
        """Yield the rows under the names, each as long as the first."""
        for line, cells in itertools.islice(self._rows(), int(self.header), None):
            if len(cells) != len(self.names):
                wanted = f"{len(self.names)} cell{'s' * (len(self.names) != 1)} as in line {self.first_line}"
                advice = other_form(cells, self.first, self.form) or self._uneven(line, len(cells))
                raise Refused(f"{self.source}, line {line}: expected {wanted}, found {len(cells)}. {advice}")
            yield line, cells

    def _uneven(self, line: int, length: int) -> str:
        """Return what to do about a row of another length than the first."""
        if self.header and 1 < len(self.names) == length - 1 and line == self.first_line + 1:
            return (
                "If the name of the first column is missing, as R's write.table leaves it out, begin line "
                f'{self.first_line} with "" and a separator.'
            )
        above = length > len(self.names)
        title = "remove lines above the table, such as a title, and " if above else ""
        return f"Every row must have the same number of cells: {title}quote a cell that holds the separator."

    def _is_header(self, numbers: Sequence[bool], below: Sequence[list[str]]) -> bool:
        """Whether the first row names columns: it holds a text, and one that does not come again below it."""
        if _counts(self.first):
            return True
        texts = [i for i, c in enumerate(self.first) if c.strip() and not numbers[i]]
        if not any(numbers):
            return bool(texts)
        again = [any(len(row) > i and row[i] == self.first[i] for row in below) for i in texts]
        return bool(texts) and not all(again)

    # Columns

    def _collected(self, chosen: Sequence[int]) -> _Columns:
        """Take the rows apart into the numbers of the columns ``chosen``, and the others as they came."""
        found = _Columns([*chosen], others={i: [] for i in range(len(self.names)) if i not in chosen})
        for row, (line, cells) in enumerate(self._body()):
            picked = [cells[i] for i in chosen]
            try:
                found.numbers.extend(self.form.numbers(picked))
            except ValueError:
                found.numbers.extend(self._with_gaps(found, row, line, cells))
            if found.rounded is None and (i := rounded_integer(picked)) is not None:
                found.rounded = Said("stands_at", where=self._where(line, chosen[i]), what=picked[i].strip())
            for i, column in found.others.items():
                column.append(cells[i])
            found.last_line = line
        return found

    def _with_gaps(self, found: _Columns, row: int, line: int, cells: list[str]) -> Iterator[float]:
        """Yield the numbers of a row that has cells without one: missing ones, or _NoNumber is raised."""
        for i in found.chosen:
            value = self.form.number(cells[i])
            if value is None:
                if not is_missing(cells[i]):
                    raise _NoNumber(line, i, cells)
                found.gaps.setdefault(i, {})[row] = cells[i]
                came = f": {_shown(cells[i])} stands for a missing value" if cells[i].strip() else " is empty"
                found.first_gap = found.first_gap or f"{self._where(line, i)}{came}"
            yield np.nan if value is None else value

    def _chosen(self, chosen: Sequence[int]) -> _Columns:
        """Return the columns that were named; a cell in them that is no number is refused."""
        try:
            return self._collected(chosen)
        except _NoNumber as bad:
            cell = bad.cells[bad.column]
            numeric = [i for i, c in enumerate(bad.cells) if self.form.number(c) is not None]
            advice = (
                other_form(bad.cells, self.first, self.form)
                or number_advice(cell, self.form)
                or other_columns_hint(numeric, len(bad.cells))
            )
            where = f"{self.source}, {self._where(bad.line, bad.column)}"
            raise Refused(f"{where}: {_shown(cell)} is not a number. {advice}") from None

    def _columns_of_numbers(self, looked_at: Sequence[Row]) -> tuple[_Columns, list[LeftOut]]:
        """Return the columns in which every cell is a number or missing, and the reasons to leave out the others."""
        bad: dict[int, tuple[int, str]] = {}
        index = [0] if self._numbers_rows([cells for _, cells in looked_at]) else []
        self._look_for_texts(looked_at, index, bad)
        while True:
            chosen = [i for i in range(len(self.names)) if i not in bad and i not in index]
            try:
                found = self._collected(chosen)
                break
            except _NoNumber:
                self._look_for_texts(self._body(), index, bad)  # all rows: the next try is the last
        left = [LeftOut(0, None, "the numbers of the rows, under no name")] if index else []
        rows = len(next(iter(found.others.values()))) if found.others else len(found.numbers) // max(1, len(chosen))
        empty = np.isnan(found.values()).all(axis=0) if chosen else ()
        for i in itertools.compress(chosen, empty):
            gaps = found.gaps.pop(i, {})
            found.others[i] = [gaps.get(row, "nan") for row in range(rows)]
        kept = [j for j, i in enumerate(chosen) if i not in found.others]
        if len(kept) < len(chosen):
            numbers = found.values()[:, kept]
            found.chosen, found.numbers = [chosen[j] for j in kept], array("d", numbers.ravel())
            if not found.gaps:
                found.first_gap = None
        left += [
            of_text(i, self._name(i), found.others[i], self.form, bad.get(i))
            for i in sorted(found.others)
            if i not in index
        ]
        if not found.chosen:
            advice = other_form(looked_at[0][1], self.first, self.form)
            raise Refused(f"{self.source}: {refusal(left, advice)}")
        return found, left

    def _look_for_texts(
        self, rows: Sequence[Row] | Iterator[Row], index: list[int], bad: dict[int, tuple[int, str]]
    ) -> None:
        """Add to ``bad`` the line and the text of the first cell of each column that is neither number nor missing."""
        candidates = [i for i in range(len(self.names)) if i not in bad and i not in index]
        for line, cells in rows:
            if len(cells) == len(self.names):
                for i in candidates:
                    if i not in bad and self.form.number(cells[i]) is None and not is_missing(cells[i]):
                        bad[i] = line, cells[i]

    def _numbers_rows(self, cells: Sequence[list[str]]) -> bool:
        """Whether the first column has no name and counts, as R and pandas write the numbers of rows."""
        if not self.header or self.names[0].strip() or len(self.names) < 2 or not cells:
            return False
        start = cells[0][0].strip()
        return start in ("0", "1") and all(row[0].strip() == str(int(start) + i) for i, row in enumerate(cells))

    def _may_number_rows(self, found: _Columns) -> str | None:
        """Say why the first column may not be data, or None."""
        name = self.names[0].strip()
        if not name:
            return Said("no_name")
        first = found.values()[:, found.chosen.index(0)]
        counts = len(first) > 2 and first[0] in (0, 1) and bool((np.diff(first) == 1).all())
        return Said("counts_rows", name=repr(name)) if counts and len(self.names) > 1 else None

    # Words

    def _made(self, found: _Columns, left: Sequence[LeftOut], numbers: Sequence[bool]) -> Table:
        remarks = [
            *([self.in_words] if self.in_words else []),
            *self._about_the_header(numbers),
            *self._about_blanks(),
            *([remark(left)] if left else []),
            *([Said("point", cell=_shown(self.point))] if self.point else []),
            *self._about_totals(found),
        ]
        if 0 in found.chosen and self.header and (why := self._may_number_rows(found)):
            remarks.append(Said("numbers_rows", why=why))
        return Table(
            self.names, self.header, tuple(found.chosen), found.values(), dict(found.others), tuple(remarks),
            rounded=found.rounded, gaps=found.gaps, first_gap=found.first_gap, form=self.form,
        )  # fmt: skip

    def _about_the_header(self, numbers: Sequence[bool]) -> list[str]:
        if self.reading.header is not None or not any(numbers) or _counts(self.first):
            return []
        if not self.header:
            text = any(c.strip() and not n for c, n in zip(self.first, numbers, strict=True))
            return [Said("taken_as_data", line=self.first_line)] * text
        n = sum(numbers)
        count = Said("number_cells_one") if n == 1 else Said("number_cells_many", n=n)
        return [Said("taken_as_names", line=self.first_line, count=count)]

    def _about_blanks(self) -> list[str]:
        if not self.blanks:
            return []
        key = "blank_one" if len(self.blanks) == 1 else "blank_many"
        return [Said(key, n=len(self.blanks), line=self.blanks[0])]

    def _about_totals(self, found: _Columns) -> list[str]:
        values = found.values()
        word = next((c[-1].strip() for _, c in sorted(found.others.items()) if c[-1].strip()), "")
        named = word.lower().rstrip(":") in _TOTALS
        if len(values) < 4 and not named:
            return []
        with np.errstate(invalid="ignore"):  # inf - inf
            above, last = np.nansum(values[:-1], axis=0), values[-1]
            steps = np.diff(values, axis=0)
        there = ~np.isnan(last) & ~((steps == 1) | np.isnan(steps)).all(axis=0)  # 0, 1, 2, 3 counts rows
        with np.errstate(invalid="ignore"):
            near = np.abs(last - above) <= 1e-6 * np.abs(above)
        sums = bool(there.any() and near[there].all() and above[there].any())
        if not named and not sums:
            return []
        what = Said("total_sum") if sums else Said("total_word", word=_shown(word))
        return [Said("total", line=found.last_line, what=what)]

    def _name(self, column: int) -> str | None:
        name = self.names[column].strip()
        return name if self.header and name else None

    def _where(self, line: int, column: int) -> str:
        name = self._name(column)
        key = "column_number" if name is None else "column_both"
        return Said("line_and_column", line=line, column=Said(key, index=column, name=repr(name)))


def _counts(cells: Sequence[str]) -> bool:
    """Whether a row is a blank and 0, 1, …: what pandas writes above numbered rows and columns."""
    return not cells[0].strip() and list(cells[1:]) == [str(i) for i in range(len(cells) - 1)]


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:39] + "…")
