"""How a text file writes its table: what stands between cells, before decimals, and in front of it all."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ..._blocks import MOST_EXACT

#: Separators that a table may have been written with, in words, and as an option.
SEPARATORS = {";": ("semicolons", '";"'), "\t": ("tabs", "tab"), "|": ("bars", '"|"'), ",": ("commas", '","')}

#: What programs write for a value that they do not have.
MISSING = frozenset(("", "na", "n/a", "#n/a", "<na>", "null", "none", "nil", "nat", "-", "--", "?", "."))

_COMMA_NUMBER = re.compile(r"\s*[+-]?\d+,\d+([eE][+-]?\d+)?\s*")
_GROUPED_NUMBER = re.compile(r"\s*[+-]?\d{1,3}([ ,.'’\u00a0\u202f])\d{3}(\1\d{3})*([.,]\d+)?\s*")


@dataclass(frozen=True)
class Form:
    """The delimiter of cells, the sign before decimals, whether the text begins with a byte order mark, and whether it
    is compressed by gzip.
    """

    delimiter: str
    decimal: str = "."
    marked: bool = False
    packed: bool = False

    def numbers(self, cells: Sequence[str]) -> list[float]:
        """Return the numbers that cells hold, or raise ValueError."""
        together = "".join(cells)
        if "_" in together or (self.decimal == "," and "." in together):
            raise ValueError  # float() reads 1_000, which no other program writes; a point separates thousands
        if self.decimal == ",":
            cells = [c.replace(",", ".") for c in cells]
        return [*map(float, cells)]

    def number(self, cell: str) -> float | None:
        """Return the number that a cell holds, or None."""
        try:
            return self.numbers([cell])[0]
        except ValueError:
            return None

    def text(self, value: object) -> str:
        """Return the shortest text that gives the same bits back: NumPy's str of a scalar."""
        return str(value) if self.decimal == "." else str(value).replace(".", ",")


def rounded_integer(cells: Sequence[str]) -> int | None:
    """Return the place of the first integer that float64 does not hold exactly, or None."""
    for i, cell in enumerate(cells):
        if len(cell) > 15 and "." not in cell and "," not in cell:  # most numbers of many digits have decimals
            digits = cell.strip().lstrip("+-")
            if digits.isdecimal() and int(digits) > MOST_EXACT:
                return i
    return None


def other_form(cells: Sequence[str], first: Sequence[str], form: Form) -> str | None:
    """Return the advice to read with other options, where a row and the file's first row agree that they fit better."""
    row, heading = (form.delimiter.join(c) for c in (cells, first))
    if form.delimiter != "," and len(cells) > 1:
        return None  # only decimal commas cut numbers up; any other separator found its cells
    for separator, (words, option) in SEPARATORS.items():
        count = row.count(separator)
        if separator == form.delimiter or count == 0 or count != heading.count(separator):
            continue
        parts = row.split(separator)
        comma = form.decimal == "," or (separator != "," and any(map(_COMMA_NUMBER.fullmatch, parts)))
        if any(Form(separator, "," if comma else ".").number(p) is not None for p in parts):
            decimal, too = (' --decimal ","', ", and decimals by a comma") if comma else ("", "")
            return f"The cells seem to be separated by {words}{too}: add --delimiter {option}{decimal}."
    return None


def cut_up(first: Sequence[str], form: Form) -> bool:
    """Whether a row of cells between commas is one of numbers with decimal commas, between semicolons."""
    parts = form.delimiter.join(first).split(";")
    numbers = Form(";", ",")
    return (
        (form.delimiter, form.decimal) == (",", ".")
        and len(parts) > 1
        and any("," in p for p in parts)
        and all(numbers.number(p) is not None for p in parts)
    )


def number_advice(cell: str, form: Form) -> str | None:
    """Return what to do about a cell that is a number in another form, or None."""
    if form.decimal == "," and "." in cell:
        return 'With --decimal "," a point is no part of a number: remove it where it separates thousands.'
    if form.decimal == "." and _COMMA_NUMBER.fullmatch(cell):
        return 'If its comma stands before decimals, add --decimal ","; if it separates thousands, remove it.'
    if _GROUPED_NUMBER.fullmatch(cell):
        return "Remove the separators of thousands."
    return None
