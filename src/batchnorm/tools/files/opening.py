"""A file opened by its name: what cannot be read, and what cannot be asked of it, is refused first."""

from __future__ import annotations

from pathlib import Path

from .data import AS_FOUND, Data, Reading
from .formats import READABLE, Format, check_reading, format_of, how_to_save, wrong_suffix
from .refused import Refused
from .text_source import STDIN


def open_data(path: str | Path, reading: Reading = AS_FOUND) -> Data:
    """Open a file of numbers, of one of the kinds in ``formats.py``, or ``-``: a text table from standard input.

    Raises
    ------
    Refused
        When the file does not hold what was asked for. The message says what came and what to do.
    """
    path = Path(path)
    kind = check_input(path)
    check_reading(path, kind, reading)
    try:
        return kind.read(path, kind, reading)
    except OSError as error:
        raise Refused(
            f"{path} cannot be read: {error.strerror or error}. Check the file and its permissions."
        ) from error


def check_input(path: Path) -> Format:
    """Return the file's format, or refuse it."""
    kind = format_of(path)
    if kind is not None and path == STDIN:
        return kind
    if path.is_dir():
        raise Refused(f"{path} is a directory. Name a file in it.")
    if not path.exists():
        raise Refused(f"{path} does not exist. Check the name, and the directory it is looked for in.")
    if kind is None:
        raise Refused(f"{wrong_suffix(path)}; files of these kinds can be read: {READABLE}.{how_to_save(path)}")
    if path.is_file() and path.stat().st_size == 0:
        raise Refused(f"{path} is empty (0 bytes). Write it again.")
    return kind
