"""How a text file writes its table: what stands between cells, before decimals, and in front of it all."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..._foreign import MOST_EXACT
from ..text.language import Said

#: Separators that a table may have been written with, in words, and as an option.
SEPARATORS = {";": ("semicolons", '";"'), "\t": ("tabs", "tab"), "|": ("bars", '"|"'), ",": ("commas", '","')}
BLANK = " "

#: What programs write for a value that they do not have.
MISSING = frozenset(("", "na", "n/a", "#n/a", "<na>", "null", "none", "nil", "nat", "-", "--", "?", "."))

#: Encodings in words, where they are not UTF-8.
ENCODINGS = {"utf-16-le": "UTF-16", "utf-16-be": "UTF-16", "cp1252": "Windows-1252", "latin-1": "Latin-1"}

_MINUS = "\u2212"  # which typeset tables have in the place of a hyphen
COMMA_NUMBER = re.compile(r"\s*[+\u2212-]?\d+,\d+([eE][+-]?\d+)?\s*")
GROUPED_NUMBER = re.compile(r"\s*[+-]?\d{1,3}([ ,.'’\u00a0\u202f])\d{3}(\1\d{3})*([.,]\d+)?\s*")
_POINT_NUMBER = re.compile(r"\s*[+\u2212-]?\d*\.\d+([eE][+-]?\d+)?\s*")
_GROUPED_BY_POINTS = re.compile(r"\s*[+-]?\d{1,3}(\.\d{3})+\s*")
_GROUPED_BY_A_COMMA = re.compile(r"\s*[+-]?[1-9]\d{0,2},\d{3}\s*")
_DECLARED = re.compile(r"\"?sep=(.)\"?\s*", re.IGNORECASE)


@dataclass(frozen=True)
class Form:
    """The delimiter of cells, the sign before decimals, the encoding, and what stands around the table.

    ``marked``: the text begins with a byte order mark. ``declared``: its first line names the delimiter, as Excel has
    it. ``packed``: it is compressed by gzip.
    """

    delimiter: str
    decimal: str = "."
    marked: bool = False
    packed: bool = False
    encoding: str = "utf-8"
    declared: bool = False

    def numbers(self, cells: Sequence[str]) -> list[float]:
        """Return the numbers that cells hold, or raise ValueError."""
        together = "".join(cells)
        if "_" in together or (self.decimal == "," and "." in together):
            raise ValueError  # float() reads 1_000, which no other program writes; a point separates thousands
        if _MINUS in together:
            cells = [c.replace(_MINUS, "-") for c in cells]
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


def is_missing(cell: str) -> bool:
    """Whether a cell stands for a value that is not there."""
    return cell.strip().lower() in MISSING


def rounded_integer(cells: Sequence[str]) -> int | None:
    """Return the place of the first integer that float64 does not hold exactly, or None."""
    for i, cell in enumerate(cells):
        if len(cell) > 15 and "." not in cell and "," not in cell:  # most numbers of many digits have decimals
            digits = cell.strip().lstrip("+-")
            if digits.isdecimal() and int(digits) > MOST_EXACT:
                return i
    return None


# What form a text has


def declared(line: str) -> str | None:
    """Return the delimiter that a first line such as ``sep=;`` names, or None."""
    found = _DECLARED.fullmatch(line)
    return found[1] if found else None


def found_form(lines: Sequence[str], whole: bool, usual: Form, delimiter: str | None, decimal: str | None) -> Form:
    """Return the form of a text that begins with ``lines``; what was asked for is not looked for.

    The usual delimiter stays unless the lines do not agree on it, or it is a comma that cuts up decimals; then it is
    another one that gives every line the same number of cells, two or more.
    """
    delimiter = delimiter or _found_delimiter(lines, whole, usual.delimiter, decimal)
    rows = _rows(lines, whole, delimiter)
    cells = [c for row in rows for c in row]
    return replace(usual, delimiter=delimiter, decimal=decimal or _found_decimal(cells, delimiter))


def reader(lines: Iterable[str], delimiter: str, strict: bool = False) -> Any:
    """Return csv's reader of cells; of blanks, and of tabs among them, several are one separator."""
    blank = delimiter == BLANK
    if blank:
        lines = (line.replace("\t", BLANK).strip(" \r\n") + "\n" for line in lines)
    return csv.reader(lines, delimiter=delimiter, strict=strict, skipinitialspace=blank)


