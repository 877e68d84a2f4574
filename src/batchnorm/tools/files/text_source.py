"""The bytes of a text table and their encoding: from a file, compressed or not, or from standard input."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypeVar

from .refused import Refused
from .text_form import Form

#: What names standard input instead of a file.
STDIN = Path("-")

_MARKS = (
    ("utf-8", codecs.BOM_UTF8),
    ("utf-16-le", codecs.BOM_UTF16_LE),
    ("utf-16-be", codecs.BOM_UTF16_BE),
)
_OTHERS = (
    (b"PK\3\4", "an Excel workbook, or another archive"),
    (b"PAR1", "a Parquet file"),
    (b"%PDF", "a PDF"),
    (b"\xd0\xcf\x11\xe0", "an old Excel workbook"),
)

_T = TypeVar("_T")


def said(path: Path) -> str:
    """Return how a sentence calls a file."""
    return "standard input" if path == STDIN else str(path)


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """Open a table's bytes, which can be read again from the beginning; they say whether they are compressed.

    What is damaged in a compressed one, found now or later, is refused in one sentence.
    """
    with open(path, "rb") if path != STDIN else io.BytesIO(sys.stdin.buffer.read()) as file:
        seekable = file if file.seekable() else io.BytesIO(file.read())
        if _start(seekable, 2) != b"\x1f\x8b":
            yield seekable
            return
        try:
            with gzip.GzipFile(fileobj=seekable) as unpacked:
                yield unpacked
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise Refused(f"{said(path)} is not a whole gzip file ({error}). Compress the table again.") from error


@contextmanager
def created(path: Path, form: Form) -> Iterator[IO[str]]:
    """Open a new table's text; the same table gives the same bytes, without a name or a time in them."""
    with open(path, "wb") as file:
        packed: Any = gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) if form.packed else file
        with io.TextIOWrapper(packed, form.encoding, newline="") as text:
            if form.marked:
                text.write("\ufeff")
            yield text


def decoded(file: IO[bytes], path: Path, read: Callable[[str, bool, Callable[[], IO[str]]], _T]) -> _T:
    """Return what ``read`` makes of the text, given its encoding, its mark, and how to read it from the beginning.

    Text is in UTF-8 unless its first bytes say UTF-16; where it turns out not to be, in Windows-1252 or Latin-1.
    """
    start = _start(file, 4)
    if not start:
        raise Refused(f"{said(path)} is empty (0 bytes). Write it again.")
    for mark, what in _OTHERS:
        if start.startswith(mark):
            raise Refused(f"{said(path)} is {what}, not text. Save the table as text (CSV) first.")
    encodings, skipped = _encodings(start)
    for encoding in encodings:

        def text(encoding: str = encoding) -> IO[str]:
            file.seek(skipped)
            kept: Any = _Kept(file)
            return io.TextIOWrapper(kept, encoding=encoding, newline="")

        try:
            return read(encoding, skipped > 0, text)
        except UnicodeDecodeError as error:
            if encoding == encodings[-1]:
                raise Refused(
                    f"{said(path)} is not text in {encoding.upper()}, as its first bytes say ({error.reason}). Save "
                    "it again, as UTF-8."
                ) from error
    raise AssertionError  # the last encoding returned or was refused


class _Kept(io.BufferedIOBase):
    """Bytes of a file that a text over them does not close."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def read1(self, size: int = -1) -> bytes:
        return self._file.read(size)

    def read(self, size: int | None = -1) -> bytes:
        return self._file.read(-1 if size is None else size)

    def close(self) -> None:
        """Leave the file open."""


def _start(file: IO[bytes], size: int) -> bytes:
    start = file.read(size)
    file.seek(0)
    return start


def _encodings(start: bytes) -> tuple[tuple[str, ...], int]:
    """Return the encodings to try, and the length of the mark in front."""
    for encoding, mark in _MARKS:
        if start.startswith(mark):
            return (encoding,), len(mark)
    if len(start) == 4 and start[1] == start[3] == 0 and start[0] and start[2]:
        return ("utf-16-le",), 0
    if len(start) == 4 and start[0] == start[2] == 0 and start[1] and start[3]:
        return ("utf-16-be",), 0
    return ("utf-8", "cp1252", "latin-1"), 0


@contextmanager
def cells_of_any_length() -> Iterator[None]:
    """Lift the limit of 131072 characters a cell, which a document in a column of texts exceeds."""
    before = csv.field_size_limit(2**31 - 1)
    try:
        yield
    finally:
        csv.field_size_limit(before)