def _rows(lines: Sequence[str], whole: bool, delimiter: str) -> list[list[str]]:
    try:
        rows = [row for row in reader(lines, delimiter) if len(row) > 1 or any(c.strip() for c in row)]
    except csv.Error:
        return []
    return rows if whole else rows[:-1]  # the last one may go on


def _found_delimiter(lines: Sequence[str], whole: bool, usual: str, decimal: str | None) -> str:
    shares: dict[str, float] = {}
    others = (s for s in (*SEPARATORS, BLANK) if s != decimal)
    for separator in (usual, *others):
        rows = _rows(lines, whole, separator)
        if len({len(row) for row in rows}) == 1 and len(rows[0]) > 1:
            form = Form(separator, _found_decimal([c for row in rows for c in row], separator))
            filled = [c for row in (rows[1:] or rows) for c in row if not is_missing(c)]
            shares[separator] = sum(form.number(c) is not None for c in filled) / max(1, len(filled))
            if form.decimal == "," and separator == ";" and shares[separator] == 1 and usual == ",":
                return separator  # commas would cut up its numbers
    if shares.get(BLANK, 1) < 0.5:
        del shares[BLANK]  # words
    return usual if usual in shares or not shares else max(shares, key=lambda s: shares[s])


def _found_decimal(cells: Sequence[str], delimiter: str) -> str:
    commas = [c for c in cells if COMMA_NUMBER.fullmatch(c)]
    points = [c for c in cells if _POINT_NUMBER.fullmatch(c) and not _GROUPED_BY_POINTS.fullmatch(c)]
    sure = delimiter == ";" or not all(map(_GROUPED_BY_A_COMMA.fullmatch, commas))  # 1,234 may be a thousand
    return "," if commas and not points and sure else "."


def may_be_thousands(cells: Iterable[str], form: Form) -> str | None:
    """Return a cell whose point, read as that of decimals, may separate thousands, or None.

    So may all points between semicolons, which are for decimal commas, where three digits follow each.
    """
    if form.delimiter != ";" or form.decimal == ",":
        return None
    points = [c for c in cells if "." in c and form.number(c) is not None]
    sure = any(c.strip().lstrip("+-").startswith("0") or not _GROUPED_BY_POINTS.fullmatch(c) for c in points)
    return None if sure or not points else points[0]


def form_in_words(form: Form, usual: Form) -> str | None:
    """Say what of a form had to be found out, or None where it is the usual one."""
    said = []
    if form.encoding != usual.encoding:
        said.append(Said("encoding", name=ENCODINGS[form.encoding]))
    if form.delimiter != usual.delimiter:
        known = form.delimiter in (*SEPARATORS, BLANK)
        name = Said(f"separator_{form.delimiter}") if known else repr(form.delimiter)
        said.append(Said("separated", name=name))
    if form.decimal != usual.decimal:
        said.append(Said(f"decimal_{form.decimal}"))
    if not said:
        return None
    return Said(f"clauses_{('one', 'two', 'three')[len(said) - 1]}", **dict(zip("abc", said, strict=False)))


# Advice about what does not fit


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
        comma = form.decimal == "," or (separator != "," and any(map(COMMA_NUMBER.fullmatch, parts)))
        if any(Form(separator, "," if comma else ".").number(p) is not None for p in parts):
            decimal, too = (' --decimal ","', ", and decimals by a comma") if comma else ("", "")
            return f"The cells seem to be separated by {words}{too}: add --delimiter {option}{decimal}."
    return None


def number_advice(cell: str, form: Form) -> str | None:
    """Return what to do about a cell that is a number in another form, or None."""
    if form.decimal == "," and "." in cell:
        return 'With --decimal "," a point is no part of a number: remove it where it separates thousands.'
    if form.decimal == "." and COMMA_NUMBER.fullmatch(cell):
        return 'If its comma stands before decimals, add --decimal ","; if it separates thousands, remove it.'
    if GROUPED_NUMBER.fullmatch(cell):
        return "Remove the separators of thousands."
    return None
